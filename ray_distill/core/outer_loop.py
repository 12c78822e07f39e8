"""The loop over outer steps, in one process or distributed over the ranks of a `Communicator`.

The experiment fixes the replicas and their groups; the ranks only share them. Rank r of w computes the metagradients
of groups r, r + w, ..; one all-reduce of a tensor of the size of D sums them, and every rank takes the same outer step.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ray_distill.core import augment, diagnostics
from ray_distill.core.distilled import DistilledData, RealDataset
from ray_distill.core.distributed import Communicator
from ray_distill.core.metagradient import GroupEngine, Metagradient
from ray_distill.core.metrics import StepMetrics
from ray_distill.core.outer_optimizer import OuterOptimizer
from ray_distill.core.retrain import Score, retrain
from ray_distill.core.rng import Stream
from ray_distill.core.schedules import Schedule, integer_at
from ray_distill.core.state import Best, RunState
from ray_distill.core.truncation import CurriculumState, ForwardCurriculum, TruncationRule, Window
from ray_distill.core.unroll import InnerProblem, draw_inner


class NonFiniteError(ArithmeticError):
    """Too many outer steps in a row had a metagradient with NaN or infinite values."""


@dataclass(frozen=True, kw_only=True)
class Cadence:
    """Intervals in outer steps, the same on all ranks."""

    report_every: int
    validate_every: int
    checkpoint_every: int


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How D is evaluated during the run, on data held out of training."""

    num_networks: int
    horizon: int


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that determines the numbers of a run."""

    seed: int
    outer_steps: int
    replicas: int
    inner: InnerProblem
    """The inner training in validation; distillation uses the same with `inner_lr`."""
    inner_lr: Schedule
    truncation: TruncationRule | ForwardCurriculum
    redraw_every: int
    engine: GroupEngine
    group_size: int = 1
    """Replicas that are computed together, on one rank. The last group may be smaller; compiled functions are then
    compiled for that size too."""
    outer: OuterOptimizer
    outer_batch_size: int
    real_augmentation: augment.Augmentation
    max_nonfinite_steps: int
    validation: Validation
    cadence: Cadence

    @property
    def groups(self) -> list[range]:
        """The replicas of each group, independent of the number of ranks."""
        return [
            range(first, min(first + self.group_size, self.replicas))
            for first in range(0, self.replicas, self.group_size)
        ]


class Report(NamedTuple):
    """The loop's report on its cadence; the same on all ranks, except for timings."""

    state: RunState
    points: list[StepMetrics]
    checkpoint: bool
    """Whether to save the state as a checkpoint."""


def draw_window(experiment: Experiment, outer_step: int, curriculum: CurriculumState) -> Window:
    """The window of an outer step, the same for all replicas; redrawn every `redraw_every` steps."""
    if isinstance(experiment.truncation, ForwardCurriculum):
        return experiment.truncation.draw(outer_step, curriculum)
    stream = Stream(seed=experiment.seed, name="window", outer_step=_redraw_step(experiment, outer_step))
    return experiment.truncation.draw(stream)


def _redraw_step(experiment: Experiment, outer_step: int) -> int:
    """The outer step at which the current window was drawn."""
    return outer_step - outer_step % experiment.redraw_every


def inner_at(experiment: Experiment, outer_step: int) -> InnerProblem:
    """The inner training of an outer step, with its scheduled lr."""
    optimizer = replace(experiment.inner.optimizer, lr=experiment.inner_lr.at(outer_step))
    return replace(experiment.inner, optimizer=optimizer)


def scheduled_values(experiment: Experiment, outer_step: int) -> dict[str, float]:
    """The scheduled values of an outer step, for the logs; the window's length is logged with the window."""
    unroll_length = integer_at(experiment.truncation.unroll_length, _redraw_step(experiment, outer_step))
    return {
        "unroll_length": float(unroll_length),
        "inner_lr": experiment.inner_lr.at(outer_step),
        "outer_lr": experiment.outer.lr.at(outer_step),
    }


def draw_real_batch(
    experiment: Experiment, train: RealDataset, outer_step: int, replica: int
) -> DistilledData:
    """A replica's batch of real training images, without replacement, augmented."""

    def stream(name: str) -> Stream:
        device = train.device
        return Stream(seed=experiment.seed, name=name, outer_step=outer_step, replica=replica, device=device)

    size = experiment.outer_batch_size
    real = train.rows(stream("real-batch").permutation(train.num_images)[0, :size])
    (drawn,) = augment.draw(experiment.real_augmentation, stream("real-augment"), range(1), size, train.dtype)
    return real._replace(images_NCHW=augment.apply(real.images_NCHW, drawn))


def replica_metagradients(
    experiment: Experiment,
    train: RealDataset,
    data: DistilledData,
    window: Window,
    outer_step: int,
    replicas: Sequence[int],
) -> list[Metagradient]:
    """The metagradients of a group of replicas, each with its own initialisation, inner batches and real batch."""
    inner = inner_at(experiment, outer_step)
    draws = [draw_inner(inner, experiment.seed, outer_step, r, window.end, data) for r in replicas]
    real = [draw_real_batch(experiment, train, outer_step, r) for r in replicas]
    return experiment.engine(inner, data, draws, window, real)


class MeanMetagradient(NamedTuple):
    """The mean over all replicas of all ranks."""

    metagradient: Metagradient
    finite_R: Tensor
    """int64, 1 for replicas whose metagradient is finite."""
    values: dict[str, float]
    """For the logs (`core.diagnostics`)."""


def _summary(one: Metagradient, replica: int, replicas: int) -> Tensor:
    """Everything that is summed over replicas, as one float64 vector."""
    flat = torch.cat([one.outer_loss.reshape(1), *(x.flatten() for x in one.grad)]).double()
    finite_R, square_norms_R = flat.new_zeros(replicas), flat.new_zeros(replicas)
    finite_R[replica] = flat.isfinite().all().to(flat.dtype)
    square_norms_R[replica] = one.grad.images_NCHW.double().square().sum()
    profile = flat.new_zeros(diagnostics.POSITIONS)
    if one.position_norms_W is not None and len(one.position_norms_W):
        profile = diagnostics.position_profile(one.position_norms_W.double())
    return torch.cat([flat, finite_R, square_norms_R, profile])


def mean_metagradient(
    experiment: Experiment,
    train: RealDataset,
    data: DistilledData,
    window: Window,
    outer_step: int,
    world: Communicator,
) -> MeanMetagradient:
    """The mean metagradient over all replicas of all ranks, with one all-reduce."""
    replicas = experiment.replicas
    sizes = [1, *(x.numel() for x in data), replicas, replicas, diagnostics.POSITIONS]
    total = torch.zeros(sum(sizes), dtype=torch.float64, device=data.images_NCHW.device)
    for group in experiment.groups[world.rank :: world.size]:
        metagradients = replica_metagradients(experiment, train, data, window, outer_step, group)
        for replica, one in zip(group, metagradients, strict=True):
            total += _summary(one, replica, replicas)
    total = world.sum(total)
    loss, images, labels, finite_R, square_norms_R, profile = total.split(sizes)
    grad = DistilledData(
        *((g / replicas).to(x.dtype).view_as(x) for g, x in zip((images, labels), data, strict=True))
    )
    mean_profile = profile / replicas if bool(profile.any()) else None
    values = diagnostics.summarize(images / replicas, square_norms_R, mean_profile)
    return MeanMetagradient(Metagradient(grad, loss[0] / replicas), finite_R.long(), values)


def outer_step(
    experiment: Experiment, train: RealDataset, state: RunState, world: Communicator
) -> tuple[RunState, dict[str, float]]:
    """One outer step: window, mean metagradient, check that it is finite, clip, Adam. The same result on all ranks.

    A step with a non-finite metagradient is skipped and counted: D stays as it was.
    Raises: NonFiniteError after `max_nonfinite_steps` skipped steps in a row.
    """
    step = state.outer_step
    window = draw_window(experiment, step, state.curriculum)
    mean, finite_R, metrics = mean_metagradient(experiment, train, state.data, window, step, world)
    values = {"window_start": float(window.start), "window_length": float(window.length)}
    values |= scheduled_values(experiment, step)
    if not bool(finite_R.all()):
        state = state.skip_nonfinite()
        values["nonfinite_steps"] = float(state.nonfinite_total)
        if state.nonfinite_in_a_row >= experiment.max_nonfinite_steps:
            bad = [i for i, ok in enumerate(finite_R.tolist()) if not ok]
            raise NonFiniteError(
                f"outer step {step}, window [{window.start}, {window.end}), replicas {bad}: the metagradient is "
                f"not finite, as in the {state.nonfinite_in_a_row - 1} steps before; D was not changed. "
                "Lower inner.lr or outer.lr, shorten truncation.window_length, or raise truncation.min_window_start."
            )
        return state, values
    data, outer, report = experiment.outer.step(state.data, state.outer, mean.grad, step)
    values |= {
        "outer_loss": float(mean.outer_loss),
        "metagradient_norm": report.metagradient_norm,
        "clip_ema": report.clip_ema,
        "clipped": float(report.clipped),
        **metrics,
    }
    if report.label_metagradient_norm is not None:
        values |= label_metrics(data.labels_NK, report.label_metagradient_norm)
    return state.advance(data, outer, report.clipped), values


def label_metrics(labels_NK: Tensor, metagradient_norm: float) -> dict[str, float]:
    """Metrics of learnt labels, whose rows of target probabilities are not normalised."""
    sums_N = labels_NK.sum(dim=1)
    return {
        "label_metagradient_norm": metagradient_norm,
        "label_row_sum_mean": float(sums_N.mean()),
        "label_row_sum_min": float(sums_N.min()),
        "label_row_sum_max": float(sums_N.max()),
    }


def validate(experiment: Experiment, validation: RealDataset, state: RunState, world: Communicator) -> Score:
    """Mean validation score of fresh networks trained on D; the ranks share the networks."""
    n = experiment.validation.num_networks
    scores = torch.zeros(n, len(Score._fields), dtype=torch.float64)
    for index in range(world.rank, n, world.size):
        (score,) = retrain(
            experiment.inner,
            state.data,
            validation.batches,
            [experiment.validation.horizon],
            seed=experiment.seed,
            # Indices beyond the replicas', so that validation networks differ from those of the distillation.
            index=experiment.replicas + index,
            outer_step=state.outer_step,
        )
        scores[index] = torch.tensor(score, dtype=torch.float64)
    scores = world.sum(scores.to(state.data.images_NCHW.device))
    return Score(*scores.mean(dim=0).tolist())


def _due(step: int, every: int, last: int) -> bool:
    return step % every == 0 or step == last


def outer_loop(
    experiment: Experiment,
    train: RealDataset,
    validation: RealDataset,
    state: RunState,
    world: Communicator,
    on_report: Callable[[Report], None],
) -> RunState:
    """Outer steps from `state` to the last; reports and checkpoints on the cadence and after the last step.

    Raises: NonFiniteError, after reporting the steps before it.
    """
    last, cadence = experiment.outer_steps, experiment.cadence
    points: list[StepMetrics] = []
    while state.outer_step < last:
        began = time.perf_counter()
        try:
            state, values = outer_step(experiment, train, state, world)
        except NonFiniteError:
            on_report(Report(state, points, checkpoint=False))
            raise
        values["seconds_per_outer_step"] = time.perf_counter() - began
        step = state.outer_step
        values["clip_rate"] = state.clipped_total / max(1, state.outer.num_steps)
        if _due(step, cadence.validate_every, last):
            began = time.perf_counter()
            score = validate(experiment, validation, state, world)
            state = state.with_candidate(Best(state.data, step, score.accuracy))
            if isinstance(experiment.truncation, ForwardCurriculum):
                moved = experiment.truncation.update(step, state.curriculum, score.loss)
                state = state._replace(curriculum=moved)
            assert state.best is not None
            values |= {
                "validation_accuracy": score.accuracy,
                "validation_loss": score.loss,
                "best_validation_accuracy": state.best.accuracy,
                "seconds_per_validation": time.perf_counter() - began,
            }
        points.append(StepMetrics(step, values, time.time()))
        checkpoint = _due(step, cadence.checkpoint_every, last)
        if checkpoint or _due(step, cadence.report_every, last):
            on_report(Report(state, points, checkpoint))
            points = []
    return state
