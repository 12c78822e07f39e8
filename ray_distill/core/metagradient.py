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
differentiable once. Memory: 4 P floats for each window step (theta, two moments, g), one step's
activations, and those of the real batch.

In float32 a window that includes the first step of Adam is off by some percent, in this and in any other
engine: there the step is close to sign(g), and the few parameters with |g| near eps dominate. A burn-in
of one step already brings the difference to about 1e-5.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ray_distill.core import augment
from ray_distill.core.distilled import DistilledData
from ray_distill.core.inner_optimizer import StateAdjoint
from ray_distill.core.networks import Network
from ray_distill.core.truncation import Window
from ray_distill.core.unroll import (
    InnerDraws,
    InnerProblem,
    cross_entropy,
    inner_batch,
    run_steps,
    run_window,
)


class Metagradient(NamedTuple):
    """dL/dD, and the outer loss L (a 0-d tensor) that it is the gradient of."""

    grad: DistilledData
    outer_loss: Tensor


Engine = Callable[[InnerProblem, DistilledData, InnerDraws, Window, DistilledData], Metagradient]
"""(problem, D, draws, window, real batch) -> metagradient. The adjoint below, or `higher_reference`."""


def outer_loss_and_gradient(network: Network, theta_P: Tensor, real: DistilledData) -> tuple[Tensor, Tensor]:
    """L on the real batch and dL/dtheta: a 0-d tensor and [P]."""
    with torch.enable_grad():
        theta_P = theta_P.detach().requires_grad_()
        loss = cross_entropy(network, theta_P, real)
        (grad_P,) = torch.autograd.grad(loss, theta_P)
    return loss.detach(), grad_P


def second_order_product(
    network: Network, theta_P: Tensor, batch: DistilledData, lam_P: Tensor
) -> tuple[Tensor, DistilledData]:
    """grad_{theta, batch} of <lam, grad_theta l(theta, batch)>, reverse over reverse, lam constant.

    Returns: the Hessian-vector product [P], and the mixed product with the batch's shapes.
    """
    with torch.enable_grad():
        theta_P = theta_P.detach().requires_grad_()
        images, labels = (x.detach().requires_grad_() for x in batch)
        loss = cross_entropy(network, theta_P, DistilledData(images, labels))
        (grad_P,) = torch.autograd.grad(loss, theta_P, create_graph=True)
        hessian_P, d_images, d_labels = torch.autograd.grad(grad_P, (theta_P, images, labels), lam_P)
    return hessian_P, DistilledData(d_images, d_labels)


def add_pulled_back(
    total: DistilledData, data: DistilledData, draws: InnerDraws, t: int, cotangent: DistilledData
) -> None:
    """Add to `total`, in place, the gradient with respect to D of <cotangent, inner_batch(D, t)>.

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


@torch.no_grad()
def adjoint_metagradient(
    problem: InnerProblem, data: DistilledData, draws: InnerDraws, window: Window, real: DistilledData
) -> Metagradient:
    """The metagradient of one replica, tape-free.

    Args:
        problem: network, inner optimiser, augmentation.
        data: D.
        draws: initial parameters, batches and augmentations of at least window.end inner steps.
        window: differentiated steps; the state at its start is constant.
        real: the real batch of the outer loss, already augmented.
    """
    network, optimizer = problem.network, problem.optimizer
    start = run_steps(problem, data, draws, optimizer.init(draws.theta_P), window.start)
    unrolled = run_window(problem, data, draws, start, window.length)
    loss, grad_P = outer_loss_and_gradient(network, unrolled.final.theta_P, real)
    adjoint = StateAdjoint(grad_P, torch.zeros_like(grad_P), torch.zeros_like(grad_P))
    total = DistilledData(*(torch.zeros_like(x) for x in data))
    after = unrolled.final
    for state, inner_grad_P in zip(reversed(unrolled.states), reversed(unrolled.grads), strict=True):
        adjoint, lam_P = optimizer.adjoint(after, inner_grad_P, adjoint)
        batch = inner_batch(data, draws, state.num_steps)
        hessian_P, mixed = second_order_product(network, state.theta_P, batch, lam_P)
        adjoint = adjoint._replace(theta_P=adjoint.theta_P + hessian_P)
        add_pulled_back(total, data, draws, state.num_steps, mixed)
        after = state
    return Metagradient(total, loss)
