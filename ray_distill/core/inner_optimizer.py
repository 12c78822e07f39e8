"""Inner optimisers as (init, step, adjoint of step) over small states.

A state is s_t = (theta_t, moments_t, t). `adjoint` carries the gradient of some scalar L with respect to
s_{t+1} back to s_t and to the inner gradient g_t = grad_theta l(theta_t, D_t). The dependence of g_t on
theta_t and D_t is added by `metagradient`, with a Hessian-vector product.

Everything is elementwise, so each [P] may also be [R, P] for R replicas.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

EPS_CONVENTIONS = ("torch", "higher")


class InnerState(NamedTuple):
    """Parameters, the optimiser's moments (each [P] or, for R replicas, [R, P]), and the number of steps taken."""

    theta_P: Tensor
    moments: tuple[Tensor, ...]
    num_steps: int


class StateAdjoint(NamedTuple):
    """Gradients of a scalar with respect to the tensors of an InnerState."""

    theta_P: Tensor
    moments: tuple[Tensor, ...]


def zero_moments(theta_P: Tensor, count: int) -> tuple[Tensor, ...]:
    """`count` vectors of zeros like theta."""
    return tuple(torch.zeros_like(theta_P) for _ in range(count))


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent with momentum and weight decay, as torch.optim.SGD without dampening.

    d = g + weight_decay theta;  b' = momentum b + d (b = 0 at first);  theta' = theta - lr b'.
    """

    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4

    num_moments: ClassVar[int] = 1
    """Number of moment vectors in a state, each of the size of theta."""

    def init(self, theta_P: Tensor) -> InnerState:
        """The state before the first step: a zero momentum buffer."""
        return InnerState(theta_P, zero_moments(theta_P, 1), 0)

    def step(self, state: InnerState, grad_P: Tensor) -> InnerState:
        """One step along the inner gradient."""
        (buffer_P,) = state.moments
        buffer_P = self.momentum * buffer_P + grad_P + self.weight_decay * state.theta_P
        return InnerState(state.theta_P - self.lr * buffer_P, (buffer_P,), state.num_steps + 1)

    def adjoint(
        self, after: InnerState, grad_P: Tensor, adjoint: StateAdjoint
    ) -> tuple[StateAdjoint, Tensor]:
        """The gradient of L at s_{t+1}, propagated back through the step; linear, so it needs neither s nor g.

        Returns: dL/d(theta, b) at constant g, and dL/dg at constant (theta, b).
        """
        lam_g_P = adjoint.moments[0] - self.lr * adjoint.theta_P
        theta_P = adjoint.theta_P + self.weight_decay * lam_g_P
        return StateAdjoint(theta_P, (self.momentum * lam_g_P,)), lam_g_P


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam (Kingma and Ba, 2015) without weight decay, with either of two conventions for eps.

    With c1 = 1 - beta1^t and c2 = 1 - beta2^t after t steps,
    "torch":  theta' = theta - lr (m'/c1) / (sqrt(v'/c2) + eps), as torch.optim.Adam computes;
    "higher": theta' = theta - lr (sqrt(c2)/c1) m' / (sqrt(v') + eps), as `higher` 0.2.1 computes.
    Both are theta - a m' / (s sqrt(v') + eps) for scalars a and s.
    """

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    eps_convention: str = "torch"

    num_moments: ClassVar[int] = 2

    def init(self, theta_P: Tensor) -> InnerState:
        """The state before the first step: zero moments."""
        return InnerState(theta_P, zero_moments(theta_P, 2), 0)

    def _scalars(self, num_steps: int) -> tuple[float, float]:
        """(a, s) of step number `num_steps`, counted from 1."""
        c1, c2 = 1.0 - self.beta1**num_steps, 1.0 - self.beta2**num_steps
        if self.eps_convention == "torch":
            return self.lr / c1, 1.0 / math.sqrt(c2)
        return self.lr * math.sqrt(c2) / c1, 1.0

    def step(self, state: InnerState, grad_P: Tensor) -> InnerState:
        """One step along the inner gradient."""
        m_P, v_P = state.moments
        m_P = self.beta1 * m_P + (1.0 - self.beta1) * grad_P
        v_P = self.beta2 * v_P + (1.0 - self.beta2) * grad_P * grad_P
        a, s = self._scalars(state.num_steps + 1)
        theta_P = state.theta_P - a * m_P / (s * v_P.sqrt() + self.eps)
        return InnerState(theta_P, (m_P, v_P), state.num_steps + 1)

    def adjoint(
        self, after: InnerState, grad_P: Tensor, adjoint: StateAdjoint
    ) -> tuple[StateAdjoint, Tensor]:
        """The gradient of L at s_{t+1} = `after`, propagated back through the step.

        Args:
            after: the state after the step (its moments are m', v').
            grad_P: the inner gradient g of the step.
            adjoint: dL/d(theta', m', v').

        Returns: dL/d(theta, m, v) at constant g, and dL/dg at constant (theta, m, v).

        Where v' = 0 the square root has no derivative; its contribution there is 0, as in `higher`. That is
        correct: v' = 0 means that every g so far is 0 (a dead unit), or its square underflows; to first order
        the step then depends on g through m' alone.
        """
        a, s = self._scalars(after.num_steps)
        m_P, v_P = after.moments
        root_P = v_P.sqrt()
        denominator_P = s * root_P + self.eps
        lam_m_P = adjoint.moments[0] - a * adjoint.theta_P / denominator_P
        droot_P = adjoint.theta_P * (a * s) * m_P / (denominator_P * denominator_P)
        lam_v_P = adjoint.moments[1] + torch.where(root_P > 0, 0.5 * droot_P / root_P, 0.0)
        lam_g_P = (1.0 - self.beta1) * lam_m_P + (2.0 * (1.0 - self.beta2)) * grad_P * lam_v_P
        return StateAdjoint(adjoint.theta_P, (self.beta1 * lam_m_P, self.beta2 * lam_v_P)), lam_g_P


InnerOptimizer = SGD | Adam
