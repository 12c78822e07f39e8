"""What a plan must know of the real images: their shape, their classes, how many there are.

Named datasets are what they are, so a plan needs none of their files; of other sources a few images are
looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ray_distill.builders.data import data_spec
from ray_distill.config.config import Config
from ray_distill.core.networks.network import ImageShape
from ray_distill.data.decoding import BrokenImages, decode_images
from ray_distill.data.sources import development_listing


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

_LOOKED_AT = 64
"""Images that are decoded of a source that is no named dataset."""


def named(
    source: str, image_size: int | None = None, classes: Sequence[str | int] | None = None
) -> RealImages:
    """The images of a named dataset, or of some of its classes, before validation is held out.

    Raises: KeyError for another name.
    """
    channels, side, num_classes, count = _NAMED[source]
    kept = len(classes) if classes is not None else num_classes
    side = image_size or side
    return RealImages(
        shape=(channels, side, side),
        num_classes=kept,
        num_train=count * kept // num_classes,
        known_by=f"{source} has them",
    )


def _looked_at(config: Config) -> RealImages:
    """The images of a source that is there. Raises: DataError."""
    spec = data_spec(config)
    listing = development_listing(spec)
    if spec.classes is not None:
        listing = listing.take_classes(spec.classes)
    few = listing.take(torch.arange(min(_LOOKED_AT, len(listing))))
    broken = BrokenImages.up_to(spec.max_broken, len(listing))
    pixels = [image.pixels_CHW for image in decode_images(few, image_size=spec.image_size, broken=broken)]
    _, height, width = pixels[0].shape
    # Grey images beside colour are spread to it.
    channels = max(len(image) for image in pixels)
    return RealImages(
        shape=(channels, height, width),
        num_classes=len(listing.class_names),
        num_train=len(listing),
        known_by="as they are there",
    )


def real_images(config: Config) -> RealImages:
    """The images of the configuration's source, with validation held out. Raises: DataError."""
    section = config.data
    every = (
        named(section.source, section.image_size, section.classes)
        if section.source in _NAMED
        else _looked_at(config)
    )
    count = min(every.num_train, section.limit or every.num_train)
    held_out = round(count * section.validation_fraction)
    return replace(every, num_train=count - held_out, num_validation=held_out)
