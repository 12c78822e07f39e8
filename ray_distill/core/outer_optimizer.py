"""The outer optimiser: from a metagradient to a step on D.

The gradient is clipped to a multiple of a moving average of its norm, then Adam (Kingma and Ba, 2015). The average is
first updated with the current norm, as in the paper's code: the first step never clips, and a spike is only damped.
The lr is a schedule over outer steps, skipped ones included; Adam's bias correction counts the steps taken.

Labels may be learnt too, by a separate Adam with a fraction of the lr. Their metagradient is not clipped and not part
of the images' norm. After each step they are clamped at 0, since a negative target would reward a wrong class without
bound; they are not normalised.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ray_distill.core.distilled import DistilledData
from ray_distill.core.schedules import Schedule


class Moments(NamedTuple):
    """Adam's averages of a gradient and of its square."""

    m: Tensor
    v: Tensor

    @classmethod
    def zeros_like(cls, values: Tensor) -> "Moments":
        """Before the first step."""
        return cls(torch.zeros_like(values), torch.zeros_like(values))


class OuterState(NamedTuple):
    """The outer optimiser's state between steps."""

    images: Moments
    labels: Moments | None
    """None if labels are not learnt."""
    num_steps: int
    clip_ema: float | None
    """Moving average of the norm of the images' metagradient; None before the first step."""


class OuterReport(NamedTuple):
    """Statistics of one step, for the logs."""

    metagradient_norm: float
    """Of the images, before clipping."""
    clip_ema: float
    clipped: bool
    label_metagradient_norm: float | None
    """None if labels are not learnt."""


@dataclass(frozen=True, kw_only=True)
class OuterOptimizer:
    """Clipping by an EMA of the norm and Adam on the images; optionally, Adam on the labels."""

    lr: Schedule
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_ema_decay: float = 0.9
    clip_multiple: float = 2.0
    label_lr_scale: float | None = None
    """Labels are learnt with lr / label_lr_scale; None: they are constant."""

    def init(self, data: DistilledData) -> OuterState:
        """The state before the first step."""
        labels = None if self.label_lr_scale is None else Moments.zeros_like(data.labels_NK)
        return OuterState(Moments.zeros_like(data.images_NCHW), labels, 0, None)

    def _adam(
        self, values: Tensor, moments: Moments, grad: Tensor, lr: float, num_steps: int
    ) -> tuple[Tensor, Moments]:
        """Step number `num_steps`, counted from 1: theta' = theta - lr (m'/c1) / (sqrt(v'/c2) + eps)."""
        m = self.beta1 * moments.m + (1.0 - self.beta1) * grad
        v = self.beta2 * moments.v + (1.0 - self.beta2) * grad * grad
        c1, c2 = 1.0 - self.beta1**num_steps, 1.0 - self.beta2**num_steps
        return values - (lr / c1) * m / (v.sqrt() / math.sqrt(c2) + self.eps), Moments(m, v)

    def step(
        self, data: DistilledData, state: OuterState, metagradient: DistilledData, outer_step: int
    ) -> tuple[DistilledData, OuterState, OuterReport]:
        """One step of D with a (finite) metagradient and the lr of the outer step.

        For the images e' = decay e + (1 - decay) |g|, e' = |g| at the first step; g is scaled to norm
        min(|g|, multiple e'); then Adam. For the labels Adam on their unclipped g, then max(labels, 0).
        """
        norm = float(metagradient.images_NCHW.norm())
        previous = norm if state.clip_ema is None else state.clip_ema
        ema = self.clip_ema_decay * previous + (1.0 - self.clip_ema_decay) * norm
        clipped = norm > self.clip_multiple * ema
        scale = self.clip_multiple * ema / norm if clipped else 1.0
        grad = metagradient.images_NCHW * scale
        lr, num_steps = self.lr.at(outer_step), state.num_steps + 1
        images, image_moments = self._adam(data.images_NCHW, state.images, grad, lr, num_steps)
        labels, label_moments, label_norm = data.labels_NK, None, None
        if self.label_lr_scale is not None:
            assert state.labels is not None, "the state belongs to an optimiser that does not learn labels"
            label_norm = float(metagradient.labels_NK.norm())
            label_lr = lr / self.label_lr_scale
            labels, label_moments = self._adam(
                labels, state.labels, metagradient.labels_NK, label_lr, num_steps
            )
            labels = labels.clamp(min=0.0)
        return (
            DistilledData(images, labels),
            OuterState(image_moments, label_moments, num_steps, ema),
            OuterReport(norm, ema, clipped, label_norm),
        )
