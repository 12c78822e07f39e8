"""What orchestration costs and what it gains: the same experiment run in two ways, timed in its steady state.

`overhead`: the bare outer loop in one process against Ray Train with one worker, checkpoints and MLflow.
`workers`: Ray Train with one worker against two, with one core each.

The steady state lasts from the beginning of the first outer step to the end of the last, validations,
reports and checkpoints between them included; so the report that comes after the last step, and starting
up, are not in it. The two ways take turns, so that a machine that slows down slows both; and what they
arrive at must be the same distilled set, else nothing is compared.
"""

import os
import platform
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path
from typing import NamedTuple

from ray_distill.bench.subprocess_run import MeasuredRun, run_measured
from ray_distill.config.config import Config
from ray_distill.config.load import apply_overrides, load_config, parse_config
from ray_distill.core.distilled import DistilledData
from ray_distill.core.metrics import StepMetrics
from ray_distill.errors import RunError, UserError
from ray_distill.utils.progress import Update

CALIBRATION_STEPS = 8
"""Outer steps of the bare run that tells how many fill the wanted seconds; the first does not count."""

ORDER_OF_A_SUM = 1e-3
"""Relative difference that D may have after another order of summation over replicas, in float32."""


class Variant(NamedTuple):
    """A way to run an experiment."""

    route: str
    """`bare` or `ray`."""
    workers: int


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Two ways to run one experiment."""

    name: str
    variants: tuple[Variant, Variant]
    default_overrides: tuple[str, ...]
    """Overrides that make its own experiment out of the demo's."""
    tolerance: float
    """Relative difference that the two may have in D."""


OVERHEAD = Benchmark(
    name="overhead",
    variants=(Variant("bare", 1), Variant("ray", 1)),
    default_overrides=("validation.every=25", "checkpoint.every=25"),
    tolerance=0.0,
)
WORKERS = Benchmark(
    name="workers",
    variants=(Variant("ray", 1), Variant("ray", 2)),
    default_overrides=("network.width=128", "validation.every=1000", "validation.num_networks=2"),
    tolerance=ORDER_OF_A_SUM,
)


@dataclass(frozen=True, kw_only=True)
class OrchestrationRecord:
    """One measured run."""

    benchmark: str
    route: str
    workers: int
    repeat: int
    """From 1; the runs of one repeat came one after the other."""
    config_hash: str
    outer_steps: int
    replicas: int
    startup_s: float
    """From the start of the process to the beginning of the first outer step: imports, data, Ray, MLflow."""
    steady_s: float
    """From there to the end of the last outer step."""
    steps_s: float
    """Of the steady state: outer steps."""
    validations_s: float
    """Of the steady state: validations."""
    between_s: float
    """Of the steady state: all else, that is reports and checkpoints as far as the training waits for them."""
    total_s: float
    """From the start of the process to its end."""
    machine: dict[str, str | int | float]
    versions: dict[str, str]

    @property
    def replicas_per_second(self) -> float:
        """Metagradients of single replicas per second of the steady state."""
        return self.replicas * self.outer_steps / self.steady_s


class Ratio(NamedTuple):
    """How much longer the second way took than the first."""

    overall: float
    """Of the seconds of all repeats together."""
    pairs: list[float]
    """Of each repeat: how far they lie apart is the machine's noise."""


def benchmark_config(benchmark: Benchmark, file: Path | None, overrides: Sequence[str]) -> Config:
    """The experiment in the file, or the benchmark's own, with overrides, in one process with one core.

    Raises: UserError for what cannot be run, or has no effect here.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key == "outer.steps" or key.partition(".")[0] in ("cluster", "evaluation"):
            raise UserError(
                f"--set {override}: has no effect: outer.steps follow from --seconds, the cluster is that of the "
                "benchmark, and nothing is evaluated; remove it"
            )
    with as_file(files("ray_distill") / "demo.yaml") as demo:
        own = () if file else benchmark.default_overrides
        config = load_config(file or demo, [*own, *overrides, "cluster={}"])
    workers = max(way.workers for way in benchmark.variants)
    if config.replicas % workers:
        raise UserError(f"replicas: must be a multiple of {workers}, the workers (got {config.replicas})")
    cores = os.cpu_count() or 1
    if cores < workers:
        raise UserError(f"bench {benchmark.name}: needs {workers} cores; this machine has {cores}")
    return config


def run_benchmark(
    benchmark: Benchmark, config: Config, seconds: float, repeats: int, update: Update
) -> list[OrchestrationRecord]:
    """Both ways in turns, `repeats` times.

    Args:
        seconds: what the steady state of the bare loop in one process should take; the number of outer steps
            follows from a short calibration.
        update: told of each run that begins, of 1 + 2 repeats.

    Raises: UserError; RunError if a run fails or the two do not arrive at the same distilled set.
    """
    machine, versions = machine_info(), package_versions()
    records: list[OrchestrationRecord] = []
    first: MeasuredRun | None = None
    # Ray's sockets lie in the folder, and their paths may have no more than 107 bytes.
    with tempfile.TemporaryDirectory(prefix="rd-", dir="/tmp", ignore_cleanup_errors=True) as place:
        update(0, "calibrating")
        short = _override(config, f"outer.steps={CALIBRATION_STEPS}")
        calibration = run_measured("bare", short, Path(place) / "0")
        steps = steps_for(seconds, calibration.points, config.validation.every)
        for repeat in range(1, repeats + 1):
            for way in benchmark.variants:
                update(1 + len(records), f"{way.route}, {way.workers} worker(s), {steps} outer steps")
                own = _override(config, f"outer.steps={steps}", f"cluster.num_workers={way.workers}")
                run = run_measured(way.route, own, Path(place) / str(1 + len(records)))
                first = first or run
                check_agreement(first.data, run.data, benchmark.tolerance)
                records.append(
                    OrchestrationRecord(
                        benchmark=benchmark.name,
                        route=way.route,
                        workers=way.workers,
                        repeat=repeat,
                        config_hash=own.hash,
                        outer_steps=steps,
                        replicas=own.replicas,
                        **time_breakdown(run.points, run.began_unix_s, run.ended_unix_s),
                        machine=machine,
                        versions=versions,
                    )
                )
        update(1 + len(records), "done")
    return records


def _override(config: Config, *overrides: str) -> Config:
    return parse_config(apply_overrides(config.to_dict(), overrides))


def steps_for(seconds: float, points: Sequence[StepMetrics], validate_every: int) -> int:
    """How many outer steps, with their share of validations, take that long; at least 2.

    Args:
        points: of a short run, the last one with a validation. Its first step does not count.
    """
    steps = [point.values["seconds_per_outer_step"] for point in points[1:]]
    validation = points[-1].values["seconds_per_validation"] / validate_every
    return max(2, round(seconds / (sum(steps) / len(steps) + validation)))


def time_breakdown(
    points: Sequence[StepMetrics], began_unix_s: float, ended_unix_s: float
) -> dict[str, float]:
    """Where a run's time went, as fields of a OrchestrationRecord."""
    steps = [point.values["seconds_per_outer_step"] for point in points]
    validations = [point.values.get("seconds_per_validation", 0.0) for point in points]
    first_unix_s = points[0].unix_s - steps[0] - validations[0]
    steady = points[-1].unix_s - first_unix_s
    return {
        "startup_s": first_unix_s - began_unix_s,
        "steady_s": steady,
        "steps_s": sum(steps),
        "validations_s": sum(validations),
        "between_s": steady - sum(steps) - sum(validations),
        "total_s": ended_unix_s - began_unix_s,
    }


def check_agreement(a: DistilledData, b: DistilledData, tolerance: float) -> None:
    """Raises: RunError if two distilled sets differ by more than the tolerance, relative to their norm."""
    for what, x, y in zip(("images", "labels"), a, b, strict=True):
        difference = float((x - y).norm() / x.norm())
        if not difference <= tolerance:
            raise RunError(
                f"the runs do not agree: their distilled {what} differ by {difference:.1e} of their norm, and at most "
                f"{tolerance:g} is allowed; so their times cannot be compared"
            )


def ratio(records: Iterable[OrchestrationRecord], ways: tuple[Variant, Variant]) -> Ratio:
    """The seconds of the second way's steady state in those of the first."""
    first, second = (
        [r.steady_s for r in records if (r.route, r.workers) == way] for way in (ways[0], ways[1])
    )
    return Ratio(sum(second) / sum(first), [b / a for a, b in zip(first, second, strict=True)])


def machine_info() -> dict[str, str | int | float]:
    """What the runs are measured on, and how busy it was before."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "load_1m_before": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def package_versions() -> dict[str, str]:
    """Versions of what does the work."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "ray", "mlflow")
    }
