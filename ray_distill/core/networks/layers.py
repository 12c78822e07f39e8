"""The building blocks of the convolutional networks: a convolution and its norm, pooling, the linear head.

A convolution before an instance or batch norm has no bias, unlike in many published networks: the norm subtracts it
again, so the function is the same and, in exact arithmetic, the bias's gradient is 0. In float32 it is rounding noise;
Adam turns that into steps of size lr, and its adjoint, which divides by the root of the noise's square, into an error
of the metagradient (LOG, 2026-11-24: 7-18% with the bias, 0.1-2% without). A layer norm subtracts the mean over all
channels and a group norm that over several, which does not cancel the biases of single channels: there they stay.
"""

import math

from torch import nn

MapShape = tuple[int, int, int]
"""Channels, height and width of one image's map."""

NUM_GROUPS = 4
"""Groups of a group norm."""


def first_padding(image_shape: MapShape, kernel: int) -> int:
    """Padding of the first convolution: keeps the size, but pads 28x28 images to 32x32, as in the paper's code."""
    return kernel // 2 + (2 if image_shape[1:] == (28, 28) else 0)


def norm_layers(norm: str, shape: MapShape) -> list[nn.Module]:
    """The norm over a map of this shape, with a weight and bias per channel (layer norm: per element).

    Raises: ValueError for a map on which the norm is degenerate.
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
                    f"a group norm needs {NUM_GROUPS} equal groups of two channels or more (got {channels} channels)"
                )
            return [nn.GroupNorm(NUM_GROUPS, channels)]
        case "instance":
            if height * width == 1:
                raise ValueError("the images are too small: an instance norm would get a map of 1x1")
            return [nn.GroupNorm(channels, channels)]
        case _:
            raise ValueError(f"unknown norm {norm!r}")


def normed_convolution(
    shape: MapShape, channels: int, kernel: int, *, norm: str, stride: int = 1, padding: int | None = None
) -> tuple[list[nn.Module], MapShape]:
    """A square convolution with `channels` outputs and its norm, and the shape of their output map.

    The padding is half the kernel by default. Raises: ValueError if the norm does not fit the map.
    """
    padding = kernel // 2 if padding is None else padding
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in shape[1:])
    output_shape = (channels, height, width)
    bias = norm not in ("instance", "batch")
    convolution = nn.Conv2d(shape[0], channels, kernel, stride=stride, padding=padding, bias=bias)
    return [convolution, *norm_layers(norm, output_shape)], output_shape


def halved(shape: MapShape) -> MapShape:
    """The shape after a 2x2 pooling. Raises: ValueError if nothing would be left."""
    channels, height, width = shape
    if min(height, width) < 2:
        raise ValueError(f"the images are too small: a map of {height}x{width} cannot be halved")
    return channels, height // 2, width // 2


def head(shape: MapShape, num_classes: int) -> list[nn.Module]:
    """The layers from the last map to the logits."""
    return [nn.Flatten(), nn.Linear(math.prod(shape), num_classes)]
