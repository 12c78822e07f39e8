"""Networks as pure functions of one flat parameter vector.

The module that describes a network lives on the meta device: it holds no numbers and draws none. Its
parameters are a vector theta_P, so that an inner optimiser step is one elementwise operation whatever
the architecture, and the state of a window is a few vectors.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ray_distill.core.rng import Stream

ImageShape = tuple[int, int, int]
NORMS = ("instance", "none")


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """What to build: a name such as `convnet3` or `mlp2`, its width, and the norm of a convnet's blocks."""

    name: str
    width: int
    norm: str = "instance"


class Network:
    """A network as a function: `network(theta_P, images_NCHW) -> logits_NK`."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.shapes = {name: p.shape for name, p in module.named_parameters()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        self.num_parameters = sum(self.sizes)
        if any(True for _ in module.buffers()):
            raise ValueError("a network with buffers (running statistics) has no functional form here yet")

    def unflatten(self, theta_P: Tensor) -> dict[str, Tensor]:
        """Named views of the parameter vector."""
        parts = theta_P.split(self.sizes)
        return {
            name: part.view(shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }

    def __call__(self, theta_P: Tensor, images_NCHW: Tensor) -> Tensor:
        """Logits [N, K]; differentiable any number of times in both arguments."""
        logits: Tensor = torch.func.functional_call(self.module, self.unflatten(theta_P), (images_NCHW,))
        return logits

    def largest_map(self, image_shape: ImageShape) -> int:
        """The most numbers that any layer puts out for one image of this shape."""
        sizes: list[int] = []
        hooks = [
            layer.register_forward_hook(lambda _module, _args, out: sizes.append(out.numel()))
            for layer in self.module.modules()
        ]
        try:
            self.module(torch.empty(1, *image_shape, device="meta"))
        finally:
            for hook in hooks:
                hook.remove()
        return max(sizes)

    def forward_flops(self, image_shape: ImageShape) -> int:
        """Floating-point operations of the products in one image's forward pass, as torch counts them."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.module(torch.empty(1, *image_shape, device="meta"))
        return int(counter.get_total_flops())

    def init(self, stream: Stream, *, dtype: torch.dtype) -> Tensor:
        """A fresh theta_P on the stream's device, by PyTorch's default initialisation.

        Weights and biases of convolutions and linear layers: uniform on +-1/sqrt(fan in). Norms: 1 and 0.
        """
        bounds, offsets = self._init_law
        uniform = stream.uniform(self.num_parameters, dtype=dtype)[0]
        return (2.0 * uniform - 1.0) * bounds.to(uniform) + offsets.to(uniform)

    @cached_property
    def _init_law(self) -> tuple[Tensor, Tensor]:
        """Half-width and centre of each parameter's uniform law: two float64 [P]."""
        bounds, offsets = [], []
        for name, shape in self.shapes.items():
            owner = self.module.get_submodule(name.rpartition(".")[0])
            match owner:
                case nn.Conv2d() | nn.Linear():
                    bound, offset = 1.0 / math.sqrt(owner.weight[0].numel()), 0.0
                case nn.GroupNorm():
                    bound, offset = 0.0, 1.0 if name.endswith("weight") else 0.0
                case _:
                    raise ValueError(
                        f"no initialisation is known for {type(owner).__name__} (parameter {name})"
                    )
            bounds.append(torch.full((shape.numel(),), bound, dtype=torch.float64))
            offsets.append(torch.full((shape.numel(),), offset, dtype=torch.float64))
        return torch.cat(bounds), torch.cat(offsets)


def convnet(spec: NetworkSpec, depth: int, image_shape: ImageShape, num_classes: int) -> nn.Module:
    """ConvNet-d: d blocks of 3x3 convolution, norm, ReLU, 2x2 average pooling; then one linear layer.

    The first convolution pads 28x28 images by 3, so that its map is 32x32, as the paper's does.

    A convolution before an instance norm has no bias, unlike the authors': the norm subtracts it again, so
    the function is the same, and in exact arithmetic its gradient is 0. In float32 that 0 is rounding noise;
    Adam turns it into steps of size lr, and its adjoint, which divides by the root of the noise's square,
    into an error of the metagradient (LOG, 2026-11-24: 7-18% with the bias, 0.1-2% without).
    Raises: ValueError if the images are too small for the depth.
    """
    channels, height, width = image_shape
    pad = 3 if (height, width) == (28, 28) else 1
    height, width = height + 2 * pad - 2, width + 2 * pad - 2
    if min(height, width) < 2**depth:
        raise ValueError(
            f"{spec.name} halves its map {depth} times, too often for {image_shape[1]}x{image_shape[2]} images"
        )
    layers: list[nn.Module] = []
    for block in range(depth):
        normed = spec.norm == "instance"
        padding = pad if block == 0 else 1
        layers.append(nn.Conv2d(channels, spec.width, 3, padding=padding, bias=not normed))
        if normed:
            layers.append(nn.GroupNorm(spec.width, spec.width))
        layers += [nn.ReLU(), nn.AvgPool2d(2)]
        channels, height, width = spec.width, height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, num_classes))


def mlp(spec: NetworkSpec, depth: int, image_shape: ImageShape, num_classes: int) -> nn.Module:
    """A perceptron with `depth` hidden ReLU layers. Raises: ValueError for a norm, which it has no place for."""
    if spec.norm != "none":
        raise ValueError(f"{spec.name} has no norm; norm must be 'none', not {spec.norm!r}")
    size = math.prod(image_shape)
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        layers += [nn.Linear(size, spec.width), nn.ReLU()]
        size = spec.width
    return nn.Sequential(*layers, nn.Linear(size, num_classes))


FAMILIES: dict[str, Callable[[NetworkSpec, int, ImageShape, int], nn.Module]] = {
    "convnet": convnet,
    "mlp": mlp,
}


def parse_name(name: str) -> tuple[str, int]:
    """`convnet3` -> ("convnet", 3). Raises: ValueError that lists what can be built."""
    match = re.fullmatch(r"([a-z]+)([1-9])", name)
    if match is None or match[1] not in FAMILIES:
        known = ", ".join(f"{family}1 .. {family}9" for family in FAMILIES)
        raise ValueError(f"unknown network {name!r}; known: {known} (the digit is the depth)")
    return match[1], int(match[2])


def build_network(spec: NetworkSpec, image_shape: ImageShape, num_classes: int) -> Network:
    """The network that the spec describes, for images of this shape.

    Raises: ValueError for an unknown name or norm, or a depth that the images are too small for.
    """
    family, depth = parse_name(spec.name)
    if spec.norm not in NORMS:
        raise ValueError(f"unknown norm {spec.norm!r}; known: {', '.join(NORMS)}")
    with torch.device("meta"):
        return Network(FAMILIES[family](spec, depth, image_shape, num_classes))
