"""Adam, SGD and their adjoints: against torch.optim, `higher`, autograd and closed forms."""

import math

import higher
import pytest
import torch
from torch import Tensor

from ray_distill.core.inner_optimizer import (
    EPS_CONVENTIONS,
    SGD,
    Adam,
    InnerOptimizer,
    InnerState,
    StateAdjoint,
)
from ray_distill.core.rng import Stream

SIZE = 40


def normal(name: str, place: int = 0) -> Tensor:
    return Stream(seed=6, name=name, outer_step=place).normal(SIZE, dtype=torch.float64)[0]


def gradients(num_steps: int) -> list[Tensor]:
    """Of sizes from 1e-6 to 1e2, with one parameter whose gradient is always 0 and one that is 0 at first."""
    scale = torch.logspace(-6, 2, SIZE, dtype=torch.float64)
    grads = [normal("grad", t) * scale for t in range(num_steps)]
    for t, grad in enumerate(grads):
        grad[3] = 0.0
        grad[4] *= t >= 2
    return grads


def run(optimizer: InnerOptimizer, theta: Tensor, grads: list[Tensor]) -> InnerState:
    state = optimizer.init(theta)
    for grad in grads:
        state = optimizer.step(state, grad)
    return state


ADAMS = [Adam(lr=1e-2), Adam(lr=3e-3, beta1=0.7, beta2=0.95, eps=1e-4)]


@pytest.mark.parametrize("optimizer", ADAMS)
def test_torch_convention_is_torch_optim_adam_step_for_step(optimizer: Adam) -> None:
    theta, grads = normal("theta"), gradients(20)
    parameter = theta.clone().requires_grad_()
    betas = (optimizer.beta1, optimizer.beta2)
    reference = torch.optim.Adam([parameter], lr=optimizer.lr, betas=betas, eps=optimizer.eps, foreach=False)
    state = optimizer.init(theta)
    for t, grad in enumerate(grads):
        parameter.grad = grad.clone()
        reference.step()
        state = optimizer.step(state, grad)
        assert state.num_steps == t + 1
        torch.testing.assert_close(state.theta_P, parameter.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state.moments[0], reference.state[parameter]["exp_avg"], rtol=1e-12, atol=0)
    torch.testing.assert_close(state.moments[1], reference.state[parameter]["exp_avg_sq"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("optimizer", ADAMS)
def test_higher_convention_is_highers_adam_step_for_step(optimizer: Adam) -> None:
    """The loss <g, theta> has the gradient g."""
    theta, grads = normal("theta"), gradients(20)
    parameter = theta.clone().requires_grad_()
    betas = (optimizer.beta1, optimizer.beta2)
    plain = torch.optim.Adam([parameter], lr=optimizer.lr, betas=betas, eps=optimizer.eps)
    reference = higher.optim.DifferentiableAdam(plain, [parameter], track_higher_grads=False)
    ours = Adam(lr=optimizer.lr, beta1=betas[0], beta2=betas[1], eps=optimizer.eps, eps_convention="higher")
    state, params = ours.init(theta), [parameter]
    for grad in grads:
        params = list(reference.step((params[0] * grad).sum(), params=params))
        state = ours.step(state, grad)
        torch.testing.assert_close(state.theta_P, params[0].detach(), rtol=1e-12, atol=1e-12)


def test_the_conventions_differ_by_the_bias_correction_of_eps() -> None:
    """First step from zero: -lr g / (|g| + e), e = eps ("torch") or eps / sqrt(1 - beta2) ("higher")."""
    grad = torch.tensor([0.5, -2.0, 0.0], dtype=torch.float64)
    for convention, eps in (("torch", 0.1), ("higher", 0.1 / math.sqrt(1 - 0.96))):
        optimizer = Adam(lr=0.3, beta2=0.96, eps=0.1, eps_convention=convention)
        moved = optimizer.step(optimizer.init(torch.zeros(3, dtype=torch.float64)), grad).theta_P
        torch.testing.assert_close(moved, -0.3 * grad / (grad.abs() + eps), rtol=1e-12, atol=0)


@pytest.mark.parametrize("convention", EPS_CONVENTIONS)
def test_adjoint_of_the_first_step_in_closed_form(convention: str) -> None:
    """theta' = theta - lr g / (|g| + e), so dtheta'/dg = -lr e / (|g| + e)^2, which at g = 0 is -lr / e.

    e is eps, or eps / sqrt(1 - beta2) for `higher`. With eps = 0.1 nothing cancels badly.
    """
    optimizer = Adam(lr=0.3, beta2=0.96, eps=0.1, eps_convention=convention)
    e = 0.1 if convention == "torch" else 0.1 / math.sqrt(1 - 0.96)
    grad = torch.tensor([0.5, -2.0, 1e-3, 0.0], dtype=torch.float64)
    lam = torch.tensor([1.0, -3.0, 2.0, 5.0], dtype=torch.float64)
    zero = torch.zeros_like(lam)
    after = optimizer.step(optimizer.init(zero), grad)
    before, lam_g = optimizer.adjoint(after, grad, StateAdjoint(lam, (zero, zero)))
    assert torch.equal(before.theta_P, lam)
    torch.testing.assert_close(lam_g, -0.3 * e * lam / (grad.abs() + e) ** 2, rtol=1e-12, atol=0)


OPTIMIZERS = [
    *(Adam(lr=1e-2, beta1=0.8, beta2=0.99, eps=1e-3, eps_convention=c) for c in EPS_CONVENTIONS),
    SGD(lr=0.1, momentum=0.8, weight_decay=0.3),
    SGD(lr=0.1, momentum=0.0, weight_decay=0.0),
]


def tensors(state: InnerState | StateAdjoint) -> tuple[Tensor, ...]:
    return state.theta_P, *state.moments


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("steps_before", [0, 1, 7])
def test_adjoint_is_autograd_through_the_step(optimizer: InnerOptimizer, steps_before: int) -> None:
    """For random adjoints of all tensors, where v' > 0 (autograd gives NaN at v' = 0)."""
    state = run(optimizer, normal("theta"), [normal("grad", t) for t in range(steps_before)])
    leaves = [x.clone().requires_grad_() for x in (*tensors(state), normal("grad", 99))]
    after = optimizer.step(InnerState(leaves[0], tuple(leaves[1:-1]), state.num_steps), leaves[-1])
    lam = [normal(f"lam-{i}") for i in range(1 + optimizer.num_moments)]
    expected = torch.autograd.grad(tensors(after), leaves, lam, materialize_grads=True)
    detached = InnerState(after.theta_P.detach(), tuple(x.detach() for x in after.moments), after.num_steps)
    adjoint = StateAdjoint(lam[0], tuple(lam[1:]))
    before, lam_g = optimizer.adjoint(detached, leaves[-1].detach(), adjoint)
    assert len(before.moments) == len(after.moments) == optimizer.num_moments
    for ours, reference in zip((*tensors(before), lam_g), expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("optimizer", OPTIMIZERS[2:], ids=str)
def test_sgd_is_torch_optim_sgd_step_for_step(optimizer: SGD) -> None:
    theta, grads = normal("theta"), gradients(20)
    parameter = theta.clone().requires_grad_()
    reference = torch.optim.SGD(
        [parameter], lr=optimizer.lr, momentum=optimizer.momentum, weight_decay=optimizer.weight_decay
    )
    state = optimizer.init(theta)
    for t, grad in enumerate(grads):
        parameter.grad = grad.clone()
        reference.step()
        state = optimizer.step(state, grad)
        assert state.num_steps == t + 1
        torch.testing.assert_close(state.theta_P, parameter.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("convention", EPS_CONVENTIONS)
def test_a_zero_gradient_gives_the_adjoint_of_the_first_moment_alone(convention: str) -> None:
    """With every g = 0, theta' = theta - a m' / eps to first order: lam_m' = -a lam / eps, v has no part."""
    optimizer = Adam(lr=1e-2, eps_convention=convention)
    zero = torch.zeros(SIZE, dtype=torch.float64)
    after = run(optimizer, normal("theta"), [zero, zero])
    lam = normal("lam")
    before, lam_g = optimizer.adjoint(after, zero, StateAdjoint(lam, (zero, zero)))
    c1, c2 = 1 - 0.9**2, 1 - 0.999**2
    lam_m = -(1e-2 / c1) * (1.0 if convention == "torch" else math.sqrt(c2)) * lam / 1e-8
    torch.testing.assert_close(before.moments[0], 0.9 * lam_m, rtol=1e-12, atol=0)
    torch.testing.assert_close(lam_g, 0.1 * lam_m, rtol=1e-12, atol=0)
    assert torch.equal(before.moments[1], zero)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_step_and_adjoint_do_not_write_to_their_arguments(optimizer: InnerOptimizer) -> None:
    grads = gradients(3)
    state = run(optimizer, normal("theta"), grads[:2])
    copies = [x.clone() for x in (*tensors(state), grads[2])]
    after = optimizer.step(state, grads[2])
    lam = [normal(f"lam-{i}") for i in range(1 + optimizer.num_moments)]
    adjoint = StateAdjoint(lam[0], tuple(lam[1:]))
    kept = [x.clone() for x in (*tensors(after), *tensors(adjoint))]
    optimizer.adjoint(after, grads[2], adjoint)
    values = (*tensors(state), grads[2], *tensors(after), *tensors(adjoint))
    for value, copy in zip(values, copies + kept, strict=True):
        assert torch.equal(value, copy)
