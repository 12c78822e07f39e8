"""From a network's name in a configuration to the network.

Networks that judge D may be others than the one that it is learnt through. They share its options where that
is what a comparison means: convnets of several depths, and perceptrons beside them, at one width. A ResNet beside
a ConvNet is the published one.
"""

from ray_distill.config.config import Config, ConfigError
from ray_distill.config.network import TORCHVISION
from ray_distill.core.networks.names import FAMILIES, parse_name
from ray_distill.core.networks.network import ImageShape, Network, NetworkSpec, build_network


def _kin(name: str) -> str:
    """What the networks that share their options have in common: the family, or that they are convnets or mlps."""
    if name.startswith(TORCHVISION):
        return name
    family = parse_name(name).family
    return "convnet" if family == "mlp" else family


def network_spec(config: Config, name: str) -> NetworkSpec:
    """The named network, with the options of the configuration's own network if it is of its kin."""
    own, usual = config.network, FAMILIES[parse_name(name).family]
    if _kin(name) != _kin(own.name):
        return NetworkSpec(name=name)
    return NetworkSpec(
        name=name,
        width=own.width,
        activation=own.activation if usual.activation else None,
        pooling=own.pooling if usual.pooling else None,
    )


def network_for(
    config: Config, name: str, image_shape: ImageShape, num_classes: int, key: str = "network.name"
) -> Network:
    """The named network as the configuration has it. Raises: ConfigError if it does not fit."""
    try:
        if not name.startswith(TORCHVISION):
            return build_network(network_spec(config, name), image_shape, num_classes)
        # Imported here: torchvision takes a second, and most runs need none of it.
        from ray_distill.builders.torchvision import torchvision_network

        return torchvision_network(name.removeprefix(TORCHVISION), image_shape, num_classes)
    except ValueError as e:
        raise ConfigError(f"{key}: {e}") from None
