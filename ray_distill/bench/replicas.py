"""Replicas at once: several as one computation, against the same ones one by one.

Both are timed in one process and take turns, and their metagradients are compared. Runs alone too, where
there is only torch (`python -m ray_distill.bench.replicas --help`).
"""

import platform
from collections.abc import Sequence
from typing import Any

import torch

from ray_distill.bench.harness import report, run_standalone
from ray_distill.bench.problems import ENGINES, MetagradientWork, configure_process, parser, problem, works
from ray_distill.core.metagradient import (
    Metagradient,
    adjoint_metagradient,
    adjoint_metagradients,
    per_replica,
)
from ray_distill.core.truncation import Window
from ray_distill.errors import UserError
from ray_distill.utils.timing import call_in_subprocess, median_seconds

CHOICES = [name for name, spec in ENGINES.items() if not spec.higher]


def largest_difference(a: Sequence[Metagradient], b: Sequence[Metagradient]) -> float:
    """The largest relative difference between the two image metagradients of any replica."""
    pairs = [(x.grad.images_NCHW, y.grad.images_NCHW) for x, y in zip(a, b, strict=True)]
    return max(float((x - y).norm() / y.norm()) for x, y in pairs)


def measure(work: MetagradientWork, name: str, replicas: int) -> dict[str, Any]:
    """The record of one number of replicas, in this process."""
    spec = ENGINES[name]
    configure_process(work, spec)
    window = Window(work.burn_in, work.window_length)
    run_standalone = problem(work, spec, window.end, replicas)
    group = problem(work, spec, window.end, replicas, at_once=replicas)

    def run_alone() -> list[Metagradient]:
        return per_replica(adjoint_metagradient)(
            run_standalone.inner, run_standalone.data, run_standalone.draws, window, run_standalone.real
        )

    def run_group() -> list[Metagradient]:
        return adjoint_metagradients(group.inner, group.data, group.draws, window, group.real)

    # The first calls compile, where that is the engine's way.
    difference = largest_difference(run_group(), run_alone())
    one, at_once = median_seconds(work.device, run_alone, run_group, repeats=work.repeats)
    return {
        "engine": name,
        "note": spec.note,
        **work.record(),
        "replicas": replicas,
        "seconds_one_by_one": one,
        "seconds_at_once": at_once,
        "speedup": one / at_once,
        "largest_relative_difference": difference,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


_ROW = "{:<18} {:>4} {:>8} {:>12} {:>12} {:>8} {:>10}"
HEADER = _ROW.format("engine", "ipc", "replicas", "ms one by one", "ms at once", "speedup", "difference")


def row(record: dict[str, Any]) -> str:
    """One line of the table; times are for each replica."""
    replicas = record["replicas"]
    return _ROW.format(
        record["engine"],
        record["ipc"],
        replicas,
        f"{1e3 * record['seconds_one_by_one'] / replicas:.1f}",
        f"{1e3 * record['seconds_at_once'] / replicas:.1f}",
        f"{record['speedup']:.2f}",
        f"{record['largest_relative_difference']:.1e}",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command. Raises: UserError for arguments that do not go together, or a file that exists."""
    about = "Several replicas as one computation, against the same ones one by one; milliseconds for each replica."
    own = parser("replicas", about, ipc=[1], window=10, unroll=30)
    own.set_defaults(network="convnet2", width=64, image="1x8x8", outer_batch=250, threads=1, repeats=5)
    own.add_argument(
        "--replicas", type=int, nargs="+", default=[2, 4, 8], help="how many at once (default: 2 4 8)"
    )
    own.add_argument(
        "--engine", choices=CHOICES, default="eager", metavar="ENGINE", help="(default %(default)s)"
    )
    parsed = own.parse_args(arguments)
    todo = works(parsed)
    if min(parsed.replicas) < 1:
        raise UserError(f"--replicas: must be at least 1 (got {parsed.replicas})")
    measured = (
        call_in_subprocess(measure, work, parsed.engine, replicas)
        for work in todo
        for replicas in parsed.replicas
    )
    report(HEADER, row, measured, parsed.json)


if __name__ == "__main__":
    run_standalone(main)
