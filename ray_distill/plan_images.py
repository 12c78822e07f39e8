"""What a plan must know of the real images: their shape, their classes, how many there are.

Named datasets are what they are, so a plan needs none of their files; of other sources a few images are
looked at.
"""

from dataclasses import dataclass, replace

import pyarrow.parquet as pq

from ray_distill.config import Config
from ray_distill.core.networks import ImageShape
from ray_distill.data.sources import files_of, load_development, parquet_path


@dataclass(frozen=True, kw_only=True)
class RealImages:
    """The real images of a run."""

    shape: ImageShape
    num_classes: int
    num_train: int
    num_validation: int = 0
    known_by: str
    """How these figures are known, for people."""


# channels, side, classes, training images
_NAMED = {
    "mnist": (1, 28, 10, 60_000),
    "fashion-mnist": (1, 28, 10, 60_000),
    "cifar10": (3, 32, 10, 50_000),
    "cifar100": (3, 32, 100, 50_000),
    "tiny-imagenet": (3, 64, 200, 100_000),
    "cub200": (3, 64, 200, 5_994),
    "imagenet": (3, 64, 1_000, 1_281_167),
}
"""Sides are those of `data.image_size` where the configuration has one."""

_LOOKED_AT = 2_000
"""Images that are decoded of a source that is no named dataset: at least one of each class."""


def named(source: str, image_size: int | None = None) -> RealImages:
    """The images of a named dataset, before validation is held out. Raises: KeyError for another name."""
    channels, side, classes, count = _NAMED[source]
    side = image_size or side
    return RealImages(
        shape=(channels, side, side), num_classes=classes, num_train=count, known_by=f"{source} has them"
    )


def _looked_at(source: str) -> RealImages:
    """The images of a source that is there. Raises: DataError."""
    few = load_development(source, limit=_LOOKED_AT)
    path, count = parquet_path(source), len(few)
    if path is not None:
        count = sum(pq.read_metadata(file).num_rows for file in files_of(path, "train*.parquet"))
    return RealImages(
        shape=few.image_shape, num_classes=few.num_classes, num_train=count, known_by="as they are there"
    )


def real_images(config: Config) -> RealImages:
    """The images of the configuration's source, with validation held out. Raises: DataError."""
    section = config.data
    size: int | None = getattr(section, "image_size", None)
    every = named(section.source, size) if section.source in _NAMED else _looked_at(section.source)
    count = min(every.num_train, section.limit or every.num_train)
    held_out = round(count * section.validation_fraction)
    return replace(every, num_train=count - held_out, num_validation=held_out)
