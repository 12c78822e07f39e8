"""The metagradient by each engine on the same work, each in a process of its own: time, memory, error.

Runs alone too, where there is only torch (`python -m ray_distill.bench.metagradient --help`): it imports
`core` and the standard library, and `higher` only for the engines of that name.
"""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ray_distill.bench.harness import report, run_standalone
from ray_distill.bench.problems import (
    ENGINES,
    NUM_CLASSES,
    EngineSpec,
    MetagradientWork,
    configure_process,
    parser,
    problem,
    works,
)
from ray_distill.core.distilled import DistilledData
from ray_distill.core.metagradient import Engine, Metagradient, adjoint_metagradient
from ray_distill.core.step_functions import StepFunctions
from ray_distill.core.truncation import Window
from ray_distill.utils.memory import peak_bytes
from ray_distill.utils.timing import call_in_subprocess, median_seconds

ERROR_WINDOW = Window(10, 3)
"""Where engines are compared with float64: past the first steps, where Adam is close to a sign function and
float32 is off by percents in any engine."""

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


def prepare(work: MetagradientWork, spec: EngineSpec) -> Callable[[Window], Metagradient]:
    """The engine on the work's problem: a function of the window alone."""
    steps = max(work.burn_in + work.window_length, ERROR_WINDOW.end)
    inner, data, (draws,), (real,) = problem(work, spec, steps)
    engine: Engine = adjoint_metagradient
    if spec.higher:
        from ray_distill.core.higher_reference import higher_metagradient

        engine = higher_metagradient
    return lambda window: engine(inner, data, draws, window, real)


def matmul_flops_per_second(work: MetagradientWork, spec: EngineSpec) -> float:
    """The best of a few square matrix products in the engine's type: the rate that the fraction refers to."""
    size = 8192 if work.device == "cuda" else 1536
    dtype = spec.autocast or spec.dtype
    a = torch.randn(size, size, device=work.device).to(dtype)
    a @ a
    return 2.0 * size**3 / min(median_seconds(work.device, lambda: a @ a, repeats=1)[0] for _ in range(5))


def flops_per_window_step(work: MetagradientWork) -> int:
    """The least that a window step needs: three times its inner gradient, whose products torch counts.

    One for the gradient, two for differentiating each of its products in both factors. What an engine
    computes twice, because it keeps no activations, is not counted: it shows as a lower fraction.
    """
    network = work.build()
    theta_P = torch.zeros(network.num_parameters)
    data = DistilledData(torch.zeros(NUM_CLASSES, *work.image_shape), torch.eye(NUM_CLASSES))
    with FlopCounterMode(display=False) as counter:
        StepFunctions(network).gradient(theta_P, data)
    return 3 * work.ipc * int(counter.get_total_flops())


def measure(work: MetagradientWork, name: str) -> tuple[dict[str, Any], torch.Tensor]:
    """One engine, in this process: its record without the error, and its metagradient of ERROR_WINDOW."""
    spec = ENGINES[name]
    configure_process(work, spec)
    rate = matmul_flops_per_second(work, spec)
    cuda = work.device == "cuda"
    before = peak_bytes(cuda)
    run, length, burn_in = prepare(work, spec), work.window_length, work.burn_in
    began = time.perf_counter()
    gradient = run(ERROR_WINDOW).grad.images_NCHW.double().cpu()
    first = time.perf_counter() - began
    windows = (Window(0, 1), Window(0, length), Window(burn_in, 1), Window(burn_in, length))
    one, whole, later, outer = median_seconds(
        work.device, *((lambda w=w: run(w)) for w in windows), repeats=work.repeats
    )
    per_window_step = (whole - one) / (length - 1)
    record = {
        "engine": name,
        "note": spec.note,
        **work.record(),
        "seconds_first_call": first,
        "seconds_per_window_step": per_window_step,
        "seconds_per_inner_step": (later - one) / burn_in if burn_in else None,
        "seconds_per_outer_step": outer,
        "peak_bytes": peak_bytes(cuda),
        "bytes_before": before,
        "matmul_flops_per_second": rate,
        "fraction_of_matmul_rate": flops_per_window_step(work) / per_window_step / rate,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    return record, gradient


def _reference(work: MetagradientWork) -> torch.Tensor:
    configure_process(work, ENGINES["float64"])
    return prepare(work, ENGINES["float64"])(ERROR_WINDOW).grad.images_NCHW.cpu()


def bench(work: MetagradientWork, engines: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The record of every engine in turn, each from its own process."""
    reference = call_in_subprocess(_reference, work)
    for name in engines:
        record, gradient = call_in_subprocess(measure, work, name)
        record["relative_error_float64"] = float((gradient - reference).norm() / reference.norm())
        yield record


_ROW = "{:<18} {:>4} {:>9} {:>9} {:>9} {:>8} {:>8} {:>9} {:>8}"
HEADER = _ROW.format("engine", "ipc", "ms/window", "ms/inner", "s/outer", "1st s", "GB", "of matmul", "error")
NOTES = (
    "ms/window: a step of the window, there and back; ms/inner: a step of the burn-in; 1st s: the first call,",
    "compiling included; GB: peak; error: against float64, relative, in a window of 3 steps after 10",
)


def row(record: dict[str, Any]) -> str:
    """One line of the table."""
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
    """The command. Raises: MistakeError for arguments that do not go together, or a file that exists."""
    about = "The metagradient by each engine on the same work, each in a process of its own."
    own = parser("metagradient", about, ipc=[1, 10], window=20, unroll=40)
    own.add_argument("--engines", nargs="+", choices=list(ENGINES), metavar="ENGINE")
    parsed = own.parse_args(arguments)
    todo = works(parsed)
    measured = (
        record for work in todo for record in bench(work, parsed.engines or DEFAULT_ENGINES[work.device])
    )
    report(HEADER, row, measured, parsed.json, NOTES)


if __name__ == "__main__":
    run_standalone(main)
