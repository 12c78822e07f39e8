"""The inner training: a network trained on D from a fresh initialisation, step by step.

Everything random about it is in `InnerDraws`; the rest is a pure function, so any stretch of it can be
run again and gives the same numbers.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ray_distill.core import augment
from ray_distill.core.distilled import DistilledData, inner_batches, random_batches
from ray_distill.core.inner_optimizer import Adam, InnerState
from ray_distill.core.networks import Network
from ray_distill.core.rng import Stream


@dataclass(frozen=True, kw_only=True)
class InnerProblem:
    """What an inner training is, apart from its data and its draws."""

    network: Network
    optimizer: Adam
    augmentation: tuple[str, ...] = ()
    """Names of operations for the distilled images."""
    inner_batch_per_class: int


class InnerDraws(NamedTuple):
    """The random part of one inner training of T steps."""

    theta_P: Tensor
    """Initial parameters."""
    rows_TB: Tensor
    """Rows of D in each step's batch."""
    augments: list[augment.AugmentDraw | None]
    """One augmentation for each step."""


def draw_inner(
    problem: InnerProblem,
    seed: int,
    outer_step: int,
    replica: int,
    inner_steps: int,
    data: DistilledData,
    *,
    batch: int | None = None,
) -> InnerDraws:
    """All draws of one inner training, from the streams `init`, `inner-batch` and `inner-augment-*`.

    They depend on the place (seed, outer step, replica) and on shapes, never on the values of the data.
    With a number for `batch`, batches of that many rows are drawn at random, whatever their classes, for
    sets that are large or not class-balanced; without, they are the problem's class-balanced ones.
    """

    def stream(name: str) -> Stream:
        device = data.images_NCHW.device
        return Stream(seed=seed, name=name, outer_step=outer_step, replica=replica, device=device)

    dtype, num_classes = data.images_NCHW.dtype, data.labels_NK.shape[1]
    steps, ipc = range(inner_steps), len(data.images_NCHW) // num_classes
    if batch is None:
        rows_TB = inner_batches(stream("inner-batch"), steps, num_classes, ipc, problem.inner_batch_per_class)
    else:
        rows_TB = random_batches(stream("inner-batch"), steps, len(data.images_NCHW), batch)
    augments = augment.draw(
        problem.augmentation,
        stream("inner-augment-choice"),
        stream("inner-augment-magnitude"),
        steps,
        rows_TB.shape[1],
        dtype,
    )
    return InnerDraws(problem.network.init(stream("init"), dtype=dtype), rows_TB, augments)


def inner_batch(data: DistilledData, draws: InnerDraws, t: int) -> DistilledData:
    """The augmented images and the labels of inner step t; differentiable (once) in the data."""
    rows_B = draws.rows_TB[t]
    return DistilledData(augment.apply(data.images_NCHW[rows_B], draws.augments[t]), data.labels_NK[rows_B])


def cross_entropy(network: Network, theta_P: Tensor, batch: DistilledData) -> Tensor:
    """Mean over the batch of -sum_k labels_BK log softmax(logits)_BK; labels are target probabilities."""
    return F.cross_entropy(network(theta_P, batch.images_NCHW), batch.labels_NK)


def inner_gradient(network: Network, theta_P: Tensor, batch: DistilledData) -> Tensor:
    """grad_theta of the cross entropy at constant batch: [P], off the tape."""
    with torch.enable_grad():
        theta_P = theta_P.detach().requires_grad_()
        (grad_P,) = torch.autograd.grad(cross_entropy(network, theta_P, batch), theta_P)
    return grad_P


class Unrolled(NamedTuple):
    """A stretch of inner training: the state before each step, each step's gradient, and the last state."""

    states: list[InnerState]
    grads: list[Tensor]
    final: InnerState


@torch.no_grad()
def run_steps(
    problem: InnerProblem, data: DistilledData, draws: InnerDraws, state: InnerState, num_steps: int
) -> InnerState:
    """`num_steps` inner steps from `state`, keeping nothing (the burn-in)."""
    for t in range(state.num_steps, state.num_steps + num_steps):
        grad_P = inner_gradient(problem.network, state.theta_P, inner_batch(data, draws, t))
        state = problem.optimizer.step(state, grad_P)
    return state


@torch.no_grad()
def run_window(
    problem: InnerProblem, data: DistilledData, draws: InnerDraws, state: InnerState, num_steps: int
) -> Unrolled:
    """`num_steps` inner steps from `state`, keeping the states and gradients that the adjoint needs.

    Memory: 4 P floats a step (theta, two moments, gradient), whatever the number and size of the images.
    """
    states, grads = [], []
    for t in range(state.num_steps, state.num_steps + num_steps):
        states.append(state)
        grads.append(inner_gradient(problem.network, state.theta_P, inner_batch(data, draws, t)))
        state = problem.optimizer.step(state, grads[-1])
    return Unrolled(states, grads, state)
