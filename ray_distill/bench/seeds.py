"""Benchmark of grouped seeds: networks trained and scored in one batched computation against one by one.

Both are timed in one process, alternating, and their scores are compared. The images are noise around a pattern for
each class. Also runs where only torch is installed (`python -m ray_distill.bench.seeds --help`).
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ray_distill.bench.harness import NUM_CLASSES, Workload, base_parser, report, run_standalone, workloads
from ray_distill.core.augment import Augmentation
from ray_distill.core.distilled import DistilledData, class_labels, noise, one_hot
from ray_distill.core.inner_optimizer import Adam
from ray_distill.core.microbatches import microbatch_size
from ray_distill.core.retrain import Score, retrain_group
from ray_distill.core.rng import Stream
from ray_distill.core.step_functions import StepFunctions
from ray_distill.core.unroll import InnerProblem
from ray_distill.errors import UserError
from ray_distill.utils.timing import call_in_subprocess

PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
AUGMENTATION = Augmentation(("flip", "rotate"))
SPREAD = 1.0
"""Scale of the noise around a class's pattern, at which networks classify some images correctly and others not."""


@dataclass(frozen=True, kw_only=True)
class SeedsWorkload(Workload):
    """What the networks are trained on, and for how long."""

    horizons: tuple[int, ...]
    test_images: int
    precision: str


class BenchmarkData(NamedTuple):
    """The distilled set to train on, and the test images with their classes."""

    data: DistilledData
    test: tuple[Tensor, Tensor]


def benchmark_data(work: SeedsWorkload) -> BenchmarkData:
    """The workload's data: `ipc` distilled images per class, and test images spread evenly over the classes."""
    device, dtype = torch.device(work.device), PRECISIONS[work.precision]

    def images(name: str, labels_N: Tensor) -> Tensor:
        centres, offsets = (
            noise(Stream(seed=0, name=stream, device=device), count, work.image_shape, dtype)
            for stream, count in (("centres", NUM_CLASSES), (name, len(labels_N)))
        )
        return centres[labels_N] + SPREAD * offsets

    labels_N = class_labels(NUM_CLASSES, work.ipc, device)
    test_N = torch.arange(work.test_images, device=device) % NUM_CLASSES
    data = DistilledData(images("distilled", labels_N), one_hot(labels_N, NUM_CLASSES, dtype))
    return BenchmarkData(data, (images("test", test_N), test_N))


def problem(work: SeedsWorkload, group_size: int) -> InnerProblem:
    """The training of `group_size` networks together, which determines the microbatch size."""
    network, batch = work.build(), NUM_CLASSES * work.ipc
    device, dtype = torch.device(work.device), PRECISIONS[work.precision]
    size = microbatch_size(network, work.image_shape, batch, dtype, device, group_size)
    return InnerProblem(
        functions=StepFunctions(network, images_per_pass=size),
        optimizer=Adam(lr=1e-3),
        augmentation=AUGMENTATION,
        inner_batch_per_class=work.ipc,
    )


def largest_differences(a: Sequence[Sequence[Score]], b: Sequence[Sequence[Score]]) -> tuple[float, float]:
    """The largest differences of accuracy, and of loss relative to `b`, over all networks and horizons."""
    pairs = [(x, y) for scores in zip(a, b, strict=True) for x, y in zip(*scores, strict=True)]
    return (
        max(abs(x.accuracy - y.accuracy) for x, y in pairs),
        max(abs(x.loss - y.loss) / y.loss for x, y in pairs),
    )


def measure(work: SeedsWorkload, num_seeds: int) -> dict[str, Any]:
    """Measure one number of seeds in this process. Returns: the record."""
    torch.set_num_threads(work.threads)
    data, test = benchmark_data(work)
    single, group = problem(work, 1), problem(work, num_seeds)

    def train(inner: InnerProblem, indices: Sequence[int]) -> list[list[Score]]:
        return retrain_group(inner, data, lambda: [test], work.horizons, seed=0, indices=indices)

    def one_by_one() -> list[list[Score]]:
        return [scores for index in range(num_seeds) for scores in train(single, [index])]

    def grouped() -> list[list[Score]]:
        return train(group, range(num_seeds))

    expected = one_by_one()
    accuracy, loss = largest_differences(grouped(), expected)
    return {
        **work.record(),
        "seeds": num_seeds,
        **work.compare(one_by_one, grouped),
        "mean_accuracy": sum(scores[-1].accuracy for scores in expected) / num_seeds,
        "largest_accuracy_difference": accuracy,
        "largest_relative_loss_difference": loss,
    }


_ROW = "{:<24} {:>4} {:>6} {:>11} {:>10} {:>8} {:>9} {:>10} {:>8}"
HEADER = _ROW.format(
    "network", "ipc", "seeds", "one by one", "grouped", "speedup", "accuracy", "difference", "of loss"
)
NOTES = (
    "one by one, grouped: seconds per network, training and scoring; accuracy: mean at the last horizon; difference:",
    "the largest difference in accuracy of any network at any horizon; of loss: the same for the loss, relative",
)


def row(record: dict[str, Any]) -> str:
    """A row of the table."""
    num_seeds = record["seeds"]
    return _ROW.format(
        record["network"],
        record["ipc"],
        num_seeds,
        f"{record['seconds_one_by_one'] / num_seeds:.3f}",
        f"{record['seconds_at_once'] / num_seeds:.3f}",
        f"{record['speedup']:.2f}",
        f"{record['mean_accuracy']:.3f}",
        f"{record['largest_accuracy_difference']:.1e}",
        f"{record['largest_relative_loss_difference']:.1e}",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command. Raises: UserError for an invalid argument, or an output file that exists."""
    description = (
        "Several seeds of one network trained in one batched computation against the same ones one by one."
    )
    options = base_parser("seeds", description, ipc=[1])
    options.set_defaults(width=64, image="1x8x8", threads=1, repeats=3)
    names = ["convnet1", "convnet2", "convnet2-bn", "mlp2"]
    options.add_argument("--networks", nargs="+", default=names, help=f"(default: {' '.join(names)})")
    options.add_argument(
        "--seeds", type=int, nargs="+", default=[2, 4, 8], help="seeds in a group (default: 2 4 8)"
    )
    options.add_argument(
        "--horizons", type=int, nargs="+", default=[50, 100], help="inner steps (default: 50 100)"
    )
    options.add_argument(
        "--test-images",
        type=int,
        default=360,
        help="test images scored at each horizon (default %(default)s)",
    )
    options.add_argument(
        "--precision", choices=list(PRECISIONS), default="float32", help="(default %(default)s)"
    )
    parsed = options.parse_args(arguments)
    todo = seeds_workloads(parsed)
    records = (call_in_subprocess(measure, work, count) for work in todo for count in parsed.seeds)
    report(HEADER, row, records, parsed.json, NOTES)


def seeds_workloads(parsed: argparse.Namespace) -> list[SeedsWorkload]:
    """A workload for each network and --ipc. Raises: UserError as `main`."""
    if parsed.horizons != sorted(set(parsed.horizons)):
        raise UserError(f"--horizons: must increase (got {parsed.horizons})")
    return workloads(
        SeedsWorkload,
        parsed,
        "networks",
        ["seeds", "horizons", "test_images"],
        horizons=tuple(parsed.horizons),
        test_images=parsed.test_images,
        precision=parsed.precision,
    )


if __name__ == "__main__":
    run_standalone(main)
