"""torchvision's classifiers as networks of `core`, by name: `torchvision:mobilenet_v2`.

They are adapted to the data: the last layer to the number of classes, the first convolution to the number of channels.
For images up to 64x64, a strided first convolution becomes 3x3 with stride 1, and a max pool before the second
convolution is removed, as usual for small images. Dropout and stochastic depth are off, since their draws would not
come from a stream. Hardsigmoid, which torch cannot differentiate twice, is replaced by the same function.

Weights are initialised by `Network.init`, like those of all networks. Networks with parameters other than those of
convolutions, linear layers and norms (such as vision transformers) are refused.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models
from torchvision.ops import StochasticDepth

from ray_distill.core.networks.network import ImageShape, Network

SMALL = 64
"""Images up to this size get the stem for small images."""
_PLAIN = {
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
}
"""Arguments for networks that have auxiliary outputs otherwise."""


class HardSigmoid(nn.Module):
    """min(max(x + 3, 0), 6) / 6, differentiable any number of times."""

    def forward(self, maps: Tensor) -> Tensor:
        """The same shape."""
        return F.relu6(maps + 3.0) / 6.0


def _on_meta(name: str, num_classes: int) -> nn.Module:
    arguments: dict[str, Any] = {"weights": None, "num_classes": num_classes, **_PLAIN.get(name, {})}
    try:
        with torch.device("meta"):
            module: nn.Module = models.get_model(name, **arguments)
    except NotImplementedError:
        # RegNets compute their widths with tensors. Their initialisation must not change the global generator.
        with torch.random.fork_rng(devices=[]):
            module = models.get_model(name, **arguments).to("meta")
    return module


def _make_a_function(module: nn.Module) -> None:
    """Make the module deterministic and twice differentiable."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.modules.dropout._DropoutNd | StochasticDepth):
            layer.p = 0.0
        elif isinstance(layer, nn.Hardsigmoid):
            _replace(module, name, HardSigmoid())


def _fit_stem(module: nn.Module, image_shape: ImageShape) -> None:
    """Change the first convolution, and the max pool between it and the second, as the module's docstring says."""
    channels, small = image_shape[0], max(image_shape[1:]) <= SMALL
    layers = [
        (name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d | nn.MaxPool2d)
    ]
    (stem_name, stem), *others = layers
    assert isinstance(stem, nn.Conv2d)
    strided = max(stem.stride) > 1
    if small and strided:
        new = nn.Conv2d(channels, stem.out_channels, 3, padding=1, bias=stem.bias is not None)
    else:
        new = nn.Conv2d(
            channels,
            stem.out_channels,
            stem.kernel_size,  # type: ignore[arg-type]
            stride=stem.stride,  # type: ignore[arg-type]
            padding=stem.padding,  # type: ignore[arg-type]
            bias=stem.bias is not None,
        )
    _replace(module, stem_name, new)
    if small and strided and others and isinstance(others[0][1], nn.MaxPool2d):
        _replace(module, others[0][0], nn.Identity())


def _replace(module: nn.Module, name: str, layer: nn.Module) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, layer)


def torchvision_network(name: str, image_shape: ImageShape, num_classes: int) -> Network:
    """The torchvision classifier of this name, adapted to the images and classes.

    Raises: ValueError for an unknown name, images that the network does not take, or a network that is refused.
    """
    known = models.list_models(module=models)
    if name not in known:
        raise ValueError(f"torchvision has no classifier {name!r}; it has: {', '.join(known)}")
    module = _on_meta(name, num_classes)
    _make_a_function(module)
    with torch.device("meta"):
        _fit_stem(module, image_shape)
        network = Network(module)
        try:
            network.forward_flops(image_shape)
        except (RuntimeError, ValueError) as e:
            size = f"{image_shape[1]}x{image_shape[2]}"
            raise ValueError(f"torchvision's {name} does not take images of {size}: {e}") from None
    return network
