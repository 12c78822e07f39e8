"""The loop over outer steps. It knows ranks only as a `World`: one process, or torch.distributed.

The experiment fixes the number of replicas; the world only shares them out. Rank r of w computes the
metagradients of replicas r, r + w, ..; one all-reduce of a tensor of the size of D joins them, and every
rank takes the same outer step. Nothing here knows Ray, MLflow or a configuration.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from ray_distill.core import augment
from ray_distill.core.distilled import DistilledData, one_hot
from ray_distill.core.metagradient import Engine, Metagradient
from ray_distill.core.outer_optimizer import OuterOptimizer
from ray_distill.core.retrain import retrain
from ray_distill.core.rng import Stream
from ray_distill.core.truncation import Truncation, Window
from ray_distill.core.unroll import InnerProblem, draw_inner
from ray_distill.points import Point
from ray_distill.run_state import Best, RunState


class NonFiniteError(ArithmeticError):
    """Too many outer steps in a row had a metagradient with NaN or infinite values."""


class World(Protocol):
    """The processes that share the replicas."""

    @property
    def rank(self) -> int:
        """The place of this process among them, from 0."""

    @property
    def size(self) -> int:
        """How many they are."""

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, on every rank the same; every rank must call it."""


@dataclass(frozen=True)
class OneProcess:
    """A world of this process alone."""

    rank: int = 0
    size: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values


class Distributed:
    """The default process group of torch.distributed."""

    @property
    def rank(self) -> int:
        """The rank of this process."""
        return dist.get_rank()

    @property
    def size(self) -> int:
        """The number of processes."""
        return dist.get_world_size()

    def sum(self, values: Tensor) -> Tensor:
        """All-reduce by sum."""
        total = values.clone()
        dist.all_reduce(total)
        return total


class RealData(NamedTuple):
    """Real images, preprocessed, and their classes."""

    images_NCHW: Tensor
    labels_N: Tensor


@dataclass(frozen=True, kw_only=True)
class Cadence:
    """Every how many outer steps something happens; the same on all ranks."""

    report_every: int
    validate_every: int
    checkpoint_every: int


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How a distilled set is judged during the run, always on data held out of training."""

    num_networks: int
    horizon: int


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """All that determines the numbers of a run, as objects of `core`."""

    seed: int
    outer_steps: int
    replicas: int
    inner: InnerProblem
    truncation: Truncation
    redraw_every: int
    engine: Engine
    outer: OuterOptimizer
    outer_batch_size: int
    real_augmentation: tuple[str, ...]
    max_nonfinite_steps: int
    validation: Validation
    cadence: Cadence


class Report(NamedTuple):
    """What the loop hands out on its cadence; the same on all ranks, up to the seconds."""

    state: RunState
    points: list[Point]
    checkpoint: bool
    """Whether the state is to be kept as a checkpoint."""


def draw_window(experiment: Experiment, outer_step: int) -> Window:
    """The window of an outer step: drawn anew every `redraw_every` steps, with no replica in its key."""
    drawn_at = outer_step - outer_step % experiment.redraw_every
    stream = Stream(seed=experiment.seed, name="window", outer_step=drawn_at)
    return experiment.truncation.draw(stream)


def draw_real_batch(
    experiment: Experiment, train: RealData, num_classes: int, outer_step: int, replica: int
) -> DistilledData:
    """A replica's batch of real training images, without replacement, augmented."""

    def stream(name: str) -> Stream:
        device = train.images_NCHW.device
        return Stream(seed=experiment.seed, name=name, outer_step=outer_step, replica=replica, device=device)

    size, dtype = experiment.outer_batch_size, train.images_NCHW.dtype
    rows = stream("real-batch").permutation(len(train.labels_N))[0, :size]
    names = experiment.real_augmentation
    (drawn,) = augment.draw(
        names, stream("real-augment-choice"), stream("real-augment-magnitude"), range(1), size, dtype
    )
    images = augment.apply(train.images_NCHW[rows], drawn)
    return DistilledData(images, one_hot(train.labels_N[rows], num_classes, dtype))


def replica_metagradient(
    experiment: Experiment,
    train: RealData,
    data: DistilledData,
    window: Window,
    outer_step: int,
    replica: int,
) -> Metagradient:
    """One replica's metagradient: own initialisation, own inner batches, own real batch."""
    draws = draw_inner(experiment.inner, experiment.seed, outer_step, replica, window.end, data)
    real = draw_real_batch(experiment, train, data.labels_NK.shape[1], outer_step, replica)
    return experiment.engine(experiment.inner, data, draws, window, real)


def mean_metagradient(
    experiment: Experiment,
    train: RealData,
    data: DistilledData,
    window: Window,
    outer_step: int,
    world: World,
) -> tuple[Metagradient, Tensor]:
    """The mean over all replicas of all ranks, by one all-reduce; and which replicas were finite.

    Returns: the mean metagradient and outer loss; int64 [replicas], 1 where the replica was finite.
    """
    total = torch.zeros(1 + sum(x.numel() for x in data) + experiment.replicas, dtype=torch.float64)
    total = total.to(data.images_NCHW.device)
    for replica in range(world.rank, experiment.replicas, world.size):
        one = replica_metagradient(experiment, train, data, window, outer_step, replica)
        flat = torch.cat([one.outer_loss.reshape(1), *(x.flatten() for x in one.grad)]).to(total.dtype)
        finite = torch.zeros(experiment.replicas, dtype=total.dtype, device=total.device)
        finite[replica] = flat.isfinite().all().to(total.dtype)
        total += torch.cat([flat, finite])
    total = world.sum(total)
    sizes = [1, *(x.numel() for x in data), experiment.replicas]
    loss, images, labels, finite = total.split(sizes)
    grad = DistilledData(
        *(
            (g / experiment.replicas).to(x.dtype).view_as(x)
            for g, x in zip((images, labels), data, strict=True)
        )
    )
    return Metagradient(grad, loss[0] / experiment.replicas), finite.long()


def outer_step(
    experiment: Experiment, train: RealData, state: RunState, world: World
) -> tuple[RunState, dict[str, float]]:
    """One outer step: window, metagradients, mean, finite?, clip and Adam. All ranks return the same.

    A metagradient that is not finite never reaches D: the step is skipped and counted.
    Raises: NonFiniteError after `max_nonfinite_steps` skipped steps in a row.
    """
    step = state.outer_step
    window = draw_window(experiment, step)
    mean, finite = mean_metagradient(experiment, train, state.data, window, step, world)
    values = {"window_start": float(window.start), "window_length": float(window.length)}
    if not bool(finite.all()):
        state = state.skip_nonfinite()
        values["nonfinite_steps"] = float(state.nonfinite_total)
        if state.nonfinite_in_a_row >= experiment.max_nonfinite_steps:
            bad = [i for i, ok in enumerate(finite.tolist()) if not ok]
            raise NonFiniteError(
                f"outer step {step}, window [{window.start}, {window.end}), replicas {bad}: the metagradient is "
                f"not finite, as in the {state.nonfinite_in_a_row - 1} steps before; D was not touched. "
                "Lower inner.lr or outer.lr, shorten truncation.window_length, or raise truncation.min_window_start."
            )
        return state, values
    data, outer, report = experiment.outer.step(state.data, state.outer, mean.grad)
    values |= {
        "outer_loss": float(mean.outer_loss),
        "metagradient_norm": report.metagradient_norm,
        "clip_ema": report.clip_ema,
        "clipped": float(report.clipped),
    }
    return state.advance(data, outer, report.clipped), values


def validate(experiment: Experiment, validation: RealData, state: RunState, world: World) -> float:
    """Mean validation accuracy of fresh networks trained on D; shared out over the ranks like replicas."""
    n = experiment.validation.num_networks
    accuracies = torch.zeros(n, dtype=torch.float64, device=state.data.images_NCHW.device)
    for index in range(world.rank, n, world.size):
        (accuracies[index],) = retrain(
            experiment.inner,
            state.data,
            validation.images_NCHW,
            validation.labels_N,
            [experiment.validation.horizon],
            seed=experiment.seed,
            # Beyond the replicas' indices: validation networks are never the ones that D was trained through.
            index=experiment.replicas + index,
            outer_step=state.outer_step,
        )
    return float(world.sum(accuracies).mean())


def _due(step: int, every: int, last: int) -> bool:
    return step % every == 0 or step == last


def outer_loop(
    experiment: Experiment,
    train: RealData,
    validation: RealData,
    state: RunState,
    world: World,
    on_report: Callable[[Report], None],
) -> RunState:
    """Outer steps from `state` to the end; reports and checkpoints on the cadence, and at the end."""
    last, cadence = experiment.outer_steps, experiment.cadence
    points: list[Point] = []
    while state.outer_step < last:
        began = time.perf_counter()
        state, values = outer_step(experiment, train, state, world)
        values["seconds_per_outer_step"] = time.perf_counter() - began
        step = state.outer_step
        values["clip_rate"] = state.clipped_total / max(1, state.outer.num_steps)
        if _due(step, cadence.validate_every, last):
            values["validation_accuracy"] = validate(experiment, validation, state, world)
            state = state.judge(Best(state.data, step, values["validation_accuracy"]))
            assert state.best is not None
            values["best_validation_accuracy"] = state.best.accuracy
        points.append(Point(step, values))
        checkpoint = _due(step, cadence.checkpoint_every, last)
        if checkpoint or _due(step, cadence.report_every, last):
            on_report(Report(state, points, checkpoint))
            points = []
    return state
