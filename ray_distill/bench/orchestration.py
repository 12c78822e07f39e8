"""Benchmarks of the orchestration: the steady state of one experiment, run in two variants.

`overhead`: the bare outer loop in one process against Ray Train with one worker, checkpoints and MLflow.
`workers`: Ray Train with one worker against two, with one core each.

The steady state lasts from the start of the first outer step to the end of the last, including the validations,
reports and checkpoints in between, but neither the start-up nor the last report. The variants alternate, so that a
slowdown of the machine affects both, and must produce the same distilled set, otherwise the benchmark fails.
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
from ray_distill.utils.timing import device_name

CALIBRATION_STEPS = 8
"""Outer steps of the bare run that measures how many fill the requested seconds; the first is not counted."""

SUMMATION_TOLERANCE = 1e-3
"""Allowed relative difference in D when float32 sums over replicas are taken in another order."""


class Variant(NamedTuple):
    """A way to run an experiment."""

    route: str
    """`bare` or `ray`."""
    workers: int


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Two variants of one experiment to compare."""

    name: str
    variants: tuple[Variant, Variant]
    default_overrides: tuple[str, ...]
    """Overrides of the demo's config that make the built-in experiment."""
    tolerance: float
    """Allowed relative difference in D between the two."""


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
    tolerance=SUMMATION_TOLERANCE,
)


@dataclass(frozen=True, kw_only=True)
class OrchestrationRecord:
    """One measured run."""

    benchmark: str
    route: str
    workers: int
    repeat: int
    """From 1; the runs of one repeat are consecutive."""
    config_hash: str
    outer_steps: int
    replicas: int
    startup_s: float
    """From the start of the process to that of the first outer step: imports, data, Ray, MLflow."""
    steady_s: float
    """From the start of the first outer step to the end of the last."""
    steps_s: float
    """Outer steps in the steady state."""
    validations_s: float
    """Validations in the steady state."""
    between_s: float
    """The rest of the steady state: reports and checkpoints that the training waits for."""
    total_s: float
    """From the start of the process to its end."""
    machine: dict[str, str | int | float]
    versions: dict[str, str]

    @property
    def replicas_per_second(self) -> float:
        """Replica metagradients per second of the steady state."""
        return self.replicas * self.outer_steps / self.steady_s


class Ratio(NamedTuple):
    """How much longer the second variant took than the first."""

    overall: float
    """From the total seconds of all repeats."""
    pairs: list[float]
    """Of each repeat; their spread is the noise of the machine."""


def benchmark_config(benchmark: Benchmark, file: Path | None, overrides: Sequence[str]) -> Config:
    """The config in the file, or the built-in one, with overrides, for one worker with one core.

    Raises: UserError for a config that cannot be run, or an override without effect.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key == "outer.steps" or key.partition(".")[0] in ("cluster", "evaluation"):
            raise UserError(
                f"--set {override}: has no effect: outer.steps follow from --seconds, the benchmark sets "
                "the cluster, and nothing is evaluated; remove it"
            )
    with as_file(files("ray_distill") / "demo.yaml") as demo:
        defaults = () if file else benchmark.default_overrides
        config = load_config(file or demo, [*defaults, *overrides, "cluster={}"])
    workers = max(variant.workers for variant in benchmark.variants)
    if config.replicas % workers:
        raise UserError(f"replicas: must be a multiple of {workers}, the workers (got {config.replicas})")
    cores = os.cpu_count() or 1
    if cores < workers:
        raise UserError(f"bench {benchmark.name}: needs {workers} cores; this machine has {cores}")
    return config


def run_benchmark(
    benchmark: Benchmark, config: Config, seconds: float, repeats: int, update: Update
) -> list[OrchestrationRecord]:
    """Run both variants in alternation, `repeats` times.

    Args:
        seconds: the target duration of the bare loop's steady state; a short calibration run converts it into a
            number of outer steps.
        update: called before each of the 1 + 2 * repeats runs.

    Raises: UserError; RunError if a run fails or the two do not produce the same distilled set.
    """
    machine, versions = machine_info(), package_versions()
    records: list[OrchestrationRecord] = []
    first: MeasuredRun | None = None
    # Short, since Ray puts its sockets here, and their paths are limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="rd-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        update(0, "calibrating")
        short = _override(config, f"outer.steps={CALIBRATION_STEPS}")
        calibration = run_measured("bare", short, Path(folder) / "0")
        steps = steps_for(seconds, calibration.points, config.validation.every)
        for repeat in range(1, repeats + 1):
            for variant in benchmark.variants:
                update(1 + len(records), f"{variant.route}, {variant.workers} worker(s), {steps} outer steps")
                variant_config = _override(
                    config, f"outer.steps={steps}", f"cluster.num_workers={variant.workers}"
                )
                run = run_measured(variant.route, variant_config, Path(folder) / str(1 + len(records)))
                first = first or run
                check_agreement(first.data, run.data, benchmark.tolerance)
                records.append(
                    OrchestrationRecord(
                        benchmark=benchmark.name,
                        route=variant.route,
                        workers=variant.workers,
                        repeat=repeat,
                        config_hash=variant_config.hash,
                        outer_steps=steps,
                        replicas=variant_config.replicas,
                        **time_breakdown(run.points, run.started_unix_s, run.ended_unix_s),
                        machine=machine,
                        versions=versions,
                    )
                )
        update(1 + len(records), "done")
    return records


def _override(config: Config, *overrides: str) -> Config:
    return parse_config(apply_overrides(config.to_dict(), overrides))


def steps_for(seconds: float, points: Sequence[StepMetrics], validate_every: int) -> int:
    """The number of outer steps, with their share of validations, that take `seconds`; at least 2.

    Args:
        points: the metrics of a short run that ends with a validation; its first step is not counted.
    """
    steps = [point.values["seconds_per_outer_step"] for point in points[1:]]
    validation = points[-1].values["seconds_per_validation"] / validate_every
    return max(2, round(seconds / (sum(steps) / len(steps) + validation)))


def time_breakdown(
    points: Sequence[StepMetrics], started_unix_s: float, ended_unix_s: float
) -> dict[str, float]:
    """Break down a run's time into fields of an OrchestrationRecord."""
    steps = [point.values["seconds_per_outer_step"] for point in points]
    validations = [point.values.get("seconds_per_validation", 0.0) for point in points]
    first_unix_s = points[0].unix_s - steps[0] - validations[0]
    steady = points[-1].unix_s - first_unix_s
    return {
        "startup_s": first_unix_s - started_unix_s,
        "steady_s": steady,
        "steps_s": sum(steps),
        "validations_s": sum(validations),
        "between_s": steady - sum(steps) - sum(validations),
        "total_s": ended_unix_s - started_unix_s,
    }


def check_agreement(a: DistilledData, b: DistilledData, tolerance: float) -> None:
    """Raises: RunError if two distilled sets differ by more than the tolerance, relative to their norm."""
    for part, x, y in zip(("images", "labels"), a, b, strict=True):
        difference = float((x - y).norm() / x.norm())
        if not difference <= tolerance:
            raise RunError(
                f"cannot compare the times: the runs' distilled {part} differ by {difference:.1e} of their norm; at most "
                f"{tolerance:g} is allowed"
            )


def ratio(records: Iterable[OrchestrationRecord], variants: tuple[Variant, Variant]) -> Ratio:
    """Steady-state seconds of the second variant divided by those of the first."""
    first, second = ([r.steady_s for r in records if (r.route, r.workers) == variant] for variant in variants)
    return Ratio(sum(second) / sum(first), [b / a for a, b in zip(first, second, strict=True)])


def machine_info() -> dict[str, str | int | float]:
    """The machine and its load before the runs."""
    return {
        "system": platform.platform(),
        "processor": device_name("cpu"),
        "cores": os.cpu_count() or 1,
        "load_1m_before": round(os.getloadavg()[0], 2),
    }


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect the times."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("torch", "ray", "mlflow")
    }
