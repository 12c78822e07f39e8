"""The metagradient computed by `higher` (Grefenstette et al., 2019), the reference in the tests.

It shares only the inner batches and the initial parameters with the adjoint: unroll, optimiser and
differentiation are higher's, with a tape through the whole window.
"""

import copy
import math

import higher
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_distill.core.distilled import DistilledData
from ray_distill.core.inner_optimizer import SGD, Adam, InnerOptimizer
from ray_distill.core.metagradient import Metagradient
from ray_distill.core.truncation import Window
from ray_distill.core.unroll import InnerDraws, InnerProblem, inner_batch


class _TorchEpsAdam(higher.optim.DifferentiableAdam):  # type: ignore[misc]
    """higher's Adam with eps added after the bias correction of v, as in torch.optim.Adam."""

    def _update(self, grouped_grads: list[list[Tensor]], **_: object) -> None:
        (group,), (grads,), (states,) = self.param_groups, grouped_grads, self.state
        beta1, beta2 = group["betas"]
        for i, (p, g) in enumerate(zip(group["params"], grads, strict=True)):
            state = states[i]
            state["step"] += 1
            state["exp_avg"] = beta1 * state["exp_avg"] + (1 - beta1) * g
            v = state["exp_avg_sq"] = beta2 * state["exp_avg_sq"] + (1 - beta2) * g * g
            if v.requires_grad:
                v.register_hook(lambda grad, zero=v == 0: grad.masked_fill(zero, 0.0))
            c1, c2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
            root = v.sqrt() / math.sqrt(c2)
            group["params"][i] = p - (group["lr"] / c1) * state["exp_avg"] / (root + group["eps"])


def _materialise(problem: InnerProblem, theta_P: Tensor) -> nn.Module:
    """The network as an ordinary module with the parameters theta."""
    module = copy.deepcopy(problem.network.module).to_empty(device=theta_P.device).to(theta_P.dtype)
    for p, value in zip(module.parameters(), problem.network.unflatten(theta_P).values(), strict=True):
        p.data = value.clone()
    return module


_MOMENTS = {Adam: ("exp_avg", "exp_avg_sq"), SGD: ("momentum_buffer",)}


def _differentiable_optimizer(
    config: InnerOptimizer,
    parameters: list[Tensor],
    moments: list[dict[str, Tensor]],
    num_steps: int,
    track: bool,
) -> "higher.optim.DifferentiableOptimizer":
    """Higher's optimiser over the parameters, starting from the given moments."""
    plain: torch.optim.Optimizer
    match config:
        case Adam():
            betas = (config.beta1, config.beta2)
            plain = torch.optim.Adam(parameters, lr=config.lr, betas=betas, eps=config.eps)
            torch_eps = config.eps_convention == "torch"
            kind = _TorchEpsAdam if torch_eps else higher.optim.DifferentiableAdam
        case SGD():
            plain = torch.optim.SGD(
                parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
            )
            kind = higher.optim.DifferentiableSGD
    for p, state in zip(parameters, moments, strict=True):
        plain.state[p] = {"step": num_steps, **state}
    return kind(plain, parameters, track_higher_grads=track)


def higher_metagradient(
    problem: InnerProblem, data: DistilledData, draws: InnerDraws, window: Window, real: DistilledData
) -> Metagradient:
    """The metagradient of one replica through `higher`, a drop-in for `adjoint_metagradient`."""
    module = _materialise(problem, draws.theta_P)
    reference: list[Tensor] = list(module.parameters())
    network = higher.monkeypatch(module, track_higher_grads=True)
    params: list[Tensor] = [p.detach().clone().requires_grad_() for p in reference]
    names = _MOMENTS[type(problem.optimizer)]
    zeros = [{name: torch.zeros_like(p) for name in names} for p in reference]
    images, labels = (x.detach().requires_grad_() for x in data)
    leaf = DistilledData(images, labels)

    def steps(first: int, last: int, optimizer: "higher.optim.DifferentiableOptimizer") -> None:
        nonlocal params
        for t in range(first, last):
            batch = inner_batch(leaf, draws, t)
            loss = F.cross_entropy(network(batch.images_NCHW, params=params), batch.labels_NK)
            params = list(optimizer.step(loss, params=params))

    burn_in = _differentiable_optimizer(problem.optimizer, reference, zeros, 0, track=False)
    steps(0, window.start, burn_in)
    # The window's first state is constant: detach parameters and moments.
    params = [p.detach().requires_grad_() for p in params]
    detached = [
        {name: state[name].detach() for name in names} if names[0] in state else zero
        for state, zero in zip((burn_in.state[0][i] for i in range(len(params))), zeros, strict=True)
    ]
    tracked = _differentiable_optimizer(problem.optimizer, reference, detached, window.start, track=True)
    steps(window.start, window.end, tracked)
    loss = F.cross_entropy(network(real.images_NCHW, params=params), real.labels_NK)
    grads = torch.autograd.grad(loss, (images, labels))
    return Metagradient(DistilledData(*grads), loss.detach())
