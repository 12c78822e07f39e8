"""Distillation by real Ray Train workers: the same numbers whatever computes them."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ray.train.v2._internal.constants import (
    DEFAULT_WORKER_GROUP_START_TIMEOUT_S,
    WORKER_GROUP_START_TIMEOUT_S_ENV_VAR,
)
from typer.testing import CliRunner

from ray_distill.cli.main import app
from ray_distill.config.config import Config, ConfigError
from ray_distill.core.distributed import SingleProcess
from ray_distill.core.outer_loop import outer_loop, outer_step
from ray_distill.core.state import RunState
from ray_distill.distillation.checkpoint import load_state, to_record
from ray_distill.distillation.trainer import check_cluster, placement_timeout_env, train
from ray_distill.storage.run_dir import RunDir
from ray_distill.tracking.tracker import Tracker
from tests.helpers.tiny import Bench, tiny_config, tiny_data

Place = Callable[[Config], tuple[RunDir, Tracker]]
pytestmark = pytest.mark.usefixtures("ray_cluster")


def alone(config: Config) -> RunState:
    """The same run without Ray, in this process."""
    b = Bench(config)
    state = RunState.start(b.initial, b.experiment.outer)
    return outer_loop(b.experiment, b.train, b.validation, state, SingleProcess(), lambda _: None)


def history(tracker: Tracker, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in tracker.client.get_metric_history(tracker.run_id, name)]


def test_one_worker_equals_the_plain_loop_and_two_workers_agree(place: Place) -> None:
    """5 outer steps in float64: 1 worker bit for bit, 2 workers to 1e-10; every step in MLflow once."""
    sections = {"outer": {"steps": 5}, "checkpoint": {"every": 3}, "tracking": {"report_every": 2}}
    expected = alone(tiny_config(**sections))
    ends = {}
    for workers in (1, 2):
        config = tiny_config(**sections, cluster={"num_workers": workers})
        folder, tracker = place(config)
        ends[workers] = train(config, tiny_data(config), folder, tracker, lambda done, said: None).state
        losses = history(tracker, "outer_loss")
        assert [step for step, _ in losses] == [1, 2, 3, 4, 5]
        images = {a.path for a in tracker.client.list_artifacts(tracker.run_id, "images")}
        assert {
            step for step in (3, 5) if any(f"step%{step}" in p or f"step+{step}" in p for p in images)
        } == {3, 5}
    assert torch.equal(ends[1].data.images_NCHW, expected.data.images_NCHW)
    assert to_record(ends[1])[1] == to_record(expected)[1]
    torch.testing.assert_close(ends[2].data.images_NCHW, expected.data.images_NCHW, rtol=1e-10, atol=1e-12)


def test_too_few_cpus_are_refused_at_once(place: Place) -> None:
    """Three workers with one CPU each on a cluster of two: an error at once, instead of waiting;
    unless the run is elastic and can start with two."""
    config = tiny_config(replicas=3, cluster={"num_workers": 3})
    folder, tracker = place(config)
    with pytest.raises(ConfigError, match="need 3 CPUs, the cluster has 2"):
        train(config, tiny_data(config), folder, tracker, lambda done, said: None)
    check_cluster(tiny_config(replicas=3, cluster={"num_workers": 3, "min_workers": 2}))


def test_an_elastic_run_has_a_shorter_placement_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can try another number of workers; other runs wait for nodes to come, as long as Train does; a value that the
    user has set applies to all."""
    fixed = tiny_config(cluster={"num_workers": 2})
    elastic = tiny_config(cluster={"num_workers": 2, "min_workers": 1})
    assert placement_timeout_env(fixed) == {}
    ((name, seconds),) = placement_timeout_env(elastic).items()
    assert name == WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
    assert 20 < float(seconds) < DEFAULT_WORKER_GROUP_START_TIMEOUT_S
    monkeypatch.setenv(name, "7")
    assert placement_timeout_env(elastic) == {}


@pytest.mark.slow
def test_a_diverging_run_names_its_step_and_fails_the_same_way_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An inner lr of 1e300 from step 6 on makes every metagradient NaN on both workers: exit code 1 after steps 6 and 7,
    without retries, and the same message again from the checkpoint of step 5. That holds the D of the finite steps. The
    MLflow run is FAILED and has the last but one step, which no cadence would have reported, once."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = tiny_config(
        inner={"lr": {"schedule": "piecewise", "values": [1e-3, 1e300], "from_steps": [0, 6]}},
        outer={"steps": 20, "max_nonfinite_steps": 2},
        cluster={"num_workers": 2},
    )
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    command = ["distill", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")]
    messages = []
    for more in ([], ["--resume"]):
        result = CliRunner().invoke(app, [*command, *more])
        assert result.exit_code == 1, result.output
        assert "Traceback" not in result.output
        messages.append(result.stderr)
        tracker = RunDir(tmp_path / "run").tracker_to_resume(config)
        assert tracker.client.get_run(tracker.run_id).info.status == "FAILED"
        assert history(tracker, "nonfinite_steps") == [(7, 1.0)]
        assert [step for step, _ in history(tracker, "seconds_per_outer_step")] == list(range(1, 8))
    assert messages[0] == messages[1]
    assert re.search(
        r"^failed: outer step 7, window \[\d, \d\), replicas \[0, 1\]: .*; D was not changed", messages[0]
    )
    saved = sorted((tmp_path / "run" / "train" / "run").glob("step_*/state.arrow"))
    assert [path.parent.name for path in saved] == ["step_00000005"]
    five = Bench(config)
    state = RunState.start(five.initial, five.experiment.outer)
    for _ in range(5):
        state, _ = outer_step(five.experiment, five.train, state, SingleProcess())
    torch.testing.assert_close(
        load_state(saved[0], config.hash).state.data.images_NCHW,
        state.data.images_NCHW,
        rtol=1e-10,
        atol=1e-12,
    )


def cut(file: Path) -> None:
    """Truncate it, as a crash in mid-write does."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.slow
def test_a_run_with_damaged_checkpoints_resumes_from_an_intact_one(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """Its last checkpoint truncated, a run of 15 outer steps resumes from the one after 10, on both workers, with a warning
    and a tag in MLflow; then with Train's snapshot truncated, from the checkpoints' files. Each time the result is that of
    the first time, bit for bit, with each metric once, and everything in Train's snapshot exists, or it would not resume."""
    config = tiny_config(outer={"steps": 15}, cluster={"num_workers": 2}, tracking={"report_every": 2})
    data, (folder, tracker) = tiny_data(config), place(config)
    run_folder = folder.train / "run"
    snapshot = run_folder / "checkpoint_manager_snapshot.json"

    def listed() -> list[str]:
        names = [
            result["checkpoint_dir_name"] for result in json.loads(snapshot.read_text())["checkpoint_results"]
        ]
        assert set(names) <= {path.name for path in run_folder.iterdir()}
        return names

    def once_more() -> RunState:
        with caplog.at_level(logging.WARNING):
            return train(config, data, folder, tracker, lambda done, said: None).state

    first = once_more()
    losses = history(tracker, "outer_loss")
    assert [step for step, _ in losses] == list(range(1, 16))
    assert listed() == ["step_00000010", "step_00000015"]
    for damaged, lists in (
        (run_folder / "step_00000015" / "state.arrow", ["step_00000015", "step_00000015-2"]),
        (snapshot, ["step_00000015-3"]),
    ):
        cut(damaged)
        again = once_more()
        assert torch.equal(again.data.images_NCHW, first.data.images_NCHW)
        assert to_record(again)[1] == to_record(first)[1]
        assert history(tracker, "outer_loss") == losses
        assert str(damaged) in caplog.text
        assert listed() == lists
    tag = tracker.client.get_run(tracker.run_id).data.tags["damaged_checkpoints"]
    assert tag.startswith(
        f"step_00000015: {run_folder / 'step_00000015' / 'state.arrow'} is truncated or corrupt"
    )
    assert tag.endswith("the run resumes from outer step 10")
