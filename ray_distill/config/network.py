"""The section `network` of a configuration, and the names of networks wherever they occur in it.

Names are those of `core.networks.names`, which needs no torch, and those of torchvision's classifiers; whether torchvision
has the named one is only known when it is built.
"""

import re
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from ray_distill.config.base import Section, Size, invalid, sibling
from ray_distill.core.networks.names import ACTIVATIONS, FAMILIES, POOLINGS, parse_name

TORCHVISION = "torchvision:"
"""Prefix of the names of torchvision's classifiers."""


class NetworkConfig(Section):
    """The network that D is distilled through."""

    name: str = "convnet3"
    """A family with its depth, and a suffix for a norm other than the default: convnet1 .. convnet9, mlp1 .. mlp9,
    alexnet, vgg11, vgg13, vgg16, vgg19, resnet18, resnet34, resnet50. All but mlp have instance norm by default; -bn is
    batch norm, -gn group norm, -ln layer norm, -none no norm, e.g. resnet18-bn. Or a torchvision classifier, fitted to the
    images and classes, e.g. torchvision:mobilenet_v2."""
    width: Size | None = Field(default=None, validate_default=True)
    """Channels of each convnet block, units of each hidden mlp layer, or channels of the first convolution of the other
    families (later ones in proportion). Default: as published. Not for torchvision's."""
    activation: str | None = Field(default=None, validate_default=True)
    """Convnet and mlp only: relu (the default), leaky-relu, sigmoid, silu, gelu or softplus."""
    pooling: str | None = Field(default=None, validate_default=True)
    """Convnet only: 2x2 pooling in each block: avg (the default), max or none."""

    @field_validator("name")
    @classmethod
    def _valid_name(cls, value: str) -> str:
        return network_name(value)

    @field_validator("width", "activation", "pooling")
    @classmethod
    def _of_its_family(cls, value: Any, info: ValidationInfo) -> Any:
        option, name = str(info.field_name), sibling(info, "name")
        if name is None:
            return value
        family = None if name.startswith(TORCHVISION) else FAMILIES[parse_name(name).family]
        default = getattr(family, option, None)
        if value is not None and default is None:
            raise invalid(f"has no effect with network.name {name}; remove it")
        allowed = {"activation": ACTIVATIONS, "pooling": POOLINGS}.get(option)
        if value is not None and allowed is not None and value not in allowed:
            raise invalid(f"must be one of {', '.join(allowed)}")
        return default if value is None else value


def network_name(value: str) -> str:
    """The name, if it is valid. Raises: PydanticCustomError that lists the valid names."""
    if value.startswith(TORCHVISION):
        if not re.fullmatch(r"[a-z0-9_]+", value.removeprefix(TORCHVISION)):
            raise invalid("must be torchvision:NAME with a classifier's name, e.g. torchvision:mobilenet_v2")
        return value
    try:
        parse_name(value)
    except ValueError as e:
        raise invalid(f"{e}; or a torchvision classifier, e.g. torchvision:mobilenet_v2") from None
    return value
