"""The problem, the engines and the arguments of the metagradient benchmarks. Needs only torch."""

import argparse
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from ray_distill.bench import harness
from ray_distill.core.distilled import DistilledData, class_labels, noise, one_hot, unit_noise
from ray_distill.core.inner_optimizer import Adam
from ray_distill.core.microbatches import microbatch_size
from ray_distill.core.networks.network import ImageShape, Network, NetworkSpec, build_network
from ray_distill.core.rng import Stream
from ray_distill.core.step_functions import StepFunctions
from ray_distill.core.unroll import InnerDraws, InnerProblem, draw_inner
from ray_distill.errors import UserError
from ray_distill.utils.timing import device_name

NUM_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """One way to compute the metagradient."""

    note: str
    higher: bool = False
    product_form: str = "reverse"
    passes: bool = True
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
    "eager-bf16": EngineSpec(note="as eager, networks under autocast to bf16", autocast=torch.bfloat16),
    "compiled-bf16": replace(
        _COMPILED,
        note="compiled, reverse over reverse, bf16",
        autocast=torch.bfloat16,
        product_form="reverse",
    ),
}


@dataclass(frozen=True, kw_only=True)
class MetagradientWork:
    """The work that a benchmark measures."""

    device: str
    image_shape: ImageShape
    ipc: int
    window_length: int
    unroll_length: int
    outer_batch_size: int
    network: str
    width: int
    threads: int
    repeats: int

    @property
    def burn_in(self) -> int:
        """The mean burn-in of RaT-BPTT: half of what the window leaves of the unroll."""
        return (self.unroll_length - self.window_length) // 2

    def build(self) -> Network:
        """The network. Raises: ValueError if there is no such network."""
        return build_network(NetworkSpec(name=self.network, width=self.width), self.image_shape, NUM_CLASSES)

    def record(self) -> dict[str, Any]:
        """The work as fields of a record."""
        return {
            "device": device_name(self.device),
            "image_shape": list(self.image_shape),
            "ipc": self.ipc,
            "window_length": self.window_length,
            "unroll_length": self.unroll_length,
            "burn_in": self.burn_in,
            "outer_batch_size": self.outer_batch_size,
            "network": f"{self.network} width {self.width}",
            "threads": self.threads,
            "repeats": self.repeats,
        }


class Problem(NamedTuple):
    """The metagradient's arguments for several replicas; a replica's do not depend on their number."""

    inner: InnerProblem
    data: DistilledData
    draws: list[InnerDraws]
    real: list[DistilledData]


def problem(
    work: MetagradientWork, spec: EngineSpec, inner_steps: int, replicas: int = 1, at_once: int = 1
) -> Problem:
    """The work's problem: D and real images are noise.

    Args:
        inner_steps: how many there are draws for.
        at_once: replicas that are computed together, which determines the microbatch size.
    """
    device, dtype, network = torch.device(work.device), spec.dtype, work.build()
    batch = NUM_CLASSES * work.ipc
    size = microbatch_size(network, work.image_shape, batch, dtype, device, at_once) if spec.passes else None
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


def configure_process(work: MetagradientWork, spec: EngineSpec) -> None:
    """Set this process's threads and TF32 for the work and the engine."""
    torch.set_num_threads(work.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = spec.tf32


def parser(name: str, about: str, *, ipc: list[int], window: int, unroll: int) -> argparse.ArgumentParser:
    """A parser with the arguments that describe the work, besides the common ones."""
    engines = "engines: " + "; ".join(f"{engine} ({spec.note})" for engine, spec in ENGINES.items())
    result = harness.base_parser(name, about, ipc=ipc, epilog=engines)
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


def works(arguments: argparse.Namespace) -> list[MetagradientWork]:
    """One work for each --ipc. Raises: UserError for arguments that do not go together, or a file that exists."""
    a = arguments
    if not 2 <= a.window <= a.unroll:
        raise UserError(f"--window: must be from 2 to --unroll, which is {a.unroll} (got {a.window})")
    shape = harness.check_arguments(a, "outer_batch")
    result = [
        MetagradientWork(
            device=a.device,
            image_shape=shape,
            ipc=ipc,
            window_length=a.window,
            unroll_length=a.unroll,
            outer_batch_size=a.outer_batch,
            network=a.network,
            width=a.width,
            threads=a.threads,
            repeats=a.repeats,
        )
        for ipc in a.ipc
    ]
    try:
        result[0].build()
    except ValueError as e:
        raise UserError(f"--network: {e}") from None
    return result
