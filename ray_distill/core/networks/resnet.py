"""ResNet for small images (He et al., 2016): a 3x3 stem of stride 1 without pooling, and an average pool at the end.

The stride of a bottleneck block is in its 3x3 convolution, as in torchvision. At width 64 with batch norm, ResNet18
is the network of that name in CIFAR-10 benchmarks.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from ray_distill.core.networks.layers import MapShape, head, normed_convolution

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Blocks in each of the four stages."""


class ResidualBlock(nn.Module):
    """relu(branch(x) + shortcut(x))."""

    keeps_channels_apart = True

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, maps: Tensor) -> Tensor:
        """The next map."""
        return F.relu(self.branch(maps) + self.shortcut(maps))


def _block(
    shape: MapShape, width: int, *, bottleneck: bool, stride: int, norm: str
) -> tuple[ResidualBlock, MapShape]:
    """A block of two 3x3 convolutions, or a bottleneck (1x1, 3x3, 1x1 with 4 times the width); its output shape."""
    # (channels, kernel, stride) of each convolution.
    plan = [(width, 3, stride), (width, 3, 1)]
    if bottleneck:
        plan = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
    branch: list[nn.Module] = []
    output_shape = shape
    for index, (channels, kernel, step) in enumerate(plan):
        normed, output_shape = normed_convolution(output_shape, channels, kernel, norm=norm, stride=step)
        branch += normed if index == 0 else [nn.ReLU(), *normed]
    shortcut: nn.Module = nn.Identity()
    if output_shape != shape:
        normed, _ = normed_convolution(shape, output_shape[0], 1, norm=norm, stride=stride)
        shortcut = nn.Sequential(*normed)
    return ResidualBlock(nn.Sequential(*branch), shortcut), output_shape


def resnet(image_shape: MapShape, num_classes: int, *, depth: int, width: int, norm: str) -> nn.Module:
    """Four stages of residual blocks of 1, 2, 4 and 8 times the width; each but the first halves the map.

    Raises: ValueError if the images are too small.
    """
    normed, shape = normed_convolution(image_shape, width, 3, norm=norm)
    layers: list[nn.Module] = [*normed, nn.ReLU()]
    for stage, count in enumerate(BLOCKS[depth]):
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            block, shape = _block(shape, width * 2**stage, bottleneck=depth == 50, stride=stride, norm=norm)
            layers.append(block)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), *head((shape[0], 1, 1), num_classes))
