"""What a benchmark of the orchestration makes of a run's points, what it refuses to compare, its mistakes."""

import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ray_distill.bench.orchestration import (
    OVERHEAD,
    WORKERS,
    OrchestrationRecord,
    benchmark_config,
    check_agreement,
    ratio,
    steps_for,
    time_breakdown,
)
from ray_distill.cli.main import app
from ray_distill.core.distilled import DistilledData
from ray_distill.core.metrics import StepMetrics
from ray_distill.errors import RunError
from tests.helpers.tiny import tiny_config

runner = CliRunner()


def point(step: int, unix_s: float, took: float, validation: float | None = None) -> StepMetrics:
    values = {"seconds_per_outer_step": took}
    return StepMetrics(
        step, values if validation is None else values | {"seconds_per_validation": validation}, unix_s
    )


def test_where_the_time_of_a_run_went() -> None:
    """The process starts at 100; the first step lasts from 110 to 112, its validation to 113; a report to 113.5;
    the second step to 115.5; a report to 116; the third step to 118, its validation to 119; the end is at 125."""
    points = [point(1, 113.0, 2.0, 1.0), point(2, 115.5, 2.0), point(3, 119.0, 2.0, 1.0)]
    assert time_breakdown(points, 100.0, 125.0) == {
        "startup_s": 10.0,
        "steady_s": 9.0,
        "steps_s": 6.0,
        "validations_s": 2.0,
        "between_s": 1.0,
        "total_s": 25.0,
    }


def test_how_many_steps_fill_the_wanted_seconds() -> None:
    """2 s a step, the first one not counted, and a validation of 10 s every 5 steps: 4 s each, 15 in 60 s."""
    points = [point(1, 0.0, 50.0), point(2, 0.0, 1.0), point(3, 0.0, 3.0, 10.0)]
    assert steps_for(60.0, points, 5) == 15
    assert steps_for(1.0, points, 5) == 2


def record(route: str, workers: int, repeat: int, steady_s: float) -> OrchestrationRecord:
    return OrchestrationRecord(
        benchmark="any",
        route=route,
        workers=workers,
        repeat=repeat,
        config_hash="0",
        outer_steps=10,
        replicas=4,
        startup_s=0.0,
        steady_s=steady_s,
        steps_s=0.0,
        validations_s=0.0,
        between_s=0.0,
        total_s=0.0,
        machine={},
        versions={},
    )


def test_ratios_are_of_all_seconds_and_of_each_repeat() -> None:
    """Bare 10 s and 30 s, Ray 11 s and 30 s: 41 / 40 in all; 4 x 10 replica steps in 10 s are 4 per second."""
    records = [
        record("bare", 1, 1, 10.0),
        record("ray", 1, 1, 11.0),
        record("bare", 1, 2, 30.0),
        record("ray", 1, 2, 30.0),
    ]
    assert ratio(records, OVERHEAD.variants) == (pytest.approx(41 / 40), [pytest.approx(1.1), 1.0])
    assert records[0].replicas_per_second == 4.0
    workers = [record("ray", 1, 1, 20.0), record("ray", 2, 1, 10.0)]
    assert ratio(workers, WORKERS.variants).overall == 0.5


def test_runs_that_arrive_elsewhere_are_not_compared() -> None:
    """Bit-equal for the bare loop and Ray; up to the order of a sum for one worker and two; a NaN never."""
    data = DistilledData(torch.ones(2, 1, 2, 2), torch.eye(2))
    near = DistilledData(data.images_NCHW * (1 + 1e-5), data.labels_NK)
    check_agreement(data, data, OVERHEAD.tolerance)
    check_agreement(data, near, WORKERS.tolerance)
    with pytest.raises(RunError, match=r"images differ by 1\.0e-05"):
        check_agreement(data, near, OVERHEAD.tolerance)
    with pytest.raises(RunError, match="labels differ"):
        check_agreement(data, data._replace(labels_NK=data.labels_NK * 2), WORKERS.tolerance)
    with pytest.raises(RunError, match="images differ by nan"):
        check_agreement(data, data._replace(images_NCHW=data.images_NCHW * torch.nan), WORKERS.tolerance)


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(tiny_config(cluster={"num_workers": 2, "cpus_per_worker": 4}).to_yaml())
    return file


def test_the_cluster_of_a_file_is_replaced(tiny_file: Path) -> None:
    """One worker with one core; all else, the hash with it, stays; the built-in ones can be run as they are."""
    config = benchmark_config(OVERHEAD, tiny_file, ["seed=3"])
    assert (config.cluster.num_workers, config.cluster.cpus_per_worker) == (1, 1)
    assert config.hash == tiny_config(seed=3).hash
    assert benchmark_config(OVERHEAD, None, []).checkpoint.every == 25
    assert benchmark_config(WORKERS, None, []).replicas % 2 == 0


WRONG = [
    (["overhead", "--set", "outer.steps=3"], "--seconds"),
    (["overhead", "--set", "cluster.num_workers=2"], "no effect"),
    (["overhead", "--set", "outer.stepz=3"], "outer.stepz"),
    (["overhead", "nowhere.yaml"], "nowhere.yaml"),
    (["workers", "--set", "replicas=3"], "multiple of 2, the workers (got 3)"),
    (["workers", "--json", "no/such.json"], "folder no does not exist"),
    (["workers", "--json", "there.json"], "Use another --json"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG, ids=[" ".join(w[0]) for w in WRONG])
def test_a_mistake_is_told_before_anything_runs(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.json").write_text("precious")
    result = runner.invoke(app, ["bench", *arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert says in result.stderr
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("there.json", "precious")]


def test_two_workers_need_two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    result = runner.invoke(app, ["bench", "workers"])
    assert result.exit_code == 2
    assert "needs 2 cores; this machine has 1" in result.stderr


def test_every_verb_says_what_it_measures() -> None:
    assert runner.invoke(app, ["bench", "--help"]).exit_code == 0
    for verb, says in (("overhead", "overhead of Ray Train"), ("workers", "replicas per second")):
        result = runner.invoke(app, ["bench", verb, "--help"])
        assert result.exit_code == 0
        assert says in " ".join(result.output.split())
