"""Names of networks, and the options of each family.

A name is a family, its depth if there are several, and `-norm` if the norm is not the family's default: `convnet3`,
`alexnet`, `resnet18-bn`. Every network has exactly one name, so that tables cannot list it twice.

Does not import torch, so that checking a configuration is fast.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

NORMS = {"bn": "batch", "gn": "group", "in": "instance", "ln": "layer", "none": "none"}
"""Suffix in a name -> norm."""
ACTIVATIONS = ("relu", "leaky-relu", "sigmoid", "silu", "gelu", "softplus")
POOLINGS = ("avg", "max", "none")


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of architectures."""

    depths: tuple[int, ...] = ()
    """The depths that can be built; empty for a single architecture."""
    norm: str | None
    """The default norm, which names omit. None: the family has no norms."""
    width: int
    """The published width: channels of each block of a convnet, units of each hidden layer of an MLP, otherwise
    channels of the first convolution, to which the others are proportional."""
    activation: str | None = None
    """The default activation; None if it cannot be chosen."""
    pooling: str | None = None
    """The default pooling; None if it cannot be chosen."""


FAMILIES = {
    "convnet": Family(
        depths=tuple(range(1, 10)), norm="instance", width=128, activation="relu", pooling="avg"
    ),
    "mlp": Family(depths=tuple(range(1, 10)), norm=None, width=128, activation="relu"),
    "alexnet": Family(norm="instance", width=128),
    "vgg": Family(depths=(11, 13, 16, 19), norm="instance", width=64),
    "resnet": Family(depths=(18, 34, 50), norm="instance", width=64),
}


class NetworkName(NamedTuple):
    """A parsed name."""

    family: str
    depth: int
    """0 for a family with a single architecture."""
    norm: str
    """One of the values of NORMS."""


def known_names() -> str:
    """The allowed names, for messages."""
    names = []
    for name, family in FAMILIES.items():
        all_depths = [f"{name}{depth}" for depth in family.depths] or [name]
        if len(all_depths) > 4:
            all_depths = [f"{all_depths[0]} .. {all_depths[-1]}"]
        names += all_depths
    suffixes = " ".join(f"-{short}" for short in NORMS)
    return (
        f"{', '.join(names)}; with a suffix for another norm than the default ({suffixes}), as in resnet18-bn"
    )


def parse_name(name: str) -> NetworkName:
    """`convnet3` -> ("convnet", 3, "instance"). Raises: ValueError with the allowed names."""
    match = re.fullmatch(r"([a-z]+)([0-9]*)(?:-([a-z]+))?", name)
    family = FAMILIES.get(match[1]) if match else None
    if match is None or family is None or match[2] not in ([str(d) for d in family.depths] or [""]):
        raise ValueError(f"unknown network {name!r}; known: {known_names()}")
    plain, suffix = match[1] + match[2], match[3]
    if suffix is not None and suffix not in NORMS:
        raise ValueError(f"unknown norm -{suffix} of network {name!r}; known: -{', -'.join(NORMS)}")
    if suffix is not None and family.norm is None:
        raise ValueError(f"{plain} has no norms, so -{suffix} has no effect; write {plain}")
    if suffix is not None and NORMS[suffix] == family.norm:
        raise ValueError(f"{family.norm} norm is the default of {plain}; write {plain}, not {name}")
    norm = NORMS[suffix] if suffix is not None else family.norm or "none"
    return NetworkName(match[1], int(match[2] or 0), norm)
