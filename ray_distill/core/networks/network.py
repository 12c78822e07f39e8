"""Networks as pure functions of one flat parameter vector.

The module that describes a network is on the meta device: it has no values and draws none. The parameters are a
vector theta_P, so that an inner optimiser step is one elementwise operation whatever the architecture, and a state
is a few vectors.

Batch norm makes a network two functions. In training, and in the outer loss, it normalises with the mean and variance
of the batch: a function of (theta, batch) like any other, but one in which the images of a batch affect each other.
Trained networks are evaluated with running statistics (`group` computes them, `core.retrain` tracks them), which are
separate from theta and take no part in any gradient.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ray_distill.core.networks.alexnet_vgg import alexnet, vgg
from ray_distill.core.networks.convnet import convnet, mlp
from ray_distill.core.networks.names import FAMILIES, parse_name
from ray_distill.core.networks.resnet import resnet
from ray_distill.core.rng import Stream

ImageShape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """A network's name (see `names`) and the options of its family; None is the default."""

    name: str
    width: int | None = None
    activation: str | None = None
    pooling: str | None = None


def _without_statistics(module: nn.Module) -> nn.Module:
    """A copy whose batch norms use batch statistics only."""
    module = copy.deepcopy(module)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return module


class Network:
    """A network as a function in training mode: `network(theta_P, images_NCHW) -> logits_NK`."""

    def __init__(self, module: nn.Module) -> None:
        """Wrap a module; its parameter values are ignored.

        Raises: ValueError for dropout, whose draws would not come from a stream; for buffers other than the running
            statistics of batch norms; for layers without a known initialisation.
        """
        for layer in module.modules():
            if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0.0:
                raise ValueError(
                    f"{type(layer).__name__}({layer.p}) uses the global random generator; set its probability to 0"
                )
        batch_norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
        if not all(layer.track_running_stats for layer in batch_norms):
            raise ValueError("a batch norm without running statistics has no eval mode")
        self.module = _without_statistics(module.train()) if batch_norms else module.train()
        if buffers := [name for name, _ in self.module.named_buffers()]:
            more = f" and {len(buffers) - 1} more" if len(buffers) > 1 else ""
            raise ValueError(f"networks with buffers are not supported (got {buffers[0]}{more})")
        self.has_batch_norm = bool(batch_norms)
        """Whether, in training, the logits of an image depend on the others in its batch."""
        self.tracking_module = module
        """In training mode, with batch norms that track running statistics in buffers."""
        self.eval_module = copy.deepcopy(module).eval()
        """In eval mode: batch norms use the running statistics in their buffers."""
        self.shapes = {name: p.shape for name, p in module.named_parameters()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        self.num_parameters = sum(self.sizes)
        self._initializers = [_uniform_init(module, name) for name in self.shapes]

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

    def max_activation_size(self, image_shape: ImageShape) -> int:
        """The number of elements of the largest layer output for one image of this shape."""
        sizes: list[int] = []
        hooks = [
            layer.register_forward_hook(lambda _module, _args, out: sizes.append(out.numel()))
            for layer in self.eval_module.modules()
        ]
        try:
            self.eval_module(torch.empty(1, *image_shape, device="meta"))
        finally:
            for hook in hooks:
                hook.remove()
        return max(sizes)

    def forward_flops(self, image_shape: ImageShape) -> int:
        """Floating-point operations of the matrix products in one image's forward pass, as torch counts them."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.eval_module(torch.empty(1, *image_shape, device="meta"))
        return int(counter.get_total_flops())

    def init(self, stream: Stream, *, dtype: torch.dtype) -> Tensor:
        """A fresh theta_P on the stream's device, by PyTorch's default initialisation.

        Weights and biases of convolutions and linear layers: uniform on +-1/sqrt(fan in). Norms: 1 and 0.
        """
        bounds, offsets = self._init_ranges
        uniform = stream.uniform(self.num_parameters, dtype=dtype)[0]
        return (2.0 * uniform - 1.0) * bounds.to(uniform) + offsets.to(uniform)

    @cached_property
    def _init_ranges(self) -> tuple[Tensor, Tensor]:
        """Half-width and centre of each parameter's uniform distribution: two float64 [P]."""
        bounds, offsets = (
            torch.cat(
                [torch.full((n,), x, dtype=torch.float64) for n, x in zip(self.sizes, values, strict=True)]
            )
            for values in zip(*self._initializers, strict=True)
        )
        return bounds, offsets


def _uniform_init(module: nn.Module, name: str) -> tuple[float, float]:
    """Half-width and centre of a parameter's uniform initialisation. Raises: ValueError if none is known."""
    owner = module.get_submodule(name.rpartition(".")[0])
    match owner:
        case nn.Conv2d() | nn.Linear():
            return 1.0 / math.sqrt(owner.weight[0].numel()), 0.0
        case nn.GroupNorm() | nn.LayerNorm() | nn.BatchNorm2d():
            return 0.0, 1.0 if name.endswith("weight") else 0.0
        case _:
            raise ValueError(f"no initialisation is known for {type(owner).__name__} (parameter {name})")


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "convnet": convnet,
    "mlp": mlp,
    "alexnet": alexnet,
    "vgg": vgg,
    "resnet": resnet,
}


def _module(spec: NetworkSpec, image_shape: ImageShape, num_classes: int) -> nn.Module:
    name = parse_name(spec.name)
    family = FAMILIES[name.family]
    options: dict[str, int | str] = {"width": spec.width or family.width}
    if family.depths:
        options["depth"] = name.depth
    if family.norm is not None:
        options["norm"] = name.norm
    for option in ("activation", "pooling"):
        chosen, default = getattr(spec, option), getattr(family, option)
        if default is not None:
            options[option] = chosen or default
        elif chosen is not None:
            raise ValueError(f"{option} cannot be chosen (got {chosen!r})")
    return BUILDERS[name.family](image_shape, num_classes, **options)


def build_network(spec: NetworkSpec, image_shape: ImageShape, num_classes: int) -> Network:
    """The specified network for images of this shape.

    Raises: ValueError for an unknown name, an option that the family does not have, or images that are too small.
    """
    parse_name(spec.name)
    try:
        with torch.device("meta"):
            return Network(_module(spec, image_shape, num_classes))
    except ValueError as e:
        size = f"{image_shape[1]}x{image_shape[2]}"
        raise ValueError(f"{spec.name} for {size} images: {e}") from None
