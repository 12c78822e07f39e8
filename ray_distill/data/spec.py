"""Which real data a run uses, as plain values: the source, the selection, the preprocessing, and the folders.

Paths in it are absolute, so it means the same in every process of a run.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

CACHE_VARIABLE = "RAY_DISTILL_CACHE"
"""Environment variable: the folder of downloads and prepared data, instead of ~/.cache/ray_distill."""


def cache_root() -> Path:
    """The default folder of downloads and prepared images."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ray_distill"


def default_root() -> str:
    """The default folder of named sources."""
    return str(cache_root() / "data")


def default_cache() -> Path:
    """The default folder of prepared images."""
    return cache_root() / "prepared"


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """One run's real data."""

    source: str
    """A name, or KIND:PATH (see `sources`)."""
    test_source: str | None = None
    """KIND:PATH of the test data, if the source has none, or instead of them."""
    root: str = field(default_factory=default_root)
    """Folder or URI of the named sources' files."""
    image_size: int | None = None
    """Images are scaled to this shorter side, then cropped to the central square. None: as they are."""
    classes: tuple[str | int, ...] | None = None
    """The selected classes, by name or index, numbered in this order. None: all."""
    limit: int | None = None
    """Development images to select, with class counts as equal as possible. None: all."""
    max_broken: float = 0.0
    """Images that may be skipped because they cannot be decoded: a count, or a fraction if below 1."""
    preprocessing: str = "none"
    """`none`, `normalise` or `zca`."""
    zca_shrinkage: float = 0.1
    validation_fraction: float = 0.0
    """Fraction of each class's development images held out for validation, in [0, 1)."""
    seed: int = 0
    """Seed of the choice of validation images."""
    cache: Path = field(default_factory=default_cache)
    """Folder of prepared images on this machine."""
    shared: str | None = None
    """URI of a folder in a store by which machines share prepared images. None: they do not."""

    @property
    def kind(self) -> str:
        """The source's name, or the KIND of KIND:PATH."""
        return self.source.partition(":")[0]

    @property
    def path(self) -> str:
        """The PATH of KIND:PATH, empty for a named source."""
        return self.source.partition(":")[2]
