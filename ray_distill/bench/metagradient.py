"""Benchmark of the metagradient: time, memory and error of each engine on one workload, each in its own process.

Also runs where only torch is installed (`python -m ray_distill.bench.metagradient --help`); only the engines
named after `higher` need that package.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ray_distill.bench.harness import NUM_CLASSES, report, run_standalone
from ray_distill.bench.problems import (
    ENGINES,
    EngineSpec,
    MetagradientWorkload,
    configure_process,
    metagradient_workloads,
    parser,
    problem,
)
from ray_distill.core.distilled import DistilledData
from ray_distill.core.metagradient import Engine, Metagradient, adjoint_metagradient
from ray_distill.core.step_functions import StepFunctions
from ray_distill.core.truncation import Window
from ray_distill.utils.memory import peak_bytes
from ray_distill.utils.timing import call_in_subprocess, median_seconds

ERROR_WINDOW = Window(10, 3)
"""The window in which engines are compared with float64. It skips the first steps, where Adam is close to a sign
function and float32 is off by percents in any engine."""

DEFAULT_ENGINES = {
    "cpu": ("higher", "eager-whole", "eager", "replay", "compiled", "compiled-forward"),
    "cuda": (
        "higher",
        "higher-tf32",
        "eager",
        "compiled",
        "compiled-forward",
        "compiled-tf32",
        "compiled-bf16",
        "float64",
    ),
}


def prepare(work: MetagradientWorkload, spec: EngineSpec) -> Callable[[Window], Metagradient]:
    """The engine on the workload's problem, as a function of the window."""
    steps = max(work.burn_in + work.window_length, ERROR_WINDOW.end)
    inner, data, (draws,), (real,) = problem(work, spec, steps)
    engine: Engine = adjoint_metagradient
    if spec.higher:
        from ray_distill.core.higher_reference import higher_metagradient

        engine = higher_metagradient
    return lambda window: engine(inner, data, draws, window, real)


def matmul_flops_per_second(work: MetagradientWorkload, spec: EngineSpec) -> float:
    """The best rate of five square matrix products in the engine's type: what the fraction is relative to."""
    size = 8192 if work.device == "cuda" else 1536
    dtype = spec.autocast or spec.dtype
    a = torch.randn(size, size, device=work.device).to(dtype)
    a @ a
    return 2.0 * size**3 / min(median_seconds(work.device, lambda: a @ a, repeats=1)[0] for _ in range(5))


def flops_per_window_step(work: MetagradientWorkload) -> int:
    """The minimum FLOPs of a window step: three times those of its inner gradient, as counted by torch.

    One for the gradient, two for differentiating each of its products with respect to both factors. Recomputed
    activations are not counted: they show as a lower fraction.
    """
    network = work.build()
    theta_P = torch.zeros(network.num_parameters)
    data = DistilledData(torch.zeros(NUM_CLASSES, *work.image_shape), torch.eye(NUM_CLASSES))
    with FlopCounterMode(display=False) as counter:
        StepFunctions(network).gradient(theta_P, data)
    return 3 * work.ipc * int(counter.get_total_flops())


def measure(work: MetagradientWorkload, name: str) -> tuple[dict[str, Any], torch.Tensor]:
    """Measure one engine in this process. Returns: its record without the error, and its metagradient of ERROR_WINDOW."""
    spec = ENGINES[name]
    configure_process(work, spec)
    rate = matmul_flops_per_second(work, spec)
    cuda = work.device == "cuda"
    before = peak_bytes(cuda)
    run, length, burn_in = prepare(work, spec), work.window_length, work.burn_in
    start = time.perf_counter()
    gradient = run(ERROR_WINDOW).grad.images_NCHW.double().cpu()
    first_call = time.perf_counter() - start
    windows = (Window(0, 1), Window(0, length), Window(burn_in, 1), Window(burn_in, length))
    one_step, window, burn_in_and_step, outer = median_seconds(
        work.device, *((lambda w=w: run(w)) for w in windows), repeats=work.repeats
    )
    per_window_step = (window - one_step) / (length - 1)
    record = {
        "engine": name,
        "note": spec.note,
        **work.record(),
        "seconds_first_call": first_call,
        "seconds_per_window_step": per_window_step,
        "seconds_per_inner_step": (burn_in_and_step - one_step) / burn_in if burn_in else None,
        "seconds_per_outer_step": outer,
        "peak_bytes": peak_bytes(cuda),
        "bytes_before": before,
        "matmul_flops_per_second": rate,
        "fraction_of_matmul_rate": flops_per_window_step(work) / per_window_step / rate,
    }
    return record, gradient


def _reference(work: MetagradientWorkload) -> torch.Tensor:
    configure_process(work, ENGINES["float64"])
    return prepare(work, ENGINES["float64"])(ERROR_WINDOW).grad.images_NCHW.cpu()


def bench(work: MetagradientWorkload, engines: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The record of each engine in turn, measured in its own process."""
    reference = call_in_subprocess(_reference, work)
    for name in engines:
        record, gradient = call_in_subprocess(measure, work, name)
        record["relative_error_float64"] = float((gradient - reference).norm() / reference.norm())
        yield record


_ROW = "{:<18} {:>4} {:>9} {:>9} {:>9} {:>8} {:>8} {:>9} {:>8}"
HEADER = _ROW.format("engine", "ipc", "ms/window", "ms/inner", "s/outer", "1st s", "GB", "of matmul", "error")
NOTES = (
    "ms/window: a window step, forward and backward; ms/inner: a burn-in step; 1st s: the first call, including",
    "compilation; GB: peak memory; error: relative to float64, in a window of 3 steps after 10",
)


def row(record: dict[str, Any]) -> str:
    """A row of the table."""
    inner = record["seconds_per_inner_step"]
    return _ROW.format(
        record["engine"],
        record["ipc"],
        f"{1e3 * record['seconds_per_window_step']:.1f}",
        "-" if inner is None else f"{1e3 * inner:.1f}",
        f"{record['seconds_per_outer_step']:.2f}",
        f"{record['seconds_first_call']:.1f}",
        f"{record['peak_bytes'] / 1e9:.2f}",
        f"{record['fraction_of_matmul_rate']:.0%}",
        f"{record['relative_error_float64']:.1e}",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command. Raises: UserError for an invalid argument, or an output file that exists."""
    description = "The metagradient by each engine on the same workload, each in its own process."
    options = parser("metagradient", description, ipc=[1, 10], window=20, unroll=40)
    options.add_argument("--engines", nargs="+", choices=list(ENGINES), metavar="ENGINE")
    parsed = options.parse_args(arguments)
    todo = metagradient_workloads(parsed)
    records = (
        record for work in todo for record in bench(work, parsed.engines or DEFAULT_ENGINES[work.device])
    )
    report(HEADER, row, records, parsed.json, NOTES)


if __name__ == "__main__":
    run_standalone(main)
