"""ConvNet-d and MLPs, the usual networks for distillation.

ConvNet-d as in Gidaris and Komodakis (2018), used by Zhao et al. (dataset condensation, 2021) and the paper.
"""

import math

from torch import nn

from ray_distill.core.networks.layers import MapShape, first_padding, halved, head, normed_convolution


def activation_layer(name: str) -> nn.Module:
    """The activation of this name; all are twice differentiable."""
    match name:
        case "relu":
            return nn.ReLU()
        case "leaky-relu":
            return nn.LeakyReLU(0.01)
        case "sigmoid":
            return nn.Sigmoid()
        case "silu":
            return nn.SiLU()
        case "gelu":
            return nn.GELU()
        case "softplus":
            return nn.Softplus()
        case _:
            raise ValueError(f"unknown activation {name!r}")


def convnet(
    image_shape: MapShape,
    num_classes: int,
    *,
    depth: int,
    width: int,
    norm: str,
    activation: str,
    pooling: str,
) -> nn.Module:
    """ConvNet-d: d blocks of 3x3 convolution, norm, activation and 2x2 pooling; then one linear layer.

    Raises: ValueError if the images are too small for the depth.
    """
    layers: list[nn.Module] = []
    shape = image_shape
    for block in range(depth):
        padding = first_padding(image_shape, 3) if block == 0 else 1
        normed, shape = normed_convolution(shape, width, 3, norm=norm, padding=padding)
        layers += [*normed, activation_layer(activation)]
        if pooling != "none":
            layers.append(nn.AvgPool2d(2) if pooling == "avg" else nn.MaxPool2d(2))
            shape = halved(shape)
    return nn.Sequential(*layers, *head(shape, num_classes))


def mlp(image_shape: MapShape, num_classes: int, *, depth: int, width: int, activation: str) -> nn.Module:
    """An MLP with `depth` hidden layers."""
    size = math.prod(image_shape)
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        layers += [nn.Linear(size, width), activation_layer(activation)]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, num_classes))
