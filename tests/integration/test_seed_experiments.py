"""The experiments of the paper's public code, for real: network, window and unroll as they are written, on few and small data.

Images have their datasets' shape and are made on the spot, of two classes; inner and outer batches are as small as
that. Two outer steps, or one where an image has 64 x 64 pixels, through the outer loop of a worker; one of the six through
the whole command, and one on real CIFAR-10 where that lies beside the repository, or where CIFAR10_PARQUET says.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_distill.artifacts.dataset import DistilledDataset
from ray_distill.builders import settings
from ray_distill.builders.experiment import (
    build_experiment,
    initial_distilled_data,
    load_development_data,
    to_run_device,
)
from ray_distill.config.config import Config
from ray_distill.config.load import load_config, parse_config
from ray_distill.core.distilled import class_labels, one_hot
from ray_distill.core.distributed import SingleProcess
from ray_distill.core.metrics import StepMetrics
from ray_distill.core.outer_loop import Report, outer_loop
from ray_distill.core.state import RunState
from ray_distill.data.preprocessing import Preprocessing
from tests.helpers.hub_files import encode, write_images

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
CIFAR10 = Path(os.environ.get("CIFAR10_PARQUET", ROOT.parent / "shared" / "data" / "cifar10"))
NUM_CLASSES = 2
# side of an image, window, unroll, learnt labels
EXPERIMENTS = {
    "cifar10_ipc10": (32, 60, 200, False),
    "cifar100_ipc10": (32, 100, 300, True),
    "tiny_imagenet_ipc10": (64, 100, 300, True),
    "cifar100_ipc1_stabilised": (32, 90, 130, True),
    "tiny_imagenet_ipc10_stabilised": (64, 90, 270, True),
    "imagenet_ipc1_stabilised": (64, 80, 280, True),
}
SMALL = [
    "outer.steps=2",
    "outer.batch_size=30",
    "inner.batch_per_class=1",
    "validation={every: 2, num_networks: 1, horizon: 1}",
    "checkpoint.every=2",
    "evaluation.seeds=1",
    "evaluation.horizons=1",
    "evaluation.random_real_draws=1",
    "evaluation.whole_train_epochs=1",
]


@pytest.fixture(scope="module")
def data_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By the side of their images: 20 noisy images of each class to train on and 4 to test, as the hubs lay them out."""
    folders = {}
    for side in (32, 64):
        folder = folders[side] = tmp_path_factory.mktemp(f"images-{side}")
        rng = np.random.default_rng(side)
        for split, of_class in (("train", 20), ("test", 4)):
            count = of_class * NUM_CLASSES
            pixels = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
            labels = [i % NUM_CLASSES for i in range(count)]
            write_images(folder / f"{split}.parquet", [encode(p) for p in pixels], labels)
    return folders


WHITENING: dict[int, Preprocessing] = {}
"""Whitenings by the side of the images that they are fitted on: many seconds each, so the two experiments share one."""


def small(name: str, *overrides: str) -> Config:
    """The experiment as it is written, but for the overrides that make its data small."""
    path = ROOT / "experiments" / f"{name}.yaml"
    classes = "inner.classes_per_batch=null"
    return load_config(path, [*SMALL, classes, *overrides])


def run(
    config: Config, fitted: Preprocessing | None = None
) -> tuple[RunState, RunState, list[StepMetrics], Preprocessing]:
    """The outer loop in this process: its state before and after, its points, and the preprocessing."""
    data = load_development_data(config, fitted)
    experiment = build_experiment(config, data.image_shape, data.num_classes)
    train, held_out = (to_run_device(config, part, settings.CPU) for part in (data.train, data.validation))
    start = RunState.start(initial_distilled_data(config, data.train, settings.CPU), experiment.outer)
    reports: list[Report] = []
    end = outer_loop(experiment, train, held_out, start, SingleProcess(), reports.append)
    return start, end, [point for report in reports for point in report.points], data.preprocessing


def check(config: Config, start: RunState, end: RunState, points: list[StepMetrics]) -> None:
    """D moved by finite steps of the outer lr; windows are the configuration's; labels as it says."""
    ipc, truncation = config.distilled.ipc, config.truncation
    before, after = start.data, end.data
    assert [point.outer_step for point in points] == list(range(1, config.outer.steps + 1))
    for values in (point.values for point in points):
        assert np.isfinite([values["outer_loss"], values["metagradient_norm"]]).all()
        assert values["metagradient_norm"] > 0
        assert values["window_length"] == truncation.window_length
        assert values["unroll_length"] == truncation.unroll_length
        last = truncation.unroll_length - truncation.window_length
        first = 0 if truncation.rule == "rat-bptt" else last
        assert first <= values["window_start"] <= last
    assert after.images_NCHW.isfinite().all()
    # Adam's first step is lr for every number whose gradient is not 0; the second is at most about as long.
    moved = (after.images_NCHW - before.images_NCHW).abs()
    assert moved.max() <= 2.5 * config.outer.lr
    assert (moved > 0.1 * config.outer.lr).double().mean() > 0.5
    num_classes = after.labels_NK.shape[1]
    assert torch.equal(
        before.labels_NK,
        one_hot(class_labels(num_classes, ipc, settings.CPU), num_classes, torch.float32),
    )
    if not config.distilled.learn_labels:
        assert torch.equal(after.labels_NK, before.labels_NK)
        return
    assert (after.labels_NK - before.labels_NK).abs().max() > 0.1 * config.outer.lr
    assert after.labels_NK.min() >= 0
    sums_N = after.labels_NK.sum(dim=1)
    assert points[-1].values["label_row_sum_max"] == float(sums_N.max()) != 1.0
    assert points[-1].values["label_row_sum_min"] == float(sums_N.min())


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "cifar100_ipc1_stabilised"])
def test_it_takes_outer_steps_at_full_network_and_unroll(name: str, data_folders: dict[int, Path]) -> None:
    """And its configuration reads back to itself."""
    side, window, unroll, learnt = EXPERIMENTS[name]
    steps = 2 if side == 32 else 1
    config = small(name, f"data.source=parquet:{data_folders[side]}", f"outer.steps={steps}")
    written = config.truncation.window_length, config.truncation.unroll_length, config.distilled.learn_labels
    assert written == (window, unroll, learnt)
    assert config.network.width == 128
    assert parse_config(config.to_dict()) == config
    whitened = config.data.preprocessing == "zca"
    start, end, points, fitted = run(config, WHITENING.get(side) if whitened else None)
    if whitened:
        WHITENING[side] = fitted
    assert start.data.images_NCHW.shape == (NUM_CLASSES * config.distilled.ipc, 3, side, side)
    check(config, start, end, points)


def test_the_command_distils_and_judges(data_folders: dict[int, Path], tmp_path: Path) -> None:
    """CIFAR-100's stabilised experiment by `ray-distill distill`: Ray's worker, the artefact, the evaluation."""
    name = "cifar100_ipc1_stabilised"
    side, window, unroll, _ = EXPERIMENTS[name]
    config = small(name, f"data.source=parquet:{data_folders[side]}")
    assert (config.truncation.window_length, config.truncation.unroll_length) == (window, unroll)
    (tmp_path / "small.yaml").write_text(config.to_yaml())
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-c", "from ray_distill.cli.main import main; main()"]
    arguments = ["distill", "small.yaml", "--out", "run"]
    done = subprocess.run(
        [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    dataset = DistilledDataset.load(tmp_path / "run" / "distilled.parquet")
    assert dataset.images_NCHW.shape == (NUM_CLASSES, 3, side, side)
    assert dataset.images_NCHW.isfinite().all()
    assert not torch.equal(dataset.labels_NK, torch.eye(NUM_CLASSES))
    assert dataset.config_hash == config.hash
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["networks"]["convnet3"]["n"] == 1
    assert set(summary["baselines"]) == {"random_real", "whole_train"}


@pytest.mark.skipif(
    not CIFAR10.is_dir(), reason=f"no real CIFAR-10 at {CIFAR10}; name its folder by CIFAR10_PARQUET"
)
def test_cifar10_takes_an_outer_step_on_real_images() -> None:
    """Ten classes, one image of each in an inner step, 500 real images; whitened by what 450 of them give."""
    config = small("cifar10_ipc10", f"data.source=parquet:{CIFAR10}", "data.limit=500", "outer.steps=1")
    start, end, points, _ = run(config)
    assert start.data.images_NCHW.shape == (100, 3, 32, 32)
    check(config, start, end, points)
