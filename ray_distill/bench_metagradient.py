"""The metagradient by each engine on the same work, each in a process of its own: time, memory, error.

Runs alone too, where there is only torch (`python -m ray_distill.bench_metagradient --help`): it imports
`core` and the standard library, and `higher` only for the engines of that name.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ray_distill.core.distilled import DistilledData, class_labels, noise, one_hot, unit_noise
from ray_distill.core.inner_optimizer import Adam
from ray_distill.core.metagradient import Engine, Metagradient, adjoint_metagradient
from ray_distill.core.networks import Network, NetworkSpec, build_network
from ray_distill.core.rng import Stream
from ray_distill.core.step_functions import StepFunctions, images_per_pass
from ray_distill.core.truncation import Window
from ray_distill.core.unroll import InnerProblem, draw_inner
from ray_distill.errors import MistakeError

IMAGE_SHAPE, NUM_CLASSES = (3, 32, 32), 10


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """One way to compute the metagradient."""

    note: str
    higher: bool = False
    product_form: str = "reverse"
    passes: bool = True
    """Whether a batch is cut into passes that the cache holds."""
    compiled: bool = False
    cuda_graphs: bool = False
    replay: bool = False
    """Whether a window is replayed in segments of about its square root."""
    dtype: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    tf32: bool = False


_COMPILED = EngineSpec(
    note="compiled, forward over reverse", compiled=True, cuda_graphs=True, product_form="forward"
)
ENGINES: dict[str, EngineSpec] = {
    "higher": EngineSpec(note="tape through the window, by `higher`", higher=True, passes=False),
    "eager-whole": EngineSpec(note="reverse over reverse, whole batch at once", passes=False),
    "eager": EngineSpec(note="reverse over reverse"),
    "eager-forward": EngineSpec(note="forward over reverse", product_form="forward"),
    "replay": EngineSpec(note="as eager, window replayed in segments", replay=True),
    "compiled": replace(_COMPILED, note="compiled, reverse over reverse", product_form="reverse"),
    "compiled-forward": _COMPILED,
    "float64": EngineSpec(note="as eager, in float64", dtype=torch.float64),
    "higher-tf32": EngineSpec(note="`higher`, TF32", higher=True, passes=False, tf32=True),
    "compiled-tf32": replace(
        _COMPILED, note="compiled, reverse over reverse, TF32", tf32=True, product_form="reverse"
    ),
    "compiled-bf16": replace(
        _COMPILED,
        note="compiled, reverse over reverse, bf16",
        autocast=torch.bfloat16,
        product_form="reverse",
    ),
}
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


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every engine of a bench does."""

    device: str
    ipc: int
    window_length: int
    unroll_length: int
    outer_batch_size: int
    network: str
    width: int
    threads: int
    repeats: int
    error_window: int

    @property
    def burn_in(self) -> int:
        """The mean burn-in of RaT-BPTT: half of what the window leaves of the unroll."""
        return (self.unroll_length - self.window_length) // 2


def _network(work: Work) -> Network:
    norm = "instance" if work.network.startswith("convnet") else "none"
    spec = NetworkSpec(name=work.network, width=work.width, norm=norm)
    return build_network(spec, IMAGE_SHAPE, NUM_CLASSES)


def prepare(work: Work, spec: EngineSpec) -> Callable[[Window], Metagradient]:
    """The engine on the work's problem: a function of the window alone."""
    device, dtype, network = torch.device(work.device), spec.dtype, _network(work)
    batch = NUM_CLASSES * work.ipc
    size = images_per_pass(network, IMAGE_SHAPE, batch, dtype, device) if spec.passes else None
    functions = StepFunctions(
        network,
        product_form=spec.product_form,
        images_per_pass=size,
        compiled=spec.compiled,
        cuda_graphs=spec.cuda_graphs and work.device == "cuda",
        autocast=spec.autocast,
    )
    most_states = 2 * round(work.window_length**0.5) + 1 if spec.replay else None
    problem = InnerProblem(
        functions=functions,
        optimizer=Adam(lr=1e-3),
        inner_batch_per_class=work.ipc,
        most_states=most_states,
    )

    def stream(name: str) -> Stream:
        return Stream(seed=0, name=name, device=device)

    labels = class_labels(NUM_CLASSES, work.ipc, device)
    images = unit_noise(stream("distilled"), batch, IMAGE_SHAPE, dtype)
    data = DistilledData(images, one_hot(labels, NUM_CLASSES, dtype))
    real_labels = torch.arange(work.outer_batch_size, device=device) % NUM_CLASSES
    real_images = noise(stream("real"), work.outer_batch_size, IMAGE_SHAPE, dtype)
    real = DistilledData(real_images, one_hot(real_labels, NUM_CLASSES, dtype))
    steps = max(work.burn_in + work.window_length, 1 + work.error_window)
    draws = draw_inner(problem, 0, 0, 0, steps, data)
    engine: Engine = adjoint_metagradient
    if spec.higher:
        from ray_distill.core.higher_reference import higher_metagradient

        engine = higher_metagradient
    return lambda window: engine(problem, data, draws, window, real)


def _seconds(work: Work, run: Callable[[], object]) -> float:
    """The median time of `repeats` calls."""
    times = []
    for _ in range(work.repeats):
        _wait(work)
        began = time.perf_counter()
        run()
        _wait(work)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _wait(work: Work) -> None:
    if work.device == "cuda":
        torch.cuda.synchronize()


def matmul_flops_per_second(work: Work, spec: EngineSpec) -> float:
    """The best of a few square matrix products in the engine's type: the rate that the fraction refers to."""
    size = 8192 if work.device == "cuda" else 1536
    dtype = spec.autocast or spec.dtype
    a = torch.randn(size, size, device=work.device).to(dtype)
    once = replace(work, repeats=1)
    a @ a
    return 2.0 * size**3 / min(_seconds(once, lambda: a @ a) for _ in range(5))


def flops_per_window_step(work: Work) -> int:
    """The least that a window step needs: three times its inner gradient, whose products torch counts.

    One for the gradient, two for differentiating each of its products in both factors. What an engine
    computes twice, because it keeps no activations, is not counted: it shows as a lower fraction.
    """
    network = _network(work)
    theta_P = torch.zeros(network.num_parameters)
    data = DistilledData(torch.zeros(NUM_CLASSES, *IMAGE_SHAPE), torch.eye(NUM_CLASSES))
    with FlopCounterMode(display=False) as counter:
        StepFunctions(network).gradient(theta_P, data)
    return 3 * work.ipc * int(counter.get_total_flops())


def _peak_bytes(work: Work) -> int:
    if work.device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(work: Work, name: str) -> tuple[dict[str, Any], torch.Tensor]:
    """One engine, in this process: its record without the error, and its metagradient of the error window."""
    spec = ENGINES[name]
    torch.set_num_threads(work.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = spec.tf32
    rate = matmul_flops_per_second(work, spec)
    before = _peak_bytes(work)
    run, length = prepare(work, spec), work.window_length
    began = time.perf_counter()
    gradient = run(Window(1, work.error_window)).grad.images_NCHW.double().cpu()
    first = time.perf_counter() - began
    one = _seconds(work, lambda: run(Window(0, 1)))
    window = _seconds(work, lambda: run(Window(0, length)))
    outer = _seconds(work, lambda: run(Window(work.burn_in, length)))
    per_window_step = (window - one) / (length - 1)
    record = {
        "engine": name,
        "note": spec.note,
        "device": torch.cuda.get_device_name() if work.device == "cuda" else platform.machine(),
        "ipc": work.ipc,
        "window_length": length,
        "unroll_length": work.unroll_length,
        "burn_in": work.burn_in,
        "outer_batch_size": work.outer_batch_size,
        "network": f"{work.network} width {work.width}",
        "threads": work.threads,
        "seconds_first_call": first,
        "seconds_per_window_step": per_window_step,
        "seconds_per_inner_step": (outer - window) / work.burn_in if work.burn_in else None,
        "seconds_per_outer_step": outer,
        "peak_bytes": _peak_bytes(work),
        "bytes_before": before,
        "matmul_flops_per_second": rate,
        "fraction_of_matmul_rate": flops_per_window_step(work) / per_window_step / rate,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    return record, gradient


def _reference(work: Work) -> torch.Tensor:
    torch.set_num_threads(work.threads)
    return prepare(work, ENGINES["float64"])(Window(1, work.error_window)).grad.images_NCHW.cpu()


def _in_own_process(function: Callable[..., Any], *arguments: object) -> Any:
    """The function's result from a fresh process, so that no engine pays for another's memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def bench(
    work: Work, engines: Sequence[str], on_record: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Every engine in turn, each in its own process; `on_record` is called as each is done."""
    reference = _in_own_process(_reference, work)
    records = []
    for name in engines:
        record, gradient = _in_own_process(measure, work, name)
        record["relative_error_float64"] = float((gradient - reference).norm() / reference.norm())
        records.append(record)
        on_record(record)
    return records


_ROW = "{:<18} {:>4} {:>9} {:>9} {:>9} {:>8} {:>8} {:>9} {:>8}"
HEADER = _ROW.format("engine", "ipc", "ms/window", "ms/inner", "s/outer", "1st s", "GB", "of matmul", "error")


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


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ray-distill bench metagradient",
        description="The metagradient by each engine on the same work, each in a process of its own.",
        epilog="engines: " + "; ".join(f"{name} ({spec.note})" for name, spec in ENGINES.items()),
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 10], help="images per class")
    parser.add_argument("--window", type=int, default=20, help="differentiated inner steps (at least 2)")
    parser.add_argument("--unroll", type=int, default=40, help="inner steps of a whole unroll")
    parser.add_argument("--outer-batch", type=int, default=500, help="real images of the outer loss")
    parser.add_argument("--network", default="convnet3", help="a family and a depth")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), metavar="ENGINE")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of one engine")
    parser.add_argument("--repeats", type=int, default=1, help="the median of this many runs is reported")
    parser.add_argument("--error-window", type=int, default=3, help="window of the comparison with float64")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the records there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command. Raises: MistakeError for arguments that do not go together, or a file that exists."""
    a = _arguments(arguments)
    if not 2 <= a.window <= a.unroll:
        raise MistakeError(f"--window: must be from 2 to --unroll, which is {a.unroll} (found {a.window})")
    if min(*a.ipc, a.outer_batch, a.width, a.threads, a.repeats, a.error_window) < 1:
        raise MistakeError("--ipc, --outer-batch, --width, --threads, --repeats, --error-window: at least 1")
    if a.device == "cuda" and not torch.cuda.is_available():
        raise MistakeError("--device cuda: torch sees no GPU here; use --device cpu")
    if a.json is not None and a.json.exists():
        raise MistakeError(f"--json: {a.json} exists already; name another file or remove it")
    print(HEADER, flush=True)
    records = []
    for ipc in a.ipc:
        work = Work(
            device=a.device,
            ipc=ipc,
            window_length=a.window,
            unroll_length=a.unroll,
            outer_batch_size=a.outer_batch,
            network=a.network,
            width=a.width,
            threads=a.threads,
            repeats=a.repeats,
            error_window=a.error_window,
        )
        try:
            _network(work)
        except ValueError as e:
            raise MistakeError(f"--network: {e}") from None
        records += bench(work, a.engines or DEFAULT_ENGINES[a.device], lambda r: print(row(r), flush=True))
        if a.json is not None:
            a.json.write_text(json.dumps(records, indent=1) + "\n")
    if a.json is not None:
        print(f"records: {a.json}")


if __name__ == "__main__":
    try:
        main()
    except MistakeError as e:
        sys.exit(f"{e}")
