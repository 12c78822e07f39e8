"""Shape, classes and number of the real images, as a plan needs them.

For known datasets no files are needed; from other sources a few images are read.
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
class ImageInfo:
    """The real images of a run."""

    shape: ImageShape
    num_classes: int
    num_train: int
    num_validation: int = 0
    known_by: str
    """Where these numbers come from, for the printed plan."""


# channels, side, classes, training images
_KNOWN = {
    "mnist": (1, 28, 10, 60_000),
    "fashion-mnist": (1, 28, 10, 60_000),
    "cifar10": (3, 32, 10, 50_000),
    "cifar100": (3, 32, 100, 50_000),
    "tiny-imagenet": (3, 64, 200, 100_000),
    "cub200": (3, 64, 200, 5_994),
    "imagenet": (3, 64, 1_000, 1_281_167),
}
"""Sides are overridden by `data.image_size`."""

_NUM_INSPECTED = 64
"""Images decoded from other sources."""


def known_images(
    source: str, image_size: int | None = None, classes: Sequence[str | int] | None = None
) -> ImageInfo:
    """The images of a known dataset, or of some of its classes, before the validation split.

    Raises: KeyError for another name.
    """
    channels, side, num_classes, count = _KNOWN[source]
    kept = len(classes) if classes is not None else num_classes
    side = image_size or side
    return ImageInfo(
        shape=(channels, side, side),
        num_classes=kept,
        num_train=count * kept // num_classes,
        known_by=f"published size of {source}",
    )


def _inspect(config: Config) -> ImageInfo:
    """The images of any other source. Raises: DataError."""
    spec = data_spec(config)
    listing = development_listing(spec)
    if spec.classes is not None:
        listing = listing.take_classes(spec.classes)
    few = listing.take(torch.arange(min(_NUM_INSPECTED, len(listing))))
    broken = BrokenImages.up_to(spec.max_broken, len(listing))
    pixels = [image.pixels_CHW for image in decode_images(few, image_size=spec.image_size, broken=broken)]
    _, height, width = pixels[0].shape
    # Grey images among colour images are converted to colour.
    channels = max(len(image) for image in pixels)
    return ImageInfo(
        shape=(channels, height, width),
        num_classes=len(listing.class_names),
        num_train=len(listing),
        known_by="counted in the source",
    )


def image_info(config: Config) -> ImageInfo:
    """The images of the configuration's source, after the validation split. Raises: DataError."""
    section = config.data
    every = (
        known_images(section.source, section.image_size, section.classes)
        if section.source in _KNOWN
        else _inspect(config)
    )
    count = min(every.num_train, section.limit or every.num_train)
    held_out = round(count * section.validation_fraction)
    return replace(every, num_train=count - held_out, num_validation=held_out)
