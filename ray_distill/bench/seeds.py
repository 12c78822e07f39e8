"""Several seeds of one network trained and scored as one computation, against the same ones one by one.

Both are timed in one process and take turns, and their scores are compared. The images are noise around a pattern
for each class. Runs alone too, where there is only torch (`python -m ray_distill.bench.seeds --help`).
"""

import argparse
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ray_distill.bench.harness import base_parser, check_arguments, report, run_standalone
from ray_distill.bench.problems import NUM_CLASSES
from ray_distill.core.augment import Augmentation
from ray_distill.core.distilled import DistilledData, class_labels, noise, one_hot
from ray_distill.core.inner_optimizer import Adam
from ray_distill.core.microbatches import microbatch_size
from ray_distill.core.networks.network import ImageShape, Network, NetworkSpec, build_network
from ray_distill.core.retrain import Score, retrain_group
from ray_distill.core.rng import Stream
from ray_distill.core.step_functions import StepFunctions
from ray_distill.core.unroll import InnerProblem
from ray_distill.errors import UserError
from ray_distill.utils.timing import call_in_subprocess, device_name, median_seconds

PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
AUGMENTATION = Augmentation(("flip", "rotate"))
SPREAD = 1.0
"""Of the images around their class's pattern: with it, networks are right about some of them and wrong about others."""


@dataclass(frozen=True, kw_only=True)
class SeedsWork:
    """What networks are trained on, and how long."""

    device: str
    image_shape: ImageShape
    ipc: int
    network: str
    width: int
    horizons: tuple[int, ...]
    test_images: int
    precision: str
    threads: int
    repeats: int

    def build(self) -> Network:
        """The network. Raises: ValueError if there is no such network."""
        return build_network(NetworkSpec(name=self.network, width=self.width), self.image_shape, NUM_CLASSES)

    def record(self) -> dict[str, Any]:
        """The work as fields of a record."""
        return {
            "device": device_name(self.device),
            "image_shape": list(self.image_shape),
            "ipc": self.ipc,
            "network": f"{self.network} width {self.width}",
            "horizons": list(self.horizons),
            "test_images": self.test_images,
            "precision": self.precision,
            "threads": self.threads,
            "repeats": self.repeats,
        }


class Sets(NamedTuple):
    """What is trained on, and the images of known classes that are scored."""

    data: DistilledData
    test: tuple[Tensor, Tensor]


def sets(work: SeedsWork) -> Sets:
    """The work's sets: `ipc` images of each class, and as many of each, or nearly, to score."""
    device, dtype = torch.device(work.device), PRECISIONS[work.precision]

    def images(name: str, labels_N: Tensor) -> Tensor:
        centres, around = (
            noise(Stream(seed=0, name=what, device=device), count, work.image_shape, dtype)
            for what, count in (("centres", NUM_CLASSES), (name, len(labels_N)))
        )
        return centres[labels_N] + SPREAD * around

    labels_N = class_labels(NUM_CLASSES, work.ipc, device)
    test_N = torch.arange(work.test_images, device=device) % NUM_CLASSES
    data = DistilledData(images("distilled", labels_N), one_hot(labels_N, NUM_CLASSES, dtype))
    return Sets(data, (images("test", test_N), test_N))


def problem(work: SeedsWork, at_once: int) -> InnerProblem:
    """The training of so many networks at once, whose number settles the size of its passes."""
    network, batch = work.build(), NUM_CLASSES * work.ipc
    device, dtype = torch.device(work.device), PRECISIONS[work.precision]
    size = microbatch_size(network, work.image_shape, batch, dtype, device, at_once)
    return InnerProblem(
        functions=StepFunctions(network, images_per_pass=size),
        optimizer=Adam(lr=1e-3),
        augmentation=AUGMENTATION,
        inner_batch_per_class=work.ipc,
    )


def largest_differences(a: Sequence[Sequence[Score]], b: Sequence[Sequence[Score]]) -> tuple[float, float]:
    """Of the accuracies, and of the losses relative to b's, over all networks and horizons."""
    pairs = [(x, y) for ours, theirs in zip(a, b, strict=True) for x, y in zip(ours, theirs, strict=True)]
    return (
        max(abs(x.accuracy - y.accuracy) for x, y in pairs),
        max(abs(x.loss - y.loss) / y.loss for x, y in pairs),
    )


def measure(work: SeedsWork, num_seeds: int) -> dict[str, Any]:
    """The record of one number of seeds, in this process."""
    torch.set_num_threads(work.threads)
    data, test = sets(work)
    one, several = problem(work, 1), problem(work, num_seeds)

    def train(inner: InnerProblem, indices: Sequence[int]) -> list[list[Score]]:
        return retrain_group(inner, data, lambda: [test], work.horizons, seed=0, indices=indices)

    def one_by_one() -> list[list[Score]]:
        return [scores for index in range(num_seeds) for scores in train(one, [index])]

    def at_once() -> list[list[Score]]:
        return train(several, range(num_seeds))

    apart = one_by_one()
    accuracy, loss = largest_differences(at_once(), apart)
    apart_s, together_s = median_seconds(work.device, one_by_one, at_once, repeats=work.repeats)
    return {
        **work.record(),
        "seeds": num_seeds,
        "seconds_one_by_one": apart_s,
        "seconds_at_once": together_s,
        "speedup": apart_s / together_s,
        "mean_accuracy": sum(scores[-1].accuracy for scores in apart) / num_seeds,
        "largest_accuracy_difference": accuracy,
        "largest_relative_loss_difference": loss,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


_ROW = "{:<24} {:>4} {:>6} {:>11} {:>10} {:>8} {:>9} {:>10} {:>8}"
HEADER = _ROW.format(
    "network", "ipc", "seeds", "one by one", "at once", "speedup", "accuracy", "difference", "of loss"
)
NOTES = (
    "one by one, at once: seconds for each network, training and scoring; accuracy: at the last horizon, mean;",
    "difference: the largest of any network at any horizon; of loss: the same, relative",
)


def row(record: dict[str, Any]) -> str:
    """One line of the table."""
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
    """The command. Raises: UserError for arguments that do not go together, or a file that exists."""
    about = "Several seeds of one network trained as one computation, against the same ones one by one."
    own = base_parser("seeds", about, ipc=[1])
    own.set_defaults(width=64, image="1x8x8", threads=1, repeats=3)
    names = ["convnet1", "convnet2", "convnet2-bn", "mlp2"]
    own.add_argument("--networks", nargs="+", default=names, help=f"(default: {' '.join(names)})")
    own.add_argument("--seeds", type=int, nargs="+", default=[2, 4, 8], help="how many (default: 2 4 8)")
    own.add_argument(
        "--horizons", type=int, nargs="+", default=[50, 100], help="inner steps (default: 50 100)"
    )
    own.add_argument(
        "--test-images", type=int, default=360, help="scored at each horizon (default %(default)s)"
    )
    own.add_argument("--precision", choices=list(PRECISIONS), default="float32", help="(default %(default)s)")
    parsed = own.parse_args(arguments)
    measured = (call_in_subprocess(measure, work, count) for work in works(parsed) for count in parsed.seeds)
    report(HEADER, row, measured, parsed.json, NOTES)


def works(parsed: argparse.Namespace) -> list[SeedsWork]:
    """One work for each network and --ipc. Raises: UserError for what does not go together, or a file that exists."""
    shape = check_arguments(parsed, "seeds", "horizons", "test_images")
    if parsed.horizons != sorted(set(parsed.horizons)):
        raise UserError(f"--horizons: must increase (got {parsed.horizons})")
    result = [
        SeedsWork(
            device=parsed.device,
            image_shape=shape,
            ipc=ipc,
            network=network,
            width=parsed.width,
            horizons=tuple(parsed.horizons),
            test_images=parsed.test_images,
            precision=parsed.precision,
            threads=parsed.threads,
            repeats=parsed.repeats,
        )
        for network in parsed.networks
        for ipc in parsed.ipc
    ]
    for work in result:
        try:
            work.build()
        except ValueError as e:
            raise UserError(f"--networks: {e}") from None
    return result


if __name__ == "__main__":
    run_standalone(main)
