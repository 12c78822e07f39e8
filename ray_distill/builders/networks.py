"""Builds a network from its name in a configuration.

Evaluation networks of the configured network's kind take its options, so that they are comparable: convnets of any
depth and MLPs get its width. Others, such as a ResNet beside a ConvNet, are built as published.
"""

from ray_distill.config.config import Config, ConfigError
from ray_distill.config.network import TORCHVISION
from ray_distill.core.networks.names import FAMILIES, parse_name
from ray_distill.core.networks.network import ImageShape, Network, NetworkSpec, build_network


def _kind(name: str) -> str:
    """What networks that share options have in common: the family, where convnets and MLPs count as one."""
    if name.startswith(TORCHVISION):
        return name
    family = parse_name(name).family
    return "convnet" if family == "mlp" else family


def network_spec(config: Config, name: str) -> NetworkSpec:
    """The named network, with the options of the configured network if it is of the same kind."""
    own, family = config.network, FAMILIES[parse_name(name).family]
    if _kind(name) != _kind(own.name):
        return NetworkSpec(name=name)
    return NetworkSpec(
        name=name,
        width=own.width,
        activation=own.activation if family.activation else None,
        pooling=own.pooling if family.pooling else None,
    )


def network_for(
    config: Config, name: str, image_shape: ImageShape, num_classes: int, key: str = "network.name"
) -> Network:
    """The named network with the configuration's options. Raises: ConfigError, under `key`, if it does not fit."""
    try:
        if not name.startswith(TORCHVISION):
            return build_network(network_spec(config, name), image_shape, num_classes)
        # Imported here: it takes a second, and few runs need it.
        from ray_distill.builders.torchvision import torchvision_network

        return torchvision_network(name.removeprefix(TORCHVISION), image_shape, num_classes)
    except ValueError as e:
        raise ConfigError(f"{key}: {e}") from None
