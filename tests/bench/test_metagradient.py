"""The benches of the metagradient and of retraining: what their figures are, what they refuse. No times are asserted."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ray_distill.bench import metagradient, seeds
from ray_distill.bench import replicas as bench_replicas
from ray_distill.bench.harness import image_shape
from ray_distill.bench.metagradient import ERROR_WINDOW, flops_per_window_step, prepare, row
from ray_distill.bench.problems import ENGINES, MetagradientWorkload, problem
from ray_distill.cli.main import app
from ray_distill.core.retrain import Score
from ray_distill.errors import UserError
from ray_distill.utils.memory import peak_bytes
from ray_distill.utils.timing import call_in_subprocess, median_seconds

TINY = MetagradientWorkload(
    device="cpu",
    image_shape=(1, 8, 8),
    ipc=2,
    window_length=3,
    unroll_length=7,
    outer_batch_size=20,
    network="mlp1",
    width=5,
    threads=1,
    repeats=1,
)
OPTIONS = ["--network", "mlp1", "--width", "5", "--image", "1x8x8", "--outer-batch", "20", "--threads", "1"]
WANTED = {
    "engine",
    "device",
    "ipc",
    "window_length",
    "seconds_per_window_step",
    "seconds_per_outer_step",
    "peak_bytes",
    "relative_error_float64",
    "fraction_of_matmul_rate",
}


def test_a_window_step_counts_three_gradients() -> None:
    """An MLP with d inputs, w hidden units and K outputs: forward 2(dw + wK), backward 2dw for the first weights,
    4wK for the second ones and for what comes down through them; 2 images of each of 10 classes; times 3."""
    d, w, k = 64, 5, 10
    assert flops_per_window_step(TINY) == 3 * 20 * (2 * (d * w + w * k) + 2 * d * w + 4 * w * k)


@pytest.mark.parametrize("name", [name for name, spec in ENGINES.items() if not spec.compiled])
def test_every_engine_computes_the_same_metagradient(name: str) -> None:
    """Of the same problem, up to its precision; bf16 keeps 8 bits of each factor."""
    expected = prepare(TINY, ENGINES["float64"])(ERROR_WINDOW).grad.images_NCHW
    found = prepare(TINY, ENGINES[name])(ERROR_WINDOW).grad.images_NCHW
    tolerance = 0.2 if ENGINES[name].autocast else 1e-2
    assert float((found - expected).norm() / expected.norm()) < tolerance
    assert torch.equal(prepare(TINY, ENGINES[name])(ERROR_WINDOW).grad.images_NCHW, found)


def test_a_replica_is_the_same_whatever_comes_after_it() -> None:
    """And no two are alike."""
    one, three = (problem(TINY, ENGINES["float64"], 4, replicas) for replicas in (1, 3))
    assert torch.equal(one.draws[0].theta_P, three.draws[0].theta_P)
    assert torch.equal(one.real[0].images_NCHW, three.real[0].images_NCHW)
    assert not torch.equal(three.draws[1].theta_P, three.draws[2].theta_P)
    assert not torch.equal(three.real[1].images_NCHW, three.real[2].images_NCHW)


def test_calls_take_turns() -> None:
    order: list[str] = []
    medians = median_seconds("cpu", lambda: order.append("a"), lambda: order.append("b"), repeats=3)
    assert order == ["a", "b"] * 3
    assert len(medians) == 2
    assert min(medians) > 0


def test_records_hold_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two engines, each in a process of its own: a record and a line for each; the float64 engine has no error."""
    file = tmp_path / "records.json"
    arguments = ["--ipc", "2", "--window", "3", "--unroll", "7", "--engines", "float64", "replay"]
    metagradient.main([*arguments, *OPTIONS, "--json", str(file)])
    records = json.loads(file.read_text())
    assert [r["engine"] for r in records] == ["float64", "replay"]
    for r in records:
        assert r.keys() >= WANTED
        assert (r["ipc"], r["window_length"], r["burn_in"]) == (2, 3, 2)
        assert r["peak_bytes"] >= r["bytes_before"] > 1e7
        assert r["seconds_per_outer_step"] > 0
        assert r["matmul_flops_per_second"] > 1e8
    assert records[0]["relative_error_float64"] == 0.0
    assert 0 < records[1]["relative_error_float64"] < 1e-2
    lines = capsys.readouterr().out.splitlines()
    assert [row(r) for r in records] == lines[1:3]
    assert str(file) in lines[-1]


def test_grouped_replicas_are_measured_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "records.json"
    arguments = ["--window", "3", "--unroll", "7", "--replicas", "3", "--engine", "float64", "--repeats", "1"]
    result = CliRunner().invoke(app, ["bench", "replicas", *arguments, *OPTIONS, "--json", str(file)])
    assert result.exit_code == 0, result.output
    (r,) = json.loads(file.read_text())
    assert (r["engine"], r["replicas"], r["ipc"]) == ("float64", 3, 1)
    assert r["speedup"] == pytest.approx(r["seconds_one_by_one"] / r["seconds_at_once"])
    assert r["largest_relative_difference"] < 1e-10
    assert bench_replicas.row(r) in result.output


SEEDS = ["--networks", "mlp1", "--width", "5", "--image", "1x8x8", "--threads", "1", "--repeats", "1"]


def test_grouped_seeds_are_measured_and_compared(tmp_path: Path) -> None:
    """Two numbers of seeds, in float64."""
    file = tmp_path / "records.json"
    arguments = [
        "--seeds",
        "2",
        "3",
        "--horizons",
        "1",
        "200",
        "--precision",
        "float64",
        "--test-images",
        "40",
    ]
    result = CliRunner().invoke(app, ["bench", "seeds", *arguments, *SEEDS, "--json", str(file)])
    assert result.exit_code == 0, result.output
    records = json.loads(file.read_text())
    assert [r["seeds"] for r in records] == [2, 3]
    for r in records:
        assert (r["network"], r["ipc"], r["horizons"]) == ("mlp1 width 5", 1, [1, 200])
        assert r["speedup"] == pytest.approx(r["seconds_one_by_one"] / r["seconds_at_once"])
        assert r["largest_relative_loss_difference"] < 1e-10
        assert r["largest_accuracy_difference"] == 0.0
        assert 0.1 < r["mean_accuracy"] < 1.0
        assert seeds.row(r) in result.output


def test_a_difference_between_seeds_would_be_seen() -> None:
    """The largest over networks and horizons, of accuracies as they are, of losses relative to one by one."""
    apart = [[Score(0.5, 2.0), Score(0.6, 1.0)], [Score(0.5, 2.0), Score(0.7, 1.0)]]
    assert seeds.largest_differences(apart, apart) == (0.0, 0.0)
    grouped = [apart[0], [Score(0.5, 2.5), Score(0.4, 1.0)]]
    assert seeds.largest_differences(grouped, apart) == pytest.approx((0.3, 0.25))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seeds", "2", "0"], "--seeds: must be at least 1 (got [2, 0])"),
        (["--horizons", "5", "5"], "--horizons: must increase (got [5, 5])"),
        (["--test-images", "0"], "--test-images: must be at least 1 (got 0)"),
        (["--networks", "mlp1", "transformer3"], "--networks: unknown network 'transformer3'"),
    ],
)
def test_mistakes_of_seeds_are_named(arguments: list[str], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        seeds.main(arguments)


def test_a_difference_between_the_two_would_be_seen() -> None:
    """It is the largest over replicas, relative to the one-by-one metagradient."""
    run = prepare(TINY, ENGINES["float64"])(ERROR_WINDOW)
    off = run._replace(grad=run.grad._replace(images_NCHW=run.grad.images_NCHW * 1.5))
    assert bench_replicas.largest_difference([run, off], [run, run]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--window", "1"], "--window: must be from 2 to --unroll, which is 40 (got 1)"),
        (["--window", "50"], "--window: must be from 2 to --unroll, which is 40 (got 50)"),
        (["--ipc", "1", "0"], "--ipc: must be at least 1"),
        (["--outer-batch", "0"], "--outer-batch: must be at least 1 (got 0)"),
        (["--threads", "0"], "--threads: must be at least 1"),
        (["--image", "32x32"], "--image: must be like 3x32x32 (got 32x32)"),
        (["--image", "0x8x8"], "--image: must be like 3x32x32"),
        (["--network", "transformer3"], "--network: unknown network 'transformer3'"),
        (
            ["--network", "convnet5", "--image", "3x8x8"],
            "--network: convnet5 for 8x8 images: the images are too small",
        ),
    ],
)
def test_mistakes_are_named(arguments: list[str], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        metagradient.main(arguments)


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("mine")
    for main in (metagradient.main, bench_replicas.main):
        with pytest.raises(UserError, match="exists already"):
            main([*OPTIONS, "--json", str(tmp_path / "there.json")])
    assert (tmp_path / "there.json").read_text() == "mine"
    with pytest.raises(UserError, match="exists already"):
        seeds.main([*SEEDS, "--json", str(tmp_path / "there.json")])
    assert (tmp_path / "there.json").read_text() == "mine"
    with pytest.raises(UserError, match="--replicas: must be at least 1"):
        bench_replicas.main([*OPTIONS, "--replicas", "0"])


def test_image_shapes_are_read() -> None:
    assert image_shape("3x32x16") == (3, 32, 16)
    assert replace(TINY, image_shape=image_shape("2x8x8")).build().num_parameters == (2 * 64 + 1) * 5 + 60


WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "mlflow", "pydantic", "yaml", "typer", "rich", "sklearn", "PIL"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from ray_distill.bench.{module} import main
main({arguments!r})
"""


SHORT = ["--ipc", "1", "--window", "2", "--unroll", "2", *OPTIONS]


@pytest.mark.parametrize(
    ("module", "arguments", "says"),
    [
        ("metagradient", ["--engines", "eager", *SHORT], "eager"),
        ("replicas", ["--replicas", "2", *SHORT], "eager"),
        ("seeds", ["--seeds", "2", "--horizons", "1", *SEEDS], "mlp1 width 5"),
    ],
)
def test_it_runs_where_there_is_only_torch(
    module: str, arguments: list[str], says: str, tmp_path: Path
) -> None:
    """The packages of the orchestration are missing; main is called as `python -m` calls it."""
    (tmp_path / "alone.py").write_text(
        "if __name__ == '__main__':"
        + WITHOUT.format(module=module, arguments=arguments).replace("\n", "\n    ")
    )
    done = subprocess.run(
        [sys.executable, str(tmp_path / "alone.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
    wrong = [sys.executable, "-m", f"ray_distill.bench.{module}", "--threads", "0"]
    done = subprocess.run(wrong, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --threads")


def test_the_peak_of_a_process_is_its_own() -> None:
    """Not that of the process that started it, which holds 400 MB more of touched pages: `getrusage` would give those."""
    held = torch.ones(100_000_000)
    assert call_in_subprocess(peak_bytes, False) < peak_bytes(False) - 3 * held.numel()
