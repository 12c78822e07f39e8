"""Benchmark of grouped replicas: several in one batched computation against the same ones one by one.

Both are timed in one process, alternating, and their metagradients are compared. Also runs where only torch is
installed (`python -m ray_distill.bench.replicas --help`).
"""

from collections.abc import Sequence
from typing import Any

from ray_distill.bench.harness import report, run_standalone
from ray_distill.bench.problems import (
    ENGINES,
    MetagradientWorkload,
    configure_process,
    metagradient_workloads,
    parser,
    problem,
)
from ray_distill.core.metagradient import (
    Metagradient,
    adjoint_metagradient,
    adjoint_metagradients,
    per_replica,
)
from ray_distill.core.truncation import Window
from ray_distill.utils.timing import call_in_subprocess

CHOICES = [name for name, spec in ENGINES.items() if not spec.higher]


def largest_difference(a: Sequence[Metagradient], b: Sequence[Metagradient]) -> float:
    """The largest difference of any replica's image metagradient, relative to that in `b`."""
    pairs = [(x.grad.images_NCHW, y.grad.images_NCHW) for x, y in zip(a, b, strict=True)]
    return max(float((x - y).norm() / y.norm()) for x, y in pairs)


def measure(work: MetagradientWorkload, name: str, replicas: int) -> dict[str, Any]:
    """Measure one number of replicas in this process. Returns: the record."""
    spec = ENGINES[name]
    configure_process(work, spec)
    window = Window(work.burn_in, work.window_length)
    single = problem(work, spec, window.end, replicas)
    group = problem(work, spec, window.end, replicas, group_size=replicas)

    def one_by_one() -> list[Metagradient]:
        return per_replica(adjoint_metagradient)(single.inner, single.data, single.draws, window, single.real)

    def grouped() -> list[Metagradient]:
        return adjoint_metagradients(group.inner, group.data, group.draws, window, group.real)

    # Before the timing: the first calls of a compiled engine compile.
    difference = largest_difference(grouped(), one_by_one())
    return {
        "engine": name,
        "note": spec.note,
        **work.record(),
        "replicas": replicas,
        **work.compare(one_by_one, grouped),
        "largest_relative_difference": difference,
    }


_ROW = "{:<18} {:>4} {:>8} {:>12} {:>12} {:>8} {:>10}"
HEADER = _ROW.format("engine", "ipc", "replicas", "ms one by one", "ms grouped", "speedup", "difference")


def row(record: dict[str, Any]) -> str:
    """A row of the table; times are per replica."""
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
    """The command. Raises: UserError for an invalid argument, or an output file that exists."""
    description = "Several replicas in one batched computation against the same ones one by one; milliseconds per replica."
    options = parser("replicas", description, ipc=[1], window=10, unroll=30)
    options.set_defaults(network="convnet2", width=64, image="1x8x8", outer_batch=250, threads=1, repeats=5)
    options.add_argument(
        "--replicas", type=int, nargs="+", default=[2, 4, 8], help="replicas in a group (default: 2 4 8)"
    )
    options.add_argument(
        "--engine", choices=CHOICES, default="eager", metavar="ENGINE", help="(default %(default)s)"
    )
    parsed = options.parse_args(arguments)
    todo = metagradient_workloads(parsed, "replicas")
    records = (
        call_in_subprocess(measure, work, parsed.engine, replicas)
        for work in todo
        for replicas in parsed.replicas
    )
    report(HEADER, row, records, parsed.json)


if __name__ == "__main__":
    run_standalone(main)
