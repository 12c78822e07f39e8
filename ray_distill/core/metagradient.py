"""The truncated metagradient without a tape.

L(D) = cross entropy on a real batch of the network theta_{start + length} that was trained on D. The
metagradient is dL/dD through the window's steps, through parameters and moments, with the state at the
window's start held constant (the paper, algorithm 1).

The forward pass keeps the window's states, not its activations. Backwards, each step
s_{t+1} = F(s_t, g_t), g_t = grad_theta l(theta_t, D_t) gives up its share: `optimizer.adjoint` turns
dL/ds_{t+1} into dL/ds_t at constant g_t and lambda = dL/dg_t; then one product

    grad_{theta, D_t} <lambda, grad_theta l(theta_t, D_t)>

adds what g_t owes to theta_t (a Hessian-vector product) and to D_t (a mixed product). The step's
augmentation and the choice of its batch are pulled back outside that product, so they need only be
differentiable once. Memory: for each window step the state and g, (2 + moments) P floats, and the
activations of one pass. Where that is too much, every k-th state is kept and the segments between are
replayed, the last first, at the cost of one more gradient for each step.

Several replicas with one window may be computed at once, as one network with their channels side by side:
states and gradients have a row for each, the choice of a batch and its augmentation are each replica's own.

In float32 a metagradient is off by 1 to 10% with ReLU networks, in this and in any other engine: gradients
agree to 1e-6 at the same parameters, but rounding pushes some units over their kink, and the adjoint, which
divides by sqrt(v), makes much of a few parameters. With smooth units it is 1e-6 to 1e-4. A window that includes
the first step of Adam is worse: there the step is close to sign(g) (LOG, 2026-11-25).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ray_distill.core import augment
from ray_distill.core.distilled import DistilledData
from ray_distill.core.inner_optimizer import StateAdjoint, zero_moments
from ray_distill.core.microbatches import Batches
from ray_distill.core.truncation import Window
from ray_distill.core.unroll import (
    InnerDraws,
    InnerProblem,
    Trajectory,
    group_batches,
    initial_state,
    run_steps,
    run_window,
)


class Metagradient(NamedTuple):
    """dL/dD, and the outer loss L (a 0-d tensor) that it is the gradient of."""

    grad: DistilledData
    outer_loss: Tensor
    position_norms_W: Tensor | None = None
    """L2 norm of each window step's share in the image metagradient, where the engine has it."""


Engine = Callable[[InnerProblem, DistilledData, InnerDraws, Window, DistilledData], Metagradient]
"""(problem, D, draws, window, real batch) -> metagradient. The adjoint below, or `higher_reference`."""

GroupEngine = Callable[
    [InnerProblem, DistilledData, Sequence[InnerDraws], Window, Sequence[DistilledData]], list[Metagradient]
]
"""(problem, D, draws of each replica, window, their real batches) -> the metagradient of each replica."""


def accumulate_gradient(
    total: DistilledData, data: DistilledData, draws: InnerDraws, t: int, cotangent: DistilledData
) -> Tensor:
    """Add to `total`, in place, the gradient with respect to D of <cotangent, inner_batch(D, t)>.

    Returns: the L2 norm of what was added to the images (0-d).

    Only the batch's rows are touched, so the cost does not grow with D. The rows of a batch are distinct:
    the order of the additions cannot matter.
    """
    rows_B = draws.rows_TB[t]
    with torch.enable_grad():
        images = data.images_NCHW[rows_B].detach().requires_grad_()
        augmented = augment.apply(images, draws.augments[t])
        (d_images,) = torch.autograd.grad(augmented, images, cotangent.images_NCHW)
    total.images_NCHW.index_add_(0, rows_B, d_images)
    total.labels_NK.index_add_(0, rows_B, cotangent.labels_NK)
    norm: Tensor = d_images.norm()
    return norm


def segment_length(length: int, max_states: int | None) -> int:
    """The length k of the segments that a window of `length` steps is replayed in; `length`: no replay.

    Keeping every k-th state and, of the segment at hand, each one takes ceil(length / k) + k states. The
    largest k that fits is best: one further gradient for each step is all the replay costs, whatever k.
    Raises: ValueError if even the least, about 2 sqrt(length), is too much.
    """
    if max_states is None or length <= max_states:
        return length
    fitting = [k for k in range(1, length) if -(-length // k) + k <= max_states]
    if not fitting:
        least = min(-(-length // k) + k for k in range(1, length + 1))
        raise ValueError(
            f"a window of {length} steps needs room for at least {least} states, not {max_states}"
        )
    return fitting[-1]


class _BackwardState(NamedTuple):
    """The adjoint of the states, and what D has received so far, on the way back through a window."""

    adjoint: StateAdjoint
    totals: list[DistilledData]
    """For each replica."""
    norms: list[Tensor]
    """Of each step's share in the image metagradients, [R], the last step first."""


def _backward_through(
    problem: InnerProblem,
    data: DistilledData,
    draws: Sequence[InnerDraws],
    unrolled: Trajectory,
    back: _BackwardState,
) -> _BackwardState:
    """Back through the steps of `unrolled`; `totals` and `norms` are added to in place."""
    adjoint, after = back.adjoint, unrolled.final
    for state, inner_grad_RP in zip(reversed(unrolled.states), reversed(unrolled.grads), strict=True):
        t = state.num_steps
        adjoint, lam_RP = problem.optimizer.adjoint(after, inner_grad_RP, adjoint)
        hessian_RP, mixed = problem.functions.products(state.theta_P, group_batches(data, draws, t), lam_RP)
        adjoint = adjoint._replace(theta_P=adjoint.theta_P + hessian_RP)
        replicas = zip(back.totals, draws, mixed.unstack(), strict=True)
        back.norms.append(
            torch.stack([accumulate_gradient(total, data, own, t, d) for total, own, d in replicas])
        )
        after = state
    return back._replace(adjoint=adjoint)


@torch.no_grad()
def adjoint_metagradients(
    problem: InnerProblem,
    data: DistilledData,
    draws: Sequence[InnerDraws],
    window: Window,
    real: Sequence[DistilledData],
) -> list[Metagradient]:
    """The metagradient of each of several replicas, tape-free, as one computation.

    The values are those of each replica alone, up to rounding; a NaN stays in its replica.

    Args:
        problem: network, inner optimiser, augmentation; how many states may be kept.
        data: D.
        draws: for each replica, initial parameters, batches and augmentations of at least window.end steps.
        window: differentiated steps; the state at its start is constant.
        real: for each replica, the real batch of its outer loss, already augmented.

    Raises: ValueError if the window does not fit into `problem.max_states`.
    """
    state = run_steps(problem, data, draws, initial_state(problem, draws), window.start)
    length = segment_length(window.length, problem.max_states)
    starts = []
    for begin in range(window.start, window.end - length, length) if length else ():
        starts.append(state)
        state = run_steps(problem, data, draws, state, begin + length - state.num_steps)
    unrolled = run_window(problem, data, draws, state, window.end - state.num_steps)
    grad_RP, loss_R = problem.functions.gradients(unrolled.final.theta_P, Batches.stack(real))
    adjoint = StateAdjoint(grad_RP, zero_moments(grad_RP, problem.optimizer.num_moments))
    totals = [DistilledData(*(torch.zeros_like(x) for x in data)) for _ in draws]
    back = _backward_through(problem, data, draws, unrolled, _BackwardState(adjoint, totals, []))
    while starts:
        del unrolled
        unrolled = run_window(problem, data, draws, starts.pop(), length)
        back = _backward_through(problem, data, draws, unrolled, back)
    norms_RW = torch.stack(back.norms[::-1], dim=1) if back.norms else loss_R.new_zeros(len(draws), 0)
    return [Metagradient(*one) for one in zip(back.totals, loss_R, norms_RW, strict=True)]


def adjoint_metagradient(
    problem: InnerProblem, data: DistilledData, draws: InnerDraws, window: Window, real: DistilledData
) -> Metagradient:
    """`adjoint_metagradients` of one replica."""
    return adjoint_metagradients(problem, data, [draws], window, [real])[0]


def per_replica(engine: Engine) -> GroupEngine:
    """The engine applied to each replica in turn."""

    def metagradients(
        problem: InnerProblem,
        data: DistilledData,
        draws: Sequence[InnerDraws],
        window: Window,
        real: Sequence[DistilledData],
    ) -> list[Metagradient]:
        return [engine(problem, data, own, window, batch) for own, batch in zip(draws, real, strict=True)]

    return metagradients
