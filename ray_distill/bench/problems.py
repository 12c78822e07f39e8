"""The problem, the engines and the arguments of the metagradient benchmarks; needs only torch."""

import argparse
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from ray_distill.bench.harness import NUM_CLASSES, Workload, base_parser, workloads
from ray_distill.core.distilled import DistilledData, class_labels, noise, one_hot, unit_noise
from ray_distill.core.inner_optimizer import Adam
from ray_distill.core.microbatches import microbatch_size
from ray_distill.core.rng import Stream
from ray_distill.core.step_functions import StepFunctions
from ray_distill.core.unroll import InnerDraws, InnerProblem, draw_inner
from ray_distill.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """One way to compute the metagradient."""

    note: str
    higher: bool = False
    product_form: str = "reverse"
    microbatches: bool = True
    """Whether batches are split into microbatches that fit into the cache."""
    compiled: bool = False
    cuda_graphs: bool = False
    replay: bool = False
    """Whether a window is replayed in segments of about the square root of its length."""
    dtype: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    tf32: bool = False


_COMPILED = EngineSpec(
    note="compiled, forward over reverse", compiled=True, cuda_graphs=True, product_form="forward"
)
ENGINES: dict[str, EngineSpec] = {
    "higher": EngineSpec(note="tape through the window, by `higher`", higher=True, microbatches=False),
    "eager-whole": EngineSpec(note="reverse over reverse, whole batch at once", microbatches=False),
    "eager": EngineSpec(note="reverse over reverse"),
    "eager-forward": EngineSpec(note="forward over reverse", product_form="forward"),
    "replay": EngineSpec(note="as eager, window replayed in segments", replay=True),
    "compiled": replace(_COMPILED, note="compiled, reverse over reverse", product_form="reverse"),
    "compiled-forward": _COMPILED,
    "float64": EngineSpec(note="as eager, in float64", dtype=torch.float64),
    "higher-tf32": EngineSpec(note="`higher`, TF32", higher=True, microbatches=False, tf32=True),
    "compiled-tf32": replace(
        _COMPILED, note="compiled, reverse over reverse, TF32", tf32=True, product_form="reverse"
    ),
    "eager-bf16": EngineSpec(note="as eager, networks under autocast to bf16", autocast=torch.bfloat16),
    "compiled-bf16": replace(
        _COMPILED,
        note="compiled, reverse over reverse, bf16",
        autocast=torch.bfloat16,
        product_form="reverse",
    ),
}


@dataclass(frozen=True, kw_only=True)
class MetagradientWorkload(Workload):
    """The outer step that a benchmark measures."""

    window_length: int
    unroll_length: int
    outer_batch_size: int

    @property
    def burn_in(self) -> int:
        """The mean burn-in of RaT-BPTT: half of what the window leaves of the unroll."""
        return (self.unroll_length - self.window_length) // 2

    def record(self) -> dict[str, Any]:
        """The workload with its burn-in."""
        return super().record() | {"burn_in": self.burn_in}


class Problem(NamedTuple):
    """The metagradient's arguments for several replicas; each replica's do not depend on how many there are."""

    inner: InnerProblem
    data: DistilledData
    draws: list[InnerDraws]
    real: list[DistilledData]


def problem(
    work: MetagradientWorkload, spec: EngineSpec, inner_steps: int, replicas: int = 1, group_size: int = 1
) -> Problem:
    """The workload's problem: D and the real images are noise.

    Args:
        inner_steps: number of inner steps to draw batches for.
        group_size: number of replicas computed together, which determines the microbatch size.
    """
    device, dtype, network = torch.device(work.device), spec.dtype, work.build()
    batch = NUM_CLASSES * work.ipc
    size = (
        microbatch_size(network, work.image_shape, batch, dtype, device, group_size)
        if spec.microbatches
        else None
    )
    functions = StepFunctions(
        network,
        product_form=spec.product_form,
        images_per_pass=size,
        compiled=spec.compiled,
        cuda_graphs=spec.cuda_graphs and work.device == "cuda",
        autocast=spec.autocast,
    )
    inner = InnerProblem(
        functions=functions,
        optimizer=Adam(lr=1e-3),
        inner_batch_per_class=work.ipc,
        max_states=2 * round(work.window_length**0.5) + 1 if spec.replay else None,
    )

    def stream(name: str, replica: int = 0) -> Stream:
        return Stream(seed=0, name=name, replica=replica, device=device)

    def labelled(images_NCHW: torch.Tensor, labels_N: torch.Tensor) -> DistilledData:
        return DistilledData(images_NCHW, one_hot(labels_N, NUM_CLASSES, dtype))

    images = unit_noise(stream("distilled"), batch, work.image_shape, dtype)
    data = labelled(images, class_labels(NUM_CLASSES, work.ipc, device))
    draws = [draw_inner(inner, 0, 0, r, inner_steps, data) for r in range(replicas)]
    count = work.outer_batch_size
    real_labels = torch.arange(count, device=device) % NUM_CLASSES
    real = [
        labelled(noise(stream("real", r), count, work.image_shape, dtype), real_labels)
        for r in range(replicas)
    ]
    return Problem(inner, data, draws, real)


def configure_process(work: MetagradientWorkload, spec: EngineSpec) -> None:
    """Set this process's threads and TF32 for the workload and the engine."""
    torch.set_num_threads(work.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = spec.tf32


def parser(
    name: str, description: str, *, ipc: list[int], window: int, unroll: int
) -> argparse.ArgumentParser:
    """A parser with the shared arguments and those of the metagradient."""
    engines = "engines: " + "; ".join(f"{engine} ({spec.note})" for engine, spec in ENGINES.items())
    result = base_parser(name, description, ipc=ipc, epilog=engines)
    result.add_argument(
        "--window",
        type=int,
        default=window,
        help="differentiated inner steps, at least 2 (default %(default)s)",
    )
    result.add_argument(
        "--unroll", type=int, default=unroll, help="inner steps of a whole unroll (default %(default)s)"
    )
    result.add_argument(
        "--outer-batch", type=int, default=500, help="real images of the outer loss (default %(default)s)"
    )
    result.add_argument("--network", default="convnet3", help="a family and a depth (default %(default)s)")
    return result


def metagradient_workloads(parsed: argparse.Namespace, *numbers: str) -> list[MetagradientWorkload]:
    """A workload for each --ipc; `numbers` are further options that must be at least 1.

    Raises: UserError for an invalid argument, an unknown network, or an output file that exists.
    """
    if not 2 <= parsed.window <= parsed.unroll:
        raise UserError(
            f"--window: must be from 2 to --unroll, which is {parsed.unroll} (got {parsed.window})"
        )
    return workloads(
        MetagradientWorkload,
        parsed,
        "network",
        ["outer_batch", *numbers],
        window_length=parsed.window,
        unroll_length=parsed.unroll,
        outer_batch_size=parsed.outer_batch,
    )
