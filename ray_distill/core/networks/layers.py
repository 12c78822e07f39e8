"""A convolution and its norm: what every convolutional network here is made of.

A convolution before an instance or a batch norm has no bias, unlike many published ones: the norm subtracts
it again, so the function is the same, and in exact arithmetic the bias's gradient is 0. In float32 that 0 is
rounding noise; Adam turns it into steps of size lr, and its adjoint, which divides by the root of the noise's
square, into an error of the metagradient (LOG, 2026-11-24: 7-18% with the bias, 0.1-2% without). A layer norm
subtracts the mean over all channels, a group norm that over several, and so neither undoes the biases of single
channels: there they stay.
"""

import math

from torch import nn

MapShape = tuple[int, int, int]
"""Channels, height and width of one image's map."""

NUM_GROUPS = 4
"""Of a group norm."""


def first_padding(image_shape: MapShape, kernel: int) -> int:
    """Padding of the first convolution: it keeps the size, but makes a 32x32 map of 28x28 images, as the paper's."""
    return kernel // 2 + (2 if image_shape[1:] == (28, 28) else 0)


def norm_layers(norm: str, shape: MapShape) -> list[nn.Module]:
    """The norm over a map of this shape, with one weight and bias for each channel (layer: for each number).

    Raises: ValueError for a map on which the norm would not be what it says.
    """
    channels, height, width = shape
    match norm:
        case "none":
            return []
        case "batch":
            return [nn.BatchNorm2d(channels)]
        case "layer":
            return [nn.LayerNorm(shape)]
        case "group":
            if channels % NUM_GROUPS or channels == NUM_GROUPS:
                raise ValueError(
                    f"a group norm has {NUM_GROUPS} groups of two channels or more; {channels} channels do not do"
                )
            return [nn.GroupNorm(NUM_GROUPS, channels)]
        case "instance":
            if height * width == 1:
                raise ValueError("the images are too small: an instance norm would be left with a map of 1x1")
            return [nn.GroupNorm(channels, channels)]
        case _:
            raise ValueError(f"unknown norm {norm!r}")


def normed_convolution(
    shape: MapShape, channels: int, kernel: int, *, norm: str, stride: int = 1, padding: int | None = None
) -> tuple[list[nn.Module], MapShape]:
    """A square convolution to so many channels and its norm, and the shape of the map that they give.

    Without a padding it is half the kernel. Raises: ValueError for a map that is too small for it.
    """
    padding = kernel // 2 if padding is None else padding
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in shape[1:])
    mapped = (channels, height, width)
    bias = norm not in ("instance", "batch")
    convolution = nn.Conv2d(shape[0], channels, kernel, stride=stride, padding=padding, bias=bias)
    return [convolution, *norm_layers(norm, mapped)], mapped


def halved(shape: MapShape) -> MapShape:
    """The shape after a 2x2 pooling. Raises: ValueError if nothing would be left."""
    channels, height, width = shape
    if min(height, width) < 2:
        raise ValueError(f"the images are too small: a map of {height}x{width} cannot be halved")
    return channels, height // 2, width // 2


def head(shape: MapShape, num_classes: int) -> list[nn.Module]:
    """From the last map to the logits."""
    return [nn.Flatten(), nn.Linear(math.prod(shape), num_classes)]
