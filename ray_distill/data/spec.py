"""Which real data a run asks for, as plain values: the source, what is kept of it, how it is prepared, and where.

Paths in it are absolute, so that it means the same in every process of the run.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

CACHE_VARIABLE = "RAY_DISTILL_CACHE"
"""Environment variable: the folder for all that can be had again, in place of ~/.cache/ray_distill."""


def cache_root() -> Path:
    """Where downloads and prepared images go unless the configuration says otherwise."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ray_distill"


def default_root() -> str:
    """The folder of the sources that have a name."""
    return str(cache_root() / "data")


def default_cache() -> Path:
    """The folder of prepared images."""
    return cache_root() / "prepared"


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """One run's real data."""

    source: str
    """A name, or KIND:PATH (see `sources`)."""
    test_source: str | None = None
    """KIND:PATH of the test data, where the source has none of its own, or in their place."""
    root: str = field(default_factory=default_root)
    """Folder or URI where the files of named sources lie."""
    image_size: int | None = None
    """Images are scaled to this shorter side, then cut to a square in their middle. None: as they are."""
    classes: tuple[str | int, ...] | None = None
    """The classes that are kept, by name or index; they are numbered in this order. None: all."""
    limit: int | None = None
    """Development images that are kept, with class counts as equal as can be. None: all."""
    max_broken: float = 0.0
    """Images that may be left out because they cannot be decoded: a count, or a fraction where below 1."""
    preprocessing: str = "none"
    """`none`, `normalise` or `zca`."""
    zca_shrinkage: float = 0.1
    validation_fraction: float = 0.0
    """Share of each class that is held out of the development images, in [0, 1)."""
    seed: int = 0
    """Decides which images are held out."""
    cache: Path = field(default_factory=default_cache)
    """Where prepared images are kept, on this machine."""
    shared: str | None = None
    """URI of a folder in a store, by which machines share them. None: they do not."""

    @property
    def kind(self) -> str:
        """The source's name, or the KIND of KIND:PATH."""
        return self.source.partition(":")[0]

    @property
    def path(self) -> str:
        """The PATH of KIND:PATH, empty for a named source."""
        return self.source.partition(":")[2]
