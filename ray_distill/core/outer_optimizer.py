"""The outer optimiser: a metagradient turned into a step on D.

Clip to a multiple of a moving average of the norm, then Adam (Kingma and Ba, 2015). The average is
updated with the current norm first, so the first step never clips and a spike passes softened, as the
paper's authors do it.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ray_distill.core.distilled import DistilledData


class OuterState(NamedTuple):
    """What the outer optimiser remembers between steps."""

    m_images_NCHW: Tensor
    v_images_NCHW: Tensor
    num_steps: int
    clip_ema: float | None
    """Moving average of the metagradient's norm; None before the first step."""


class OuterReport(NamedTuple):
    """What one step did, for the logs."""

    metagradient_norm: float
    clip_ema: float
    clipped: bool


@dataclass(frozen=True, kw_only=True)
class OuterOptimizer:
    """EMA-of-norm clipping and Adam on the images; the labels stay as they are."""

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_ema_decay: float = 0.9
    clip_multiple: float = 2.0

    def init(self, data: DistilledData) -> OuterState:
        """The state before the first step."""
        zeros = torch.zeros_like(data.images_NCHW)
        return OuterState(zeros, zeros, 0, None)

    def step(
        self, data: DistilledData, state: OuterState, metagradient: DistilledData
    ) -> tuple[DistilledData, OuterState, OuterReport]:
        """One step of D along the (finite) metagradient of the images.

        e' = decay e + (1 - decay) |g|, e' = |g| at the first step; g is scaled to norm
        min(|g|, multiple e'); then theta' = theta - lr (m'/c1) / (sqrt(v'/c2) + eps).
        """
        norm = float(metagradient.images_NCHW.norm())
        previous = norm if state.clip_ema is None else state.clip_ema
        ema = self.clip_ema_decay * previous + (1.0 - self.clip_ema_decay) * norm
        clipped = norm > self.clip_multiple * ema
        scale = self.clip_multiple * ema / norm if clipped else 1.0
        grad = metagradient.images_NCHW * scale
        m = self.beta1 * state.m_images_NCHW + (1.0 - self.beta1) * grad
        v = self.beta2 * state.v_images_NCHW + (1.0 - self.beta2) * grad * grad
        num_steps = state.num_steps + 1
        c1, c2 = 1.0 - self.beta1**num_steps, 1.0 - self.beta2**num_steps
        images = data.images_NCHW - (self.lr / c1) * m / (v.sqrt() / math.sqrt(c2) + self.eps)
        return (
            data._replace(images_NCHW=images),
            OuterState(m, v, num_steps, ema),
            OuterReport(norm, ema, clipped),
        )
