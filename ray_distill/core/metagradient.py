"""The truncated metagradient without a tape.

L(D) = cross entropy on a real batch of the network theta_{start + length} that was trained on D. The
metagradient is dL/dD through the window's steps, through parameters and moments, with the state at the
window's start held constant (the paper, algorithm 1).

The forward pass stores the window's states, not its activations. On the way back, each step
s_{t+1} = F(s_t, g_t), g_t = grad_theta l(theta_t, D_t) contributes: `optimizer.adjoint` turns
dL/ds_{t+1} into dL/ds_t at constant g_t and lambda = dL/dg_t; then one product

    grad_{theta, D_t} <lambda, grad_theta l(theta_t, D_t)>

adds the dependence of g_t on theta_t (a Hessian-vector product) and on D_t (a mixed product). The step's
augmentation and the choice of its batch are differentiated outside that product, so they need only be
differentiable once. Memory: for each window step the state and g, (2 + moments) P floats, and the
activations of one microbatch. If that is too much, only every k-th state is stored and the segments in between
are recomputed, the last first, at the cost of one more gradient per step (checkpointing).

Several replicas with the same window can be computed together as one grouped network: states and gradients have a
row for each; batches and augmentations are each replica's own.

In float32 a metagradient has a relative error of 1 to 10% with ReLU networks, in any engine: gradients agree to 1e-6
at the same parameters, but rounding pushes some units over their kink, and the adjoint, which divides by sqrt(v),
amplifies a few parameters. With smooth units it is 1e-6 to 1e-4. It is worse for a window that includes the first
step of Adam, which is close to sign(g) (LOG, 2026-11-25).
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
    """dL/dD and the outer loss L (0-d)."""

    grad: DistilledData
    outer_loss: Tensor
    position_norms_W: Tensor | None = None
    """L2 norm of each window step's contribution to the image metagradient, if the engine provides it."""


Engine = Callable[[InnerProblem, DistilledData, InnerDraws, Window, DistilledData], Metagradient]
"""(problem, D, draws, window, real batch) -> metagradient: the adjoint below, or `higher_reference`."""

GroupEngine = Callable[
    [InnerProblem, DistilledData, Sequence[InnerDraws], Window, Sequence[DistilledData]], list[Metagradient]
]
"""(problem, D, draws of each replica, window, their real batches) -> the metagradient of each replica."""


def accumulate_gradient(
    total: DistilledData, data: DistilledData, draws: InnerDraws, t: int, cotangent: DistilledData
) -> Tensor:
    """Add to `total`, in place, the gradient with respect to D of <cotangent, inner_batch(D, t)>.

    Only the batch's rows are touched, so the cost does not grow with D. They are distinct, so the order of the
    additions does not matter.

    Returns: the L2 norm of the images' contribution (0-d).
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
    """The length k of the segments in which a window of `length` steps is replayed; `length`: no replay.

    Storing every k-th state, and all states of the current segment, takes ceil(length / k) + k states. Replay costs
    one more gradient per step whatever k, so the largest k that fits is best.
    Raises: ValueError if even the minimum, about 2 sqrt(length) states, does not fit.
    """
    if max_states is None or length <= max_states:
        return length
    fitting = [k for k in range(1, length) if -(-length // k) + k <= max_states]
    if not fitting:
        least = min(-(-length // k) + k for k in range(1, length + 1))
        raise ValueError(
            f"a window of {length} steps needs memory for at least {least} states, not {max_states}"
        )
    return fitting[-1]


class _BackwardState(NamedTuple):
    """The state of the backward pass: the adjoint, and the metagradients accumulated so far."""

    adjoint: StateAdjoint
    totals: list[DistilledData]
    """One per replica."""
    norms: list[Tensor]
    """L2 norms of each step's contribution to the image metagradients, [R], the last step first."""


def _backward_through(
    problem: InnerProblem,
    data: DistilledData,
    draws: Sequence[InnerDraws],
    unrolled: Trajectory,
    back: _BackwardState,
) -> _BackwardState:
    """Backpropagate through the steps of `unrolled`; updates `totals` and `norms` in place."""
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
    """The metagradients of several replicas, tape-free, as one computation.

    The values are those of each replica alone, up to rounding; a NaN stays in its replica.

    Args:
        problem: network, inner optimiser, augmentation and the number of states that may be stored.
        data: D.
        draws: for each replica, initial parameters, batches and augmentations of at least window.end steps.
        window: the differentiated steps; the state at its start is constant.
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
    """`adjoint_metagradients` for one replica."""
    return adjoint_metagradients(problem, data, [draws], window, [real])[0]


def per_replica(engine: Engine) -> GroupEngine:
    """A group engine that applies `engine` to one replica after another."""

    def metagradients(
        problem: InnerProblem,
        data: DistilledData,
        draws: Sequence[InnerDraws],
        window: Window,
        real: Sequence[DistilledData],
    ) -> list[Metagradient]:
        return [engine(problem, data, own, window, batch) for own, batch in zip(draws, real, strict=True)]

    return metagradients
