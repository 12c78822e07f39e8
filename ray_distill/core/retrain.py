"""Retraining: fresh networks trained on a set alone, and their scores on other data at each horizon.

The same function serves validation during a run, the evaluation of a distilled set, and its baselines:
random real images (a set like any other) and the whole training set (in random batches).

Several seeds of one network are trained and scored as one computation, one alone as a group of one: which of
them are together changes their numbers by rounding alone. In float64 losses stay equal to 1e-10. In float32, on a CPU,
an MLP's parameters are the same to the last bit; a ConvNet's are equal to 1e-7 for a hundred steps, since torch's
grouped convolution of a few channels rounds the gradient of its weights otherwise, and later a training makes as much
of that as of one last bit in one initial parameter: 1e-4 after 500 steps (LOG, 2026-11-25).

Networks are judged in test mode. For those with batch norm that means by running statistics, kept during the
training as torch keeps them: at each step, before the parameters move, from its batch. That takes a forward
pass more, since the gradient's own are inside a function that has nothing but the gradient to give.

Axes, beside those of the package: R networks.
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
"""Images [n, C, H, W] and their classes [n], a part of a set at a time: all of it need never be in memory."""


class Score(NamedTuple):
    """How good a network is on a set."""

    accuracy: float
    """The fraction of images that it classifies rightly."""
    loss: float
    """The mean cross entropy over the images."""


@torch.no_grad()
def scores(
    group: NetworkGroup, theta_RP: Tensor, statistics: RunningStatistics, batches: LabelledBatches
) -> list[Score]:
    """The accuracy and loss of each network of the group, in test mode, on images of known classes.

    It looks at a few images at a time, however many a batch has: in test mode no network joins images.
    """
    count, right_R, loss_R = 0, torch.zeros(group.replicas), torch.zeros(group.replicas)
    right_R, loss_R = (x.to(theta_RP.device, torch.float64) for x in (right_R, loss_R))
    for batch in batches:
        for images, labels_N in _microbatches(group, *batch):
            logits_RNK = group.eval_logits(theta_RP, statistics, images)
            count += len(labels_N)
            right_R += (logits_RNK.argmax(dim=2) == labels_N).sum(dim=1)
            labels_RN = labels_N.expand(group.replicas, -1)
            loss_RN = F.cross_entropy(logits_RNK.transpose(1, 2), labels_RN, reduction="none")
            loss_R += loss_RN.sum(dim=1)
    return [
        Score(right / count, loss / count)
        for right, loss in zip(right_R.tolist(), loss_R.tolist(), strict=True)
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
    """`run_steps`, with the running statistics of the networks' batch norms."""
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
    """The scores on other images of fresh networks trained on `data` as one computation, at each horizon.

    Args:
        problem: network, optimiser, augmentation and batches, those of the inner training by default.
        data: the training set, a distilled one or any other.
        test: gives what the scores are measured on, from its beginning at each call.
        horizons: increasing numbers of inner steps.
        seed, indices, outer_step: the places of the draws: another index is another initialisation, with
            batches and augmentations of its own.
        batch: None trains in the inner training's class-balanced batches; a number trains in random
            batches of that size (for sets that are large or not class-balanced).

    Returns: for each index, its scores at the horizons; up to rounding, whatever other indices are with it.
    Raises: ValueError if the horizons do not increase, or if there are several indices and the network cannot be
        set side by side with others of its kind.
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
    return [list(of_one) for of_one in zip(*at_horizons, strict=True)]


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
    """`retrain_group` of one network: its score at each horizon."""
    (of_one,) = retrain_group(
        problem, data, test, horizons, seed=seed, indices=[index], outer_step=outer_step, batch=batch
    )
    return of_one
