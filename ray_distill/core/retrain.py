"""Retraining: training fresh networks on a set, and scoring them on other data at each horizon.

Used for validation during a run, for evaluating a distilled set, and for its baselines: random real images, and the
whole training set (in random batches).

Several seeds of one network are trained and scored as one computation; grouping changes their numbers by rounding
only. In float64 losses agree to 1e-10. In float32, on a CPU, an MLP's parameters are bitwise equal; a ConvNet's agree
to 1e-7 for a hundred steps, since torch's grouped convolution rounds the weight gradients of few channels differently,
and training amplifies that like a change of the last bit of one initial parameter: 1e-4 after 500 steps (LOG,
2026-11-25).

Networks are scored in eval mode. Batch norms then use running statistics, tracked during training as torch does: at
each step from its batch, before the parameters move. That takes one more forward pass, since the gradient functions
return nothing but the gradient.

Axes, besides those of the package: R networks.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ray_distill.core.distilled import TrainingSet
from ray_distill.core.inner_optimizer import InnerState
from ray_distill.core.microbatches import cache_sized
from ray_distill.core.networks.group import NetworkGroup, RunningStatistics
from ray_distill.core.unroll import (
    InnerDraws,
    InnerProblem,
    draw_inner,
    group_batches,
    initial_state,
    run_steps,
)

LabelledBatches = Iterable[tuple[Tensor, Tensor]]
"""Images [n, C, H, W] and their classes [n], batch by batch, so that a set need not fit into memory."""


class Score(NamedTuple):
    """A network's accuracy and loss on a set."""

    accuracy: float
    """The fraction of images that are classified correctly."""
    loss: float
    """The mean cross entropy over the images."""


@torch.no_grad()
def scores(
    group: NetworkGroup, theta_RP: Tensor, statistics: RunningStatistics, batches: LabelledBatches
) -> list[Score]:
    """The score of each network of the group, in eval mode, on labelled images.

    Batches are split into microbatches, with batch norm too: in eval mode images do not affect each other.
    """
    count, correct_R, loss_R = 0, torch.zeros(group.replicas), torch.zeros(group.replicas)
    correct_R, loss_R = (x.to(theta_RP.device, torch.float64) for x in (correct_R, loss_R))
    for batch in batches:
        for images, labels_N in _microbatches(group, *batch):
            logits_RNK = group.eval_logits(theta_RP, statistics, images)
            count += len(labels_N)
            correct_R += (logits_RNK.argmax(dim=2) == labels_N).sum(dim=1)
            labels_RN = labels_N.expand(group.replicas, -1)
            loss_RN = F.cross_entropy(logits_RNK.transpose(1, 2), labels_RN, reduction="none")
            loss_R += loss_RN.sum(dim=1)
    return [
        Score(correct / count, loss / count)
        for correct, loss in zip(correct_R.tolist(), loss_R.tolist(), strict=True)
    ]


def _microbatches(
    group: NetworkGroup, images_NCHW: Tensor, labels_N: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    channels, height, width = images_NCHW.shape[1:]
    size = cache_sized(
        group.network,
        (channels, height, width),
        len(images_NCHW),
        images_NCHW.dtype,
        images_NCHW.device,
        group.replicas,
    )
    return zip(images_NCHW.split(size), labels_N.split(size), strict=True)


@torch.no_grad()
def train_steps(
    problem: InnerProblem,
    data: TrainingSet,
    group: NetworkGroup,
    draws: Sequence[InnerDraws],
    state: InnerState,
    statistics: RunningStatistics,
    num_steps: int,
) -> tuple[InnerState, RunningStatistics]:
    """`run_steps` that also tracks the running statistics of batch norms."""
    if not statistics:
        return run_steps(problem, data, draws, state, num_steps), statistics
    for t in range(state.num_steps, state.num_steps + num_steps):
        images_RBCHW = group_batches(data, draws, t).images_RBCHW
        statistics = group.updated_statistics(statistics, state.theta_P, images_RBCHW)
        state = run_steps(problem, data, draws, state, 1)
    return state, statistics


def retrain_group(
    problem: InnerProblem,
    data: TrainingSet,
    test: Callable[[], LabelledBatches],
    horizons: Sequence[int],
    *,
    seed: int,
    indices: Sequence[int],
    outer_step: int = 0,
    batch: int | None = None,
) -> list[list[Score]]:
    """Trains fresh networks on `data` as one computation, and scores each of them at each horizon.

    Args:
        problem: network, optimiser, augmentation and inner batches.
        data: the training set, a distilled one or any other.
        test: returns the images to score on, from the beginning at each call.
        horizons: increasing numbers of inner steps.
        seed, indices, outer_step: coordinates of the random draws: each index has an initialisation, batches and
            augmentations of its own.
        batch: None trains on the problem's class-balanced batches; a number, on random batches of that size (for
            sets that are large or not class-balanced).

    Returns: for each index, its scores at the horizons; up to rounding, independent of the other indices.
    Raises: ValueError if the horizons do not increase, or if there are several indices and the network cannot be
        grouped.
    """
    if list(horizons) != sorted(set(horizons)) or not horizons or horizons[0] < 1:
        raise ValueError(f"horizons must be increasing positive numbers of inner steps, not {list(horizons)}")
    draws = [draw_inner(problem, seed, outer_step, i, horizons[-1], data, batch=batch) for i in indices]
    group, state = NetworkGroup(problem.network, len(draws)), initial_state(problem, draws)
    statistics = group.initial_statistics(state.theta_P)
    at_horizons = []
    for horizon in horizons:
        num_steps = horizon - state.num_steps
        state, statistics = train_steps(problem, data, group, draws, state, statistics, num_steps)
        at_horizons.append(scores(group, state.theta_P, statistics, test()))
    return [list(one) for one in zip(*at_horizons, strict=True)]


def retrain(
    problem: InnerProblem,
    data: TrainingSet,
    test: Callable[[], LabelledBatches],
    horizons: Sequence[int],
    *,
    seed: int,
    index: int,
    outer_step: int = 0,
    batch: int | None = None,
) -> list[Score]:
    """`retrain_group` for one network: its score at each horizon."""
    (result,) = retrain_group(
        problem, data, test, horizons, seed=seed, indices=[index], outer_step=outer_step, batch=batch
    )
    return result
