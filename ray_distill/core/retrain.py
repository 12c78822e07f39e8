"""Retraining: a fresh network trained on a set alone, and its score on other data at each horizon.

The same function serves validation during a run, the evaluation of a distilled set, and its baselines:
random real images (a set like any other) and the whole training set (in random batches).

Networks are judged in test mode. For those with batch norm that means by running statistics, kept during the
training as torch keeps them: at each step, before the parameters move, from its batch. That takes a forward
pass more, since the gradient's own are inside a function that has nothing but the gradient to give.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ray_distill.core.distilled import TrainingSet
from ray_distill.core.inner_optimizer import InnerState
from ray_distill.core.networks import Network, RunningStatistics
from ray_distill.core.step_functions import cached_size
from ray_distill.core.unroll import (
    InnerDraws,
    InnerProblem,
    draw_inner,
    initial_state,
    inner_batch,
    run_steps,
)

Batches = Iterable[tuple[Tensor, Tensor]]
"""Images [n, C, H, W] and their classes [n], a part of a set at a time: all of it need never be in memory."""


class Score(NamedTuple):
    """How good a network is on a set."""

    accuracy: float
    """The fraction of images that it classifies rightly."""
    loss: float
    """The mean cross entropy over the images."""


@torch.no_grad()
def score(network: Network, theta_P: Tensor, statistics: RunningStatistics, batches: Batches) -> Score:
    """The accuracy and loss, on images of known classes, of the network in test mode.

    It looks at a few images at a time, however many a batch has: in test mode no network joins images.
    """
    count, right, loss = 0, 0, 0.0
    for batch in batches:
        for images, labels in _passes(network, *batch):
            logits = network.judged(theta_P, statistics, images)
            count += len(labels)
            right += int((logits.argmax(dim=1) == labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return Score(right / count, loss / count)


def _passes(network: Network, images_NCHW: Tensor, labels_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    channels, height, width = images_NCHW.shape[1:]
    size = cached_size(
        network, (channels, height, width), len(images_NCHW), images_NCHW.dtype, images_NCHW.device
    )
    return zip(images_NCHW.split(size), labels_N.split(size), strict=True)


@torch.no_grad()
def train_steps(
    problem: InnerProblem,
    data: TrainingSet,
    draws: InnerDraws,
    state: InnerState,
    statistics: RunningStatistics,
    num_steps: int,
) -> tuple[InnerState, RunningStatistics]:
    """`run_steps` of one network, with the running statistics of its batch norms."""
    network = problem.network
    if not network.joins_images:
        return run_steps(problem, data, [draws], state, num_steps), statistics
    for t in range(state.num_steps, state.num_steps + num_steps):
        images = inner_batch(data, draws, t).images_NCHW
        statistics = network.next_statistics(statistics, state.theta_P[0], images)
        state = run_steps(problem, data, [draws], state, 1)
    return state, statistics


def retrain(
    problem: InnerProblem,
    data: TrainingSet,
    test: Callable[[], Batches],
    horizons: Sequence[int],
    *,
    seed: int,
    index: int,
    outer_step: int = 0,
    batch: int | None = None,
) -> list[Score]:
    """The score on other images of one network trained on `data`, at each horizon.

    Args:
        problem: network, optimiser, augmentation and batches, those of the inner training by default.
        data: the training set, a distilled one or any other.
        test: gives what the score is measured on, from its beginning at each call.
        horizons: increasing numbers of inner steps.
        seed, index, outer_step: the place of the draws: another index is another initialisation.
        batch: None trains in the inner training's class-balanced batches; a number trains in random
            batches of that size (for sets that are large or not class-balanced).

    Raises: ValueError if the horizons do not increase.
    """
    if list(horizons) != sorted(set(horizons)) or not horizons or horizons[0] < 1:
        raise ValueError(f"horizons must be increasing positive numbers of inner steps, not {list(horizons)}")
    draws = draw_inner(problem, seed, outer_step, index, horizons[-1], data, batch=batch)
    state, statistics = initial_state(problem, [draws]), problem.network.initial_statistics(draws.theta_P)
    scores = []
    for horizon in horizons:
        state, statistics = train_steps(problem, data, draws, state, statistics, horizon - state.num_steps)
        scores.append(score(problem.network, state.theta_P[0], statistics, test()))
    return scores
