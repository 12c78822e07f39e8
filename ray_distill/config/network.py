"""The section `network` of a configuration, and how networks are named in it and wherever else it names some.

Names are those of `core.network_names`, which needs no torch, and of torchvision's classifiers; whether
torchvision has the one that is named is only known when it is built.
"""

import re
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from ray_distill.config.base import Section, Size, invalid, sibling
from ray_distill.core.networks.names import ACTIVATIONS, FAMILIES, POOLINGS, parse_name

TORCHVISION = "torchvision:"
"""What the names of torchvision's classifiers begin with."""


class NetworkConfig(Section):
    """The network that D is distilled through."""

    name: str = "convnet3"
    """A family with its depth and, where it is not the usual one, its norm: convnet1 .. convnet9, mlp1 .. mlp9,
    alexnet, vgg11, vgg13, vgg16, vgg19, resnet18, resnet34, resnet50, all but mlp with instance norm; -bn batch,
    -gn group, -ln layer norm, -none without, as in resnet18-bn. Or a classifier of torchvision, fitted to the images and
    classes, as in torchvision:mobilenet_v2."""
    width: Size | None = Field(default=None, validate_default=True)
    """Channels of each block of a convnet, units of each hidden layer of an mlp, channels of the first convolution
    of the others (the rest in proportion). Default: as published. Not for torchvision's."""
    activation: str | None = Field(default=None, validate_default=True)
    """Convnet and mlp only: relu (the default), leaky-relu, sigmoid, silu, gelu, softplus."""
    pooling: str | None = Field(default=None, validate_default=True)
    """Convnet only: of each block, 2x2: avg (the default), max, none."""

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        return network_name(value)

    @field_validator("width", "activation", "pooling")
    @classmethod
    def _of_its_family(cls, value: Any, info: ValidationInfo) -> Any:
        option, name = str(info.field_name), sibling(info, "name")
        if name is None:
            return value
        usual = None if name.startswith(TORCHVISION) else FAMILIES[parse_name(name).family]
        default = getattr(usual, option, None)
        if value is not None and default is None:
            raise invalid(f"has no effect with network.name {name}; remove it")
        allowed = {"activation": ACTIVATIONS, "pooling": POOLINGS}.get(option)
        if value is not None and allowed is not None and value not in allowed:
            raise invalid(f"allowed: {', '.join(allowed)}")
        return default if value is None else value


def network_name(value: str) -> str:
    """The name itself. Raises: PydanticCustomError that says what can be named."""
    if value.startswith(TORCHVISION):
        if not re.fullmatch(r"[a-z0-9_]+", value.removeprefix(TORCHVISION)):
            raise invalid(
                "allowed: torchvision:NAME with the name of a classifier, as in torchvision:mobilenet_v2"
            )
        return value
    try:
        parse_name(value)
    except ValueError as e:
        raise invalid(f"{e}; or a classifier of torchvision, as in torchvision:mobilenet_v2") from None
    return value
