"""Differentiable augmentation: drawing the parameters (data) apart from applying them (a pure function).

The operations are those of DSA (Zhao and Bilen, ICML 2021), which the paper uses. A draw is a value: the
adjoint applies the same one again. Another operation is one more row in OPERATIONS.

Axes, beside those of the package: M numbers that an operation takes for each image.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ray_distill.core.rng import Stream

MAX_ROTATION_RAD = math.radians(15.0)
MAX_SHIFT = 0.125
"""Fraction of each side."""
MAX_SCALE = 1.2
CUT_SIDE = 0.5
"""Fraction of each side."""


class AugmentDraw(NamedTuple):
    """One step's augmentation: the operations in the order in which they are applied; none, if empty."""

    operations: tuple[str, ...]
    magnitudes: tuple[Tensor, ...]
    """For each operation, its numbers for each image, uniform on [0, 1): [B, M]."""


def _pixels(side: int, fraction: float) -> int:
    """A fraction of a side in whole pixels, halves rounded up."""
    return int(fraction * side + 0.5)


def _uniform_index(uniform_B: Tensor, places: int) -> Tensor:
    """Uniform on the integers 0 .. places - 1: int64 [B]."""
    # In float64, where the product with a number of 24 bits is exact, so that every dtype finds one place.
    return (uniform_B.double() * places).long()


def _brightness(images_BCHW: Tensor, magnitudes_BM: Tensor) -> Tensor:
    """Add m - 1/2."""
    return images_BCHW + (magnitudes_BM - 0.5)[:, :, None, None]


def _saturation(images_BCHW: Tensor, magnitudes_BM: Tensor) -> Tensor:
    """Differences from grey, which is the mean over the channels, times 2 m. The identity on one channel."""
    grey_B1HW = images_BCHW.mean(dim=1, keepdim=True)
    return (images_BCHW - grey_B1HW) * (2.0 * magnitudes_BM)[:, :, None, None] + grey_B1HW


def _contrast(images_BCHW: Tensor, magnitudes_BM: Tensor) -> Tensor:
    """Differences from the mean over the whole image times m + 1/2."""
    mean_B111 = images_BCHW.mean(dim=(1, 2, 3), keepdim=True)
    return (images_BCHW - mean_B111) * (magnitudes_BM + 0.5)[:, :, None, None] + mean_B111


def _color(images_BCHW: Tensor, magnitudes_BM: Tensor) -> Tensor:
    """Brightness, saturation and contrast, by a number each; exactly, their order does not matter.

    On one channel saturation does nothing.
    """
    brightness, saturation, contrast = magnitudes_BM.split(1, dim=1)
    return _contrast(_saturation(_brightness(images_BCHW, brightness), saturation), contrast)


def _flip(images_BCHW: Tensor, magnitudes_BM: Tensor) -> Tensor:
    """Mirror left-right the images whose magnitude is below one half."""
    return torch.where((magnitudes_BM < 0.5)[:, :, None, None], images_BCHW.flip(-1), images_BCHW)


def _crop(images_BCHW: Tensor, magnitudes_BM: Tensor) -> Tensor:
    """Shift by whole pixels in each axis, uniformly from -1/8 to 1/8 of that side; zeros come in.

    No pixel is read twice, so the gradient sums nothing and is the same on every device.
    """
    channels, height, width = images_BCHW.shape[1:]
    down, right = _pixels(height, MAX_SHIFT), _pixels(width, MAX_SHIFT)
    # The corner of the part that is kept of the padded image.
    top_B, left_B = (
        _uniform_index(magnitudes_BM[:, 0], 2 * down + 1),
        _uniform_index(magnitudes_BM[:, 1], 2 * right + 1),
    )
    row_stride = width + 2 * right
    rows, columns = (torch.arange(side, device=images_BCHW.device) for side in (height, width))
    pixel_HW = rows[:, None] * row_stride + columns
    source = (top_B * row_stride + left_B)[:, None, None] + pixel_HW
    padded = F.pad(images_BCHW, (right, right, down, down)).flatten(2)
    kept = padded.gather(2, source.flatten(1)[:, None].expand(-1, channels, -1))
    return kept.view_as(images_BCHW)


def _pixel_offsets(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel centres as distances from the image's centre, in pixels: down [H, 1], right [W]."""
    dtype, device = images_BCHW.dtype, images_BCHW.device
    down, right = (
        torch.arange((1 - side) / 2, side / 2, dtype=dtype, device=device) for side in images_BCHW.shape[2:]
    )
    return down[:, None], right


def _sample(images_BCHW: Tensor, down_BHW: Tensor, right_BHW: Tensor) -> Tensor:
    """The images at distances from the centre in pixels, one point per pixel of the result; zeros outside.

    Bilinear. On CUDA the gradient sums with atomics, so its last bits may vary from run to run.
    """
    height, width = images_BCHW.shape[2:]
    grid = torch.stack((right_BHW * (2 / width), down_BHW * (2 / height)), dim=-1)
    return F.grid_sample(images_BCHW, grid, align_corners=False)


def _scale(images_BCHW: Tensor, magnitudes_BM: Tensor) -> Tensor:
    """Shrink about the centre by a factor for each axis, uniform on 1/1.2 .. 1.2; bilinear, zeros outside."""
    factor = torch.add(1 / MAX_SCALE, magnitudes_BM, alpha=MAX_SCALE - 1 / MAX_SCALE)[:, :, None, None]
    down, right = _pixel_offsets(images_BCHW)
    down_BHW, right_BHW = torch.broadcast_tensors(factor[:, 0] * down, factor[:, 1] * right)
    return _sample(images_BCHW, down_BHW, right_BHW)


def _rotate(images_BCHW: Tensor, magnitudes_BM: Tensor) -> Tensor:
    """Rotate by (2 m - 1) x 15 degrees about the centre, counter-clockwise for m > 1/2; bilinear, zeros outside.

    Angles are true ones on images of any aspect.
    """
    angle = ((2.0 * magnitudes_BM - 1.0) * MAX_ROTATION_RAD)[:, :, None]
    cos, sin = torch.cos(angle), torch.sin(angle)
    down, right = _pixel_offsets(images_BCHW)
    # Written out, and not as a matrix product, which TF32 would round.
    return _sample(images_BCHW, sin * right + cos * down, cos * right - sin * down)


def _cutout(images_BCHW: Tensor, magnitudes_BM: Tensor) -> Tensor:
    """Zero a square of half the side (of half of each, if they differ), which may hang over the border.

    Its centre is uniform on the image, as in DSA; a square of even side has its centre between pixels.
    """
    inside = []
    for uniform_B, side in zip(magnitudes_BM.unbind(1), images_BCHW.shape[2:], strict=True):
        cut = _pixels(side, CUT_SIDE)
        first_B = _uniform_index(uniform_B, side + 1 - cut % 2) - cut // 2
        offset = torch.arange(side, device=images_BCHW.device) - first_B[:, None]
        inside.append((offset >= 0) & (offset < cut))
    rows, columns = inside
    return images_BCHW.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


class Operation(NamedTuple):
    """One augmentation."""

    apply: Callable[[Tensor, Tensor], Tensor]
    """(images_BCHW, magnitudes_BM) -> images_BCHW. Differentiable in the images."""
    numbers: int
    """M."""
    always: bool
    """Whether the composed mode always applies it."""


OPERATIONS: dict[str, Operation] = {
    "color": Operation(_color, 3, always=True),
    "brightness": Operation(_brightness, 1, always=True),
    "saturation": Operation(_saturation, 1, always=True),
    "contrast": Operation(_contrast, 1, always=True),
    "flip": Operation(_flip, 1, always=True),
    "crop": Operation(_crop, 2, always=False),
    "scale": Operation(_scale, 2, always=False),
    "rotate": Operation(_rotate, 1, always=False),
    "cutout": Operation(_cutout, 2, always=True),
}
"""By name, in the order in which the composed mode applies them: colours while the image has no zeros of
ours in its means, cutout last so that its square is whole and stays zero."""

Mode = Literal["single", "composed"]


class Augmentation(NamedTuple):
    """What may happen to the images of a step."""

    operations: tuple[str, ...] = ()
    """Names from OPERATIONS."""
    mode: Mode = "single"
    """`single`: one of the operations at each step. `composed`: flip, colours and cutout always, as far as
    they are listed, and one of the others."""


NONE = Augmentation()


def _operations_of_steps(
    augmentation: Augmentation, choice: Stream, inner_steps: range
) -> list[tuple[str, ...]]:
    """The operations of each step, in the order in which they are applied."""
    composed = augmentation.mode == "composed"
    always = {name for name in augmentation.operations if composed and OPERATIONS[name].always}
    one_of = [name for name in augmentation.operations if name not in always]
    outcomes = [tuple(name for name in OPERATIONS if name in always | {one}) for one in one_of]
    if not outcomes:
        return [tuple(name for name in OPERATIONS if name in always)] * len(inner_steps)
    chosen = (choice.words(1, inner_steps)[:, 0] % len(outcomes)).tolist()
    return [outcomes[c] for c in chosen]


def draw(
    augmentation: Augmentation, stream: Stream, inner_steps: range, batch: int, dtype: torch.dtype
) -> list[AugmentDraw]:
    """One draw for each inner step. All images of a step share its operations; magnitudes are their own.

    Args:
        stream: its parts are drawn from: `choice` for which operation, with equal probability, and one for
            each operation's magnitudes, so that these do not depend on what else is listed.
        batch: images per step.
    """
    operations = _operations_of_steps(augmentation, stream.substream("choice"), inner_steps)
    magnitudes = {}
    for name in augmentation.operations:
        # For the steps that apply it, and no others: most numbers of the single mode would be idle.
        steps = [t for t, names in zip(inner_steps, operations, strict=True) if name in names]
        numbers = OPERATIONS[name].numbers
        uniform = stream.substream(name).uniform(batch * numbers, steps, dtype=dtype)
        magnitudes[name] = iter(uniform.unflatten(1, (batch, numbers)).unbind(0))
    return [AugmentDraw(names, tuple(next(magnitudes[name]) for name in names)) for names in operations]


def apply(images_BCHW: Tensor, drawn: AugmentDraw) -> Tensor:
    """The augmented images, [B, C, H, W]; differentiable (once) in the images, the draw is constant."""
    for name, magnitudes in zip(*drawn, strict=True):
        images_BCHW = OPERATIONS[name].apply(images_BCHW, magnitudes)
    return images_BCHW
