"""How the time of an outer step falls with the number of workers, and where more of them stop paying: a model, 1 to 1,000.

    step(w) = max over ranks r of (sum over groups r, r + w, .. of a group's seconds) + all_reduce(w)
    all_reduce(w) = 2 (w - 1) (latency + bytes / w / bandwidth)

Groups of replicas are shared out as `outer_loop` does it. A group of g replicas takes g times the seconds of one, times a
factor of mean 1 that is gamma distributed: what other work on a machine, heat and a busy network do. The factor's
coefficient of variation is the one number here that nobody has measured. The sum goes round a ring, as gloo's and NCCL's
do for what is as large as D. In it: D, its labels, one loss and a few numbers per replica, in float64.

Not in the model: processes that take a worker's core from it (Ray's own do, where all cores have a worker), validation,
reports and checkpoints, workers that die.

uv run python experiments/scaling_model.py
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ray_distill.core.diagnostics import POSITIONS

RESULTS = Path(__file__).parent / "results" / "scaling"
WORKERS = (1, 2, 4, 8, 16, 32, 64, 125, 250, 500, 1000)
VARIATIONS = (0.0, 0.1, 0.3)
PAYS = 0.5
"""More workers pay while each does at least this part of what one alone does."""
FLOAT64_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Work:
    """What an outer step is."""

    name: str
    replicas: int
    replicas_at_once: int = 1
    seconds_per_replica: float
    variation: float = 0.0
    """Standard deviation over mean of a group's seconds."""
    num_values: int
    """Of D: pixels and label probabilities."""

    @property
    def summed_bytes(self) -> int:
        """What one all-reduce sums, as `outer_loop.mean_metagradient` lays it out."""
        return FLOAT64_BYTES * (1 + self.num_values + 2 * self.replicas + POSITIONS)

    @property
    def groups(self) -> list[int]:
        """How many replicas each group has."""
        at_once = self.replicas_at_once
        return [min(at_once, self.replicas - first) for first in range(0, self.replicas, at_once)]


class Network(NamedTuple):
    """What joins the workers."""

    latency_s: float
    bytes_per_s: float


class Point(NamedTuple):
    """An outer step with this many workers."""

    workers: int
    seconds: float
    """Mean over simulated steps."""
    waiting: float
    """The part of the workers' time in which they wait for the slowest."""
    summing: float
    """The part of the step that is the all-reduce."""


def all_reduce_s(workers: int, summed_bytes: int, network: Network) -> float:
    """Seconds of a ring all-reduce: 2 (w - 1) messages one after the other, each of a w-th of the bytes."""
    rounds = 2 * (workers - 1)
    return rounds * (network.latency_s + summed_bytes / workers / network.bytes_per_s)


def computing_s(work: Work, workers: int, steps: int, seed: int) -> np.ndarray:
    """Seconds that each rank computes in each step: [steps, workers]."""
    groups = np.array(work.groups)
    seconds = np.broadcast_to(groups * work.seconds_per_replica, (steps, len(groups))).copy()
    if work.variation > 0.0:
        # Gamma with this shape and the inverse as scale: mean 1, standard deviation = variation.
        shape = work.variation**-2
        seconds *= np.random.default_rng(seed).gamma(shape, 1.0 / shape, seconds.shape)
    of_ranks = np.zeros((steps, workers))
    for rank in range(workers):
        of_ranks[:, rank] = seconds[:, rank::workers].sum(axis=1)
    return of_ranks


def simulate(work: Work, network: Network, workers: int, steps: int = 200, seed: int = 0) -> Point:
    """An outer step on that many workers, over simulated steps."""
    of_ranks = computing_s(work, workers, steps, seed)
    slowest = of_ranks.max(axis=1)
    summing = all_reduce_s(workers, work.summed_bytes, network)
    seconds = float(slowest.mean()) + summing
    waiting = 1.0 - float(of_ranks.mean()) / float(slowest.mean())
    return Point(workers, seconds, waiting, summing / seconds)


def efficiency(point: Point, one: Point) -> float:
    """What each worker does, as a part of what one alone does."""
    return one.seconds / point.seconds / point.workers


def pays_until(points: Sequence[Point]) -> int:
    """The most workers of which each does at least PAYS of what one alone does. The first point is of one worker."""
    return max(p.workers for p in points if efficiency(p, points[0]) >= PAYS)


def every_count(work: Work, network: Network) -> list[Point]:
    """1 to 1,000 workers, or as many as there are groups: more would idle."""
    most = min(max(WORKERS), len(work.groups))
    counts = sorted({*np.geomspace(1, most, 60).round().astype(int).tolist(), most})
    return [simulate(work, network, w) for w in counts]


class Scenario(NamedTuple):
    """Work on machines joined by a network."""

    work: Work
    network: Network


CIFAR10_IPC10 = 100 * (3 * 32 * 32 + 10)
GIGABIT = Network(latency_s=1e-4, bytes_per_s=1e9 / 8)
SCENARIOS = (
    # 16.5 s: LOG.md, 2026-11-25, `bench metagradient --ipc 10 --window 20`, compiled, two cores.
    Scenario(
        Work(
            name="CIFAR-10, IPC 10, 16.5 s a replica, 1 Gbit/s",
            replicas=1000,
            seconds_per_replica=16.5,
            num_values=CIFAR10_IPC10,
        ),
        GIGABIT,
    ),
    # No GPU has been measured: what if one were a hundred times as fast as two cores?
    Scenario(
        Work(
            name="the same, were it 100 times as fast",
            replicas=1000,
            seconds_per_replica=0.165,
            num_values=CIFAR10_IPC10,
        ),
        GIGABIT,
    ),
    Scenario(
        Work(
            name="the same, with 16 replicas",
            replicas=16,
            seconds_per_replica=0.165,
            num_values=CIFAR10_IPC10,
        ),
        GIGABIT,
    ),
)


class Check(NamedTuple):
    """Replicas per second on two workers, from what one did, against what two did."""

    route: str
    one: float
    predicted: float
    measured: float


def check(route: str, rates: dict[int, float], core: float = 1.0) -> Check:
    """The prediction for two workers on one machine (loopback), from the measured rate of one.

    Args:
        core: the part of a core that each of two gets; one alone has a whole one.
    """
    work = Work(name=route, replicas=2, seconds_per_replica=1.0 / rates[1] / core, num_values=10 * (64 + 10))
    two = simulate(work, Network(latency_s=1e-4, bytes_per_s=1e9), 2)
    return Check(route, rates[1], work.replicas / two.seconds, rates[2])


def bench_rates(records: Sequence[dict[str, Any]]) -> dict[int, float]:
    """Replicas per second by workers, of the outer steps alone, from `bench workers --json`."""
    rates = {}
    for workers in {r["workers"] for r in records}:
        own = [r for r in records if r["workers"] == workers]
        rates[workers] = sum(r["replicas"] * r["outer_steps"] for r in own) / sum(r["steps_s"] for r in own)
    return rates


def checks() -> list[Check]:
    """All that was measured on 1 and 2 workers."""
    bare = json.loads((RESULTS / "torchrun.json").read_text())
    ray = bench_rates(json.loads((RESULTS / "bench_workers.json").read_text()))
    return [
        check("torchrun, without Ray", {r["workers"]: r["replicas_per_second"] for r in bare}),
        check("`bench workers`, with Ray", ray),
        # LOG.md, 2026-11-25: what each worker's computing thread had, beside Ray's other processes on the same cores.
        check("the same, each with 0.91 of a core", ray, core=0.91),
    ]


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def table(scenario: Scenario) -> str:
    """Seconds of a step and efficiency, for each variation."""
    counts = [w for w in WORKERS if w <= len(scenario.work.groups)]
    heads = [f"cv {v:g}: s/step, efficiency, waiting" for v in VARIATIONS]
    columns = []
    for variation in VARIATIONS:
        points = [simulate(replace(scenario.work, variation=variation), scenario.network, w) for w in counts]
        columns.append([f"{p.seconds:.3g}, {efficiency(p, points[0]):.0%}, {p.waiting:.0%}" for p in points])
    lines = [_row("workers", *heads), _row(*["---"] * (1 + len(heads)))]
    lines += [_row(w, *cells) for w, *cells in zip(counts, *columns, strict=True)]
    ends = [
        pays_until(every_count(replace(scenario.work, variation=v), scenario.network)) for v in VARIATIONS
    ]
    return "\n".join([*lines, _row("pays until", *ends)])


def report() -> str:
    """All tables, as Markdown."""
    lines = [
        "Generated by `uv run python experiments/scaling_model.py`.",
        "",
        "## Against 1 and 2 real workers",
        "",
    ]
    lines += [_row("replicas/s", "1 worker", "2, predicted", "2, measured", "off by"), _row(*["---"] * 5)]
    for c in checks():
        cells = (c.route, f"{c.one:.2f}", f"{c.predicted:.2f}", f"{c.measured:.2f}")
        lines.append(_row(*cells, f"{c.predicted / c.measured - 1:+.0%}"))
    for scenario in SCENARIOS:
        network = (
            f"{scenario.network.latency_s * 1e6:g} µs, {scenario.network.bytes_per_s * 8 / 1e9:g} Gbit/s"
        )
        work = scenario.work
        lines += ["", f"## {work.name}", ""]
        lines += [
            f"{work.replicas} replicas, {work.summed_bytes / 1e6:.2f} MB summed, {network}.",
            "",
            table(scenario),
        ]
    return "\n".join([*lines, ""])


def plot() -> Figure:
    """Seconds of a step, and efficiency, against workers."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    axes = figure.subplots(2, len(SCENARIOS), sharex="col")
    for column, scenario in enumerate(SCENARIOS):
        top, bottom = axes[0][column], axes[1][column]
        for variation in VARIATIONS:
            points = every_count(replace(scenario.work, variation=variation), scenario.network)
            workers = [p.workers for p in points]
            top.plot(workers, [p.seconds for p in points], label=f"coefficient of variation {variation:g}")
            bottom.plot(workers, [efficiency(p, points[0]) for p in points])
        ideal = points[0].seconds
        top.plot(workers, [ideal / w for w in workers], "k:", label="a w-th of one worker's")
        top.set(xscale="log", yscale="log", title=scenario.work.name)
        top.title.set_fontsize(9)
        bottom.axhline(PAYS, color="k", linestyle=":")
        bottom.set(xscale="log", xlabel="workers", ylim=(0, 1.05))
    axes[0][0].set_ylabel("seconds of an outer step")
    axes[1][0].set_ylabel("efficiency")
    axes[0][0].legend(fontsize=8)
    return figure


def main() -> None:
    """Write the tables and the plot into the results, and print the tables."""
    text = report()
    (RESULTS / "model.md").write_text(text)
    plot().savefig(RESULTS / "model.png", dpi=110)
    print(text)


if __name__ == "__main__":
    main()
