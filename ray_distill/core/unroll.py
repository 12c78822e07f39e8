"""The inner training: training a network on D from a fresh initialisation, step by step.

All randomness is in `InnerDraws`; the rest is a pure function, so any part of it can be run again with the same
result. Several replicas, each with its own draws, are trained together, with a row of the state for each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ray_distill.core import augment
from ray_distill.core.distilled import DistilledData, TrainingSet, inner_batches, random_batches
from ray_distill.core.inner_optimizer import InnerOptimizer, InnerState
from ray_distill.core.microbatches import Batches, stack
from ray_distill.core.networks.network import Network
from ray_distill.core.rng import Stream
from ray_distill.core.step_functions import StepFunctions


@dataclass(frozen=True, kw_only=True)
class InnerProblem:
    """An inner training, except for its data and random draws."""

    functions: StepFunctions
    optimizer: InnerOptimizer
    augmentation: augment.Augmentation = augment.NONE
    """Of the distilled images."""
    inner_batch_per_class: int
    classes_per_inner_batch: int | None = None
    """Classes in an inner batch, redrawn at each step. None: all."""
    max_states: int | None = None
    """States of a window (each with its gradient) that may be stored at a time, for each replica of a group; None:
    all of them."""

    @property
    def network(self) -> Network:
        """The network that is trained."""
        return self.functions.network


class InnerDraws(NamedTuple):
    """The random part of one inner training of T steps."""

    theta_P: Tensor
    """Initial parameters."""
    rows_TB: Tensor
    """Rows of D in each step's batch."""
    augments: list[augment.AugmentDraw]
    """One augmentation for each step."""


def draw_inner(
    problem: InnerProblem,
    seed: int,
    outer_step: int,
    replica: int,
    inner_steps: int,
    data: TrainingSet,
    *,
    batch: int | None = None,
) -> InnerDraws:
    """All draws of one inner training, from the streams `init`, `inner-batch`, `inner-augment` and their substreams.

    They depend on (seed, outer step, replica) and on shapes, never on the values of the data. A number for `batch`
    draws random batches of that many rows, for sets that are large or not class-balanced; None draws the problem's
    class-balanced batches.
    """

    def stream(name: str) -> Stream:
        return Stream(seed=seed, name=name, outer_step=outer_step, replica=replica, device=data.device)

    dtype, num_classes = data.dtype, data.num_classes
    steps, ipc = range(inner_steps), data.num_images // num_classes
    if batch is None:
        per_class, classes = problem.inner_batch_per_class, problem.classes_per_inner_batch
        rows_TB = inner_batches(stream("inner-batch"), steps, num_classes, ipc, per_class, classes)
    else:
        rows_TB = random_batches(stream("inner-batch"), steps, data.num_images, batch)
    augments = augment.draw(problem.augmentation, stream("inner-augment"), steps, rows_TB.shape[1], dtype)
    return InnerDraws(problem.network.init(stream("init"), dtype=dtype), rows_TB, augments)


def inner_batch(data: TrainingSet, draws: InnerDraws, t: int) -> DistilledData:
    """The augmented images and the labels of inner step t; differentiable (once) in the data."""
    batch = data.rows(draws.rows_TB[t])
    return batch._replace(images_NCHW=augment.apply(batch.images_NCHW, draws.augments[t]))


def group_batches(data: TrainingSet, draws: Sequence[InnerDraws], t: int) -> Batches:
    """`inner_batch` of each replica, augmented separately, since their operations may differ."""
    return Batches.stack([inner_batch(data, one, t) for one in draws])


def initial_state(problem: InnerProblem, draws: Sequence[InnerDraws]) -> InnerState:
    """The state before the first step: tensors [R, P]."""
    return problem.optimizer.init(stack([one.theta_P for one in draws]))


class Trajectory(NamedTuple):
    """A recorded part of the inner training: the state before each step, its gradient [R, P], the final state."""

    states: list[InnerState]
    grads: list[Tensor]
    final: InnerState


@torch.no_grad()
def run_steps(
    problem: InnerProblem,
    data: TrainingSet,
    draws: Sequence[InnerDraws],
    state: InnerState,
    num_steps: int,
) -> InnerState:
    """`num_steps` inner steps from `state`, without recording them (the burn-in)."""
    for t in range(state.num_steps, state.num_steps + num_steps):
        grad_RP, _ = problem.functions.gradients(state.theta_P, group_batches(data, draws, t))
        state = problem.optimizer.step(state, grad_RP)
    return state


@torch.no_grad()
def run_window(
    problem: InnerProblem,
    data: DistilledData,
    draws: Sequence[InnerDraws],
    state: InnerState,
    num_steps: int,
) -> Trajectory:
    """`num_steps` inner steps from `state`, recording the states and gradients that the adjoint needs.

    Memory: (2 + moments) P floats per step and replica, whatever the number and size of the images.
    """
    states, grads = [], []
    for t in range(state.num_steps, state.num_steps + num_steps):
        states.append(state)
        grad_RP, _ = problem.functions.gradients(state.theta_P, group_batches(data, draws, t))
        grads.append(grad_RP)
        state = problem.optimizer.step(state, grad_RP)
    return Trajectory(states, grads, state)
