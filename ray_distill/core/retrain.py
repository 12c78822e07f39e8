"""Retraining: a fresh network trained on a set alone, and its score on other data at each horizon.

The same function serves validation during a run, the evaluation of a distilled set, and its baselines:
random real images (a set like any other) and the whole training set (in random batches).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ray_distill.core.distilled import TrainingSet
from ray_distill.core.networks import Network
from ray_distill.core.unroll import InnerProblem, draw_inner, initial_state, run_steps

Batches = Iterable[tuple[Tensor, Tensor]]
"""Images [n, C, H, W] and their classes [n], a part of a set at a time: all of it need never be in memory."""


class Score(NamedTuple):
    """How good a network is on a set."""

    accuracy: float
    """The fraction of images that it classifies rightly."""
    loss: float
    """The mean cross entropy over the images."""


@torch.no_grad()
def score(network: Network, theta_P: Tensor, batches: Batches) -> Score:
    """The network's accuracy and loss on images of known classes."""
    count, right, loss = 0, 0, 0.0
    for images, labels in batches:
        logits = network(theta_P, images)
        count += len(labels)
        right += int((logits.argmax(dim=1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    return Score(right / count, loss / count)


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
    state = initial_state(problem, [draws])
    scores = []
    for horizon in horizons:
        state = run_steps(problem, data, [draws], state, horizon - state.num_steps)
        scores.append(score(problem.network, state.theta_P[0], test()))
    return scores
