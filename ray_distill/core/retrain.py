"""Retraining: a fresh network trained on a set alone, and its accuracy on other data at each horizon.

The same function serves validation during a run, the evaluation of a distilled set, and its baselines:
random real images (a set like any other) and the whole training set (in random batches).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ray_distill.core.distilled import DistilledData
from ray_distill.core.networks import Network
from ray_distill.core.unroll import InnerProblem, draw_inner, run_steps


@torch.no_grad()
def accuracy(
    network: Network, theta_P: Tensor, images_NCHW: Tensor, labels_N: Tensor, *, batch: int = 1000
) -> float:
    """The fraction of images that the network classifies rightly."""
    right = 0
    for images, labels in zip(images_NCHW.split(batch), labels_N.split(batch), strict=True):
        right += int((network(theta_P, images).argmax(dim=1) == labels).sum())
    return right / len(labels_N)


def retrain(
    problem: InnerProblem,
    data: DistilledData,
    images_NCHW: Tensor,
    labels_N: Tensor,
    horizons: Sequence[int],
    *,
    seed: int,
    index: int,
    outer_step: int = 0,
    batch: int | None = None,
) -> list[float]:
    """Accuracy on (images, labels) of one network trained on `data`, at each horizon.

    Args:
        problem: network, optimiser, augmentation and batches, those of the inner training by default.
        data: the training set, a distilled one or any other.
        images_NCHW, labels_N: what the accuracy is measured on.
        horizons: increasing numbers of inner steps.
        seed, index, outer_step: the place of the draws: another index is another initialisation.
        batch: None trains in the inner training's class-balanced batches; a number trains in random
            batches of that size (for sets that are large or not class-balanced).

    Raises: ValueError if the horizons do not increase.
    """
    if list(horizons) != sorted(set(horizons)) or not horizons or horizons[0] < 1:
        raise ValueError(f"horizons must be increasing positive numbers of inner steps, not {list(horizons)}")
    draws = draw_inner(problem, seed, outer_step, index, horizons[-1], data, batch=batch)
    state = problem.optimizer.init(draws.theta_P)
    accuracies = []
    for horizon in horizons:
        state = run_steps(problem, data, draws, state, horizon - state.num_steps)
        accuracies.append(accuracy(problem.network, state.theta_P, images_NCHW, labels_N))
    return accuracies
