"""What networks are called, and what each family of them leaves open.

A name is a family, its depth where there are several, and `-norm` where the norm is not the family's usual
one: `convnet3`, `alexnet`, `resnet18-bn`. Every network has one name only, so that tables cannot count it
twice.

No torch here, unlike in the rest of `core`: a configuration checks names and options with this module, and
tells a mistake at once.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

NORMS = {"bn": "batch", "gn": "group", "in": "instance", "ln": "layer", "none": "none"}
"""What stands in a name, and what it means."""
ACTIVATIONS = ("relu", "leaky-relu", "sigmoid", "silu", "gelu", "softplus")
POOLINGS = ("avg", "max", "none")


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of architecture."""

    depths: tuple[int, ...] = ()
    """Those that can be built; none where there is only one."""
    norm: str | None
    """The usual one, which a name does not mention. None: there is no place for a norm."""
    width: int
    """The published one: channels of each block of a convnet, units of each hidden layer of a perceptron,
    otherwise channels of the first convolution, which the others are in proportion to."""
    activation: str | None = None
    """The usual one, where there is a choice."""
    pooling: str | None = None
    """The usual one, where there is a choice."""


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
    """A name, taken apart."""

    family: str
    depth: int
    """0 where a family has only one."""
    norm: str
    """One of the values of NORMS."""


def known_names() -> str:
    """What can be built, for messages."""
    names = []
    for family, what in FAMILIES.items():
        all_depths = [f"{family}{depth}" for depth in what.depths] or [family]
        if len(all_depths) > 4:
            all_depths = [f"{all_depths[0]} .. {all_depths[-1]}"]
        names += all_depths
    suffixes = " ".join(f"-{short}" for short in NORMS)
    return f"{', '.join(names)}; with another norm than the usual one ({suffixes}) as in resnet18-bn"


def parse_name(name: str) -> NetworkName:
    """`convnet3` -> ("convnet", 3, "instance"). Raises: ValueError that says what can be built."""
    match = re.fullmatch(r"([a-z]+)([0-9]*)(?:-([a-z]+))?", name)
    family = FAMILIES.get(match[1]) if match else None
    if match is None or family is None or match[2] not in ([str(d) for d in family.depths] or [""]):
        raise ValueError(f"unknown network {name!r}; known: {known_names()}")
    plain, suffix = match[1] + match[2], match[3]
    if suffix is not None and suffix not in NORMS:
        raise ValueError(f"unknown norm -{suffix} of network {name!r}; known: -{', -'.join(NORMS)}")
    if suffix is not None and family.norm is None:
        raise ValueError(f"{plain} has no place for a norm, so -{suffix} has no effect; write {plain}")
    if suffix is not None and NORMS[suffix] == family.norm:
        raise ValueError(f"{family.norm} norm is what {plain} has by itself; write {plain}, not {name}")
    norm = NORMS[suffix] if suffix is not None else family.norm or "none"
    return NetworkName(match[1], int(match[2] or 0), norm)
