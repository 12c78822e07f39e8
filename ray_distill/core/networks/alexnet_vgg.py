"""AlexNet and VGG for small images: normalised convolutions, ReLUs and max pools, then one linear layer.

As in Krizhevsky et al. (2012) and in Simonyan and Zisserman (2015), configurations A, B, D and E, in the variants used
in dataset condensation: a norm after each convolution, no hidden linear layers, no dropout.
"""

from torch import nn

from ray_distill.core.networks.layers import MapShape, first_padding, halved, head, normed_convolution


def alexnet(image_shape: MapShape, num_classes: int, *, width: int, norm: str) -> nn.Module:
    """Five convolutions of 128, 192, 256, 192 and 192 channels at the published width 128, three max pools.

    The first two have 5x5 kernels, the others 3x3. Raises: ValueError for an odd width, or if the images are
    too small.
    """
    if width % 2:
        raise ValueError(
            f"the width must be even, since some layers have 1.5 times as many channels (got {width})"
        )
    plan = [(2, 5, True), (3, 5, True), (4, 3, False), (3, 3, False), (3, 3, True)]
    layers: list[nn.Module] = []
    shape = image_shape
    for index, (halves, kernel, pooled) in enumerate(plan):
        padding = first_padding(image_shape, kernel) if index == 0 else None
        normed, shape = normed_convolution(shape, halves * width // 2, kernel, norm=norm, padding=padding)
        layers += [*normed, nn.ReLU()]
        if pooled:
            layers.append(nn.MaxPool2d(2))
            shape = halved(shape)
    return nn.Sequential(*layers, *head(shape, num_classes))


CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions in each block; the original's three linear layers (one here) count towards the depth."""


def vgg(image_shape: MapShape, num_classes: int, *, depth: int, width: int, norm: str) -> nn.Module:
    """Five blocks of 3x3 convolutions with 1, 2, 4, 8 and 8 times the width, each ending in a max pool.

    Raises: ValueError if the images are too small.
    """
    layers: list[nn.Module] = []
    shape = image_shape
    for block, (times, convolutions) in enumerate(zip((1, 2, 4, 8, 8), CONVOLUTIONS[depth], strict=True)):
        for index in range(convolutions):
            padding = first_padding(image_shape, 3) if block == index == 0 else 1
            normed, shape = normed_convolution(shape, times * width, 3, norm=norm, padding=padding)
            layers += [*normed, nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        shape = halved(shape)
    return nn.Sequential(*layers, *head(shape, num_classes))
