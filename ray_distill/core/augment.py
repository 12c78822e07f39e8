"""Differentiable augmentation: drawing the parameters (data) apart from applying them (a pure function).

At each step one of the listed operations is drawn for the whole batch and its magnitude for each image,
as in the paper's `flip_rotate` (after DSA: Zhao and Bilen, ICML 2021). A draw is a value: the adjoint
applies the same one again. Another operation is one more row in OPERATIONS.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ray_distill.core.rng import Stream

MAX_ROTATION_RAD = math.radians(15.0)


class AugmentDraw(NamedTuple):
    """One step's augmentation: the operation and a magnitude for each image."""

    operation: str
    magnitudes_B: Tensor


def _flip(images_BCHW: Tensor, magnitudes_B: Tensor) -> Tensor:
    """Mirror left-right the images whose magnitude is below one half."""
    return torch.where((magnitudes_B < 0.5)[:, None, None, None], images_BCHW.flip(-1), images_BCHW)


def _rotate(images_BCHW: Tensor, magnitudes_B: Tensor) -> Tensor:
    """Rotate by (2 m - 1) x 15 degrees about the centre, counter-clockwise for m > 1/2; bilinear, zeros outside.

    Angles are true ones on images of any aspect. On CUDA the gradient sums with atomics, so its last bits
    may vary from run to run.
    """
    angle = ((2.0 * magnitudes_B - 1.0) * MAX_ROTATION_RAD)[:, None, None]
    cos, sin = torch.cos(angle), torch.sin(angle)
    height, width = images_BCHW.shape[2:]
    # Pixel centres as distances from the image's centre, in pixels. Written out, and not as a matrix
    # product, which TF32 would round.
    y = torch.arange(height, dtype=angle.dtype, device=angle.device)[:, None] - (height - 1) / 2
    x = torch.arange(width, dtype=angle.dtype, device=angle.device)[None, :] - (width - 1) / 2
    grid = torch.stack(((cos * x - sin * y) * (2 / width), (sin * x + cos * y) * (2 / height)), dim=-1)
    return F.grid_sample(images_BCHW, grid, align_corners=False)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"flip": _flip, "rotate": _rotate}
"""Name -> (images [B, C, H, W], magnitudes uniform on [0, 1) [B]) -> images. Differentiable in the images."""


def draw(
    operations: tuple[str, ...],
    choice: Stream,
    magnitude: Stream,
    inner_steps: range,
    batch: int,
    dtype: torch.dtype,
) -> list[AugmentDraw | None]:
    """One draw for each inner step; None where there is no operation to choose from.

    Args:
        operations: names from OPERATIONS; one is chosen at each step with equal probability.
        choice, magnitude: streams of the operation and of the magnitudes.
        batch: images per step.
    """
    if not operations:
        return [None] * len(inner_steps)
    chosen = (choice.words(1, inner_steps)[:, 0] % len(operations)).tolist()
    magnitudes = magnitude.uniform(batch, inner_steps, dtype=dtype)
    return [AugmentDraw(operations[c], m) for c, m in zip(chosen, magnitudes, strict=True)]


def apply(images_BCHW: Tensor, drawn: AugmentDraw | None) -> Tensor:
    """The augmented images, [B, C, H, W]; differentiable (once) in the images, the draw is constant."""
    if drawn is None:
        return images_BCHW
    return OPERATIONS[drawn.operation](images_BCHW, drawn.magnitudes_B)
