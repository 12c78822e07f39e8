"""Differentiable augmentation, with the random parameters drawn separately from applying them.

The operations are those of DSA (Zhao and Bilen, ICML 2021), which the paper uses. A draw is a value, so the
adjoint can apply the same one again. To add an operation, add a row to OPERATIONS.

Axes, besides those of the package: M random magnitudes per image that an operation takes.
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
    """One step's augmentation: the operations in order of application, possibly none."""

    operations: tuple[str, ...]
    magnitudes: tuple[Tensor, ...]
    """For each operation, its magnitudes for each image, uniform on [0, 1): [B, M]."""


def _pixels(side: int, fraction: float) -> int:
    """A fraction of a side in whole pixels; halves are rounded up."""
    return int(fraction * side + 0.5)


def _uniform_index(uniform_B: Tensor, count: int) -> Tensor:
    """Uniform on the integers 0 .. count - 1: int64 [B]."""
    # In float64, where the product with a 24-bit number is exact, so that every dtype gives the same index.
    return (uniform_B.double() * count).long()


def _brightness(images_BCHW: Tensor, magnitudes_BM: Tensor) -> Tensor:
    """Add m - 1/2."""
    return images_BCHW + (magnitudes_BM - 0.5)[:, :, None, None]


def _saturation(images_BCHW: Tensor, magnitudes_BM: Tensor) -> Tensor:
    """Differences from grey (the mean over the channels) times 2 m. The identity on one channel."""
    grey_B1HW = images_BCHW.mean(dim=1, keepdim=True)
    return (images_BCHW - grey_B1HW) * (2.0 * magnitudes_BM)[:, :, None, None] + grey_B1HW


def _contrast(images_BCHW: Tensor, magnitudes_BM: Tensor) -> Tensor:
    """Differences from the mean over the whole image times m + 1/2."""
    mean_B111 = images_BCHW.mean(dim=(1, 2, 3), keepdim=True)
    return (images_BCHW - mean_B111) * (magnitudes_BM + 0.5)[:, :, None, None] + mean_B111


def _color(images_BCHW: Tensor, magnitudes_BM: Tensor) -> Tensor:
    """Brightness, saturation and contrast, with a magnitude each; in exact arithmetic they commute.

    Saturation does nothing on one channel.
    """
    brightness, saturation, contrast = magnitudes_BM.split(1, dim=1)
    return _contrast(_saturation(_brightness(images_BCHW, brightness), saturation), contrast)


def _flip(images_BCHW: Tensor, magnitudes_BM: Tensor) -> Tensor:
    """Flip horizontally the images whose magnitude is below one half."""
    return torch.where((magnitudes_BM < 0.5)[:, :, None, None], images_BCHW.flip(-1), images_BCHW)


def _crop(images_BCHW: Tensor, magnitudes_BM: Tensor) -> Tensor:
    """Shift by whole pixels along each axis, uniformly from -1/8 to 1/8 of the side; padded with zeros.

    No pixel is read twice, so the gradient sums nothing and is the same on every device.
    """
    channels, height, width = images_BCHW.shape[1:]
    down, right = _pixels(height, MAX_SHIFT), _pixels(width, MAX_SHIFT)
    # The top left corner of the crop in the padded image.
    top_B, left_B = (
        _uniform_index(magnitudes_BM[:, 0], 2 * down + 1),
        _uniform_index(magnitudes_BM[:, 1], 2 * right + 1),
    )
    row_stride = width + 2 * right
    rows, columns = (torch.arange(side, device=images_BCHW.device) for side in (height, width))
    pixel_HW = rows[:, None] * row_stride + columns
    source = (top_B * row_stride + left_B)[:, None, None] + pixel_HW
    padded = F.pad(images_BCHW, (right, right, down, down)).flatten(2)
    cropped = padded.gather(2, source.flatten(1)[:, None].expand(-1, channels, -1))
    return cropped.view_as(images_BCHW)


def _pixel_offsets(images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets of the pixel centres from the image's centre, in pixels: down [H, 1], right [W]."""
    dtype, device = images_BCHW.dtype, images_BCHW.device
    down, right = (
        torch.arange((1 - side) / 2, side / 2, dtype=dtype, device=device) for side in images_BCHW.shape[2:]
    )
    return down[:, None], right


def _sample(images_BCHW: Tensor, down_BHW: Tensor, right_BHW: Tensor) -> Tensor:
    """Samples the images bilinearly at offsets from the centre in pixels, one per output pixel; zeros outside.

    On CUDA the gradient sums with atomics, so its last bits may vary from run to run.
    """
    height, width = images_BCHW.shape[2:]
    grid = torch.stack((right_BHW * (2 / width), down_BHW * (2 / height)), dim=-1)
    return F.grid_sample(images_BCHW, grid, align_corners=False)


def _scale(images_BCHW: Tensor, magnitudes_BM: Tensor) -> Tensor:
    """Shrink about the centre by a factor per axis, uniform on 1/1.2 .. 1.2; bilinear, zeros outside."""
    factor = torch.add(1 / MAX_SCALE, magnitudes_BM, alpha=MAX_SCALE - 1 / MAX_SCALE)[:, :, None, None]
    down, right = _pixel_offsets(images_BCHW)
    down_BHW, right_BHW = torch.broadcast_tensors(factor[:, 0] * down, factor[:, 1] * right)
    return _sample(images_BCHW, down_BHW, right_BHW)


def _rotate(images_BCHW: Tensor, magnitudes_BM: Tensor) -> Tensor:
    """Rotate by (2 m - 1) x 15 degrees about the centre, counter-clockwise for m > 1/2; bilinear, zeros outside.

    Angles are preserved whatever the aspect ratio.
    """
    angle = ((2.0 * magnitudes_BM - 1.0) * MAX_ROTATION_RAD)[:, :, None]
    cos, sin = torch.cos(angle), torch.sin(angle)
    down, right = _pixel_offsets(images_BCHW)
    # Written out: TF32 would round a matrix product.
    return _sample(images_BCHW, sin * right + cos * down, cos * right - sin * down)


def _cutout(images_BCHW: Tensor, magnitudes_BM: Tensor) -> Tensor:
    """Zero a rectangle of half the height and half the width, which may extend beyond the border.

    Its centre is uniform on the image, as in DSA; with an even side it lies between pixels.
    """
    masks = []
    for uniform_B, side in zip(magnitudes_BM.unbind(1), images_BCHW.shape[2:], strict=True):
        cut = _pixels(side, CUT_SIDE)
        first_B = _uniform_index(uniform_B, side + 1 - cut % 2) - cut // 2
        offset = torch.arange(side, device=images_BCHW.device) - first_B[:, None]
        masks.append((offset >= 0) & (offset < cut))
    rows, columns = masks
    return images_BCHW.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


class Operation(NamedTuple):
    """One augmentation operation."""

    apply: Callable[[Tensor, Tensor], Tensor]
    """(images_BCHW, magnitudes_BM) -> images_BCHW. Differentiable in the images."""
    num_magnitudes: int
    """M."""
    always: bool
    """Whether the composed mode applies it at every step."""


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
"""By name, in the order in which the composed mode applies them: colours first, before padding zeros enter the
means; cutout last, so that its square stays zero."""

Mode = Literal["single", "composed"]


class Augmentation(NamedTuple):
    """What may happen to the images of a step."""

    operations: tuple[str, ...] = ()
    """Names from OPERATIONS."""
    mode: Mode = "single"
    """`single`: one of the operations at each step. `composed`: those listed of flip, colours and cutout at every
    step, and one of the others."""


NONE = Augmentation()


def _draw_operations(augmentation: Augmentation, stream: Stream, inner_steps: range) -> list[tuple[str, ...]]:
    """The operations of each step, in order of application."""
    composed = augmentation.mode == "composed"
    always = {name for name in augmentation.operations if composed and OPERATIONS[name].always}
    choices = [name for name in augmentation.operations if name not in always]
    outcomes = [tuple(name for name in OPERATIONS if name in always | {choice}) for choice in choices]
    if not outcomes:
        return [tuple(name for name in OPERATIONS if name in always)] * len(inner_steps)
    chosen = (stream.words(1, inner_steps)[:, 0] % len(outcomes)).tolist()
    return [outcomes[c] for c in chosen]


def draw(
    augmentation: Augmentation, stream: Stream, inner_steps: range, batch: int, dtype: torch.dtype
) -> list[AugmentDraw]:
    """One draw per inner step. The images of a step share its operations and have magnitudes of their own.

    Args:
        stream: its substream `choice` picks the operations, with equal probability; each operation's magnitudes
            have a substream too, so that they do not depend on which other operations are listed.
        batch: images per step.
    """
    operations = _draw_operations(augmentation, stream.substream("choice"), inner_steps)
    magnitudes = {}
    for name in augmentation.operations:
        # Only for the steps that apply it: the single mode would discard most magnitudes.
        steps = [t for t, names in zip(inner_steps, operations, strict=True) if name in names]
        count = OPERATIONS[name].num_magnitudes
        uniform = stream.substream(name).uniform(batch * count, steps, dtype=dtype)
        magnitudes[name] = iter(uniform.unflatten(1, (batch, count)).unbind(0))
    return [AugmentDraw(names, tuple(next(magnitudes[name]) for name in names)) for names in operations]


def apply(images_BCHW: Tensor, drawn: AugmentDraw) -> Tensor:
    """The augmented images, [B, C, H, W]; differentiable (once) in the images, with the draw constant."""
    for name, magnitudes in zip(*drawn, strict=True):
        images_BCHW = OPERATIONS[name].apply(images_BCHW, magnitudes)
    return images_BCHW
