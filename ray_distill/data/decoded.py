"""The decoded pixels of a source, cached in an Arrow file.

They are uint8 (CIFAR-10: 154 MB, ImageNet at 64x64: 16 GB): floats are four times as large, and quickly made from a batch.
The file's name contains a hash of all that its pixels depend on: paths, sizes and times of the source's files, and which
images were selected. A process that needs the same file waits for the one that builds it.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ray_distill.core.rng import Stream
from ray_distill.data.arrow_file import ArrowImageWriter, open_images
from ray_distill.data.cache import build_or_fetch
from ray_distill.data.decoding import BrokenImages, DecodedImage, Progress, decode_images
from ray_distill.data.labelled_images import DataError, LabelledImages
from ray_distill.data.listing import Listing
from ray_distill.data.spec import DataSpec
from ray_distill.data.strata import balanced_rows
from ray_distill.utils.secrets import redact

LIMIT_STREAM = Stream(seed=0, name="images kept by a limit")
"""Independent of the run's seed: a limit selects the same images in every run."""

DECODER_VERSION = 1
"""Incremented with every change by which the same files give other pixels."""

_CHUNK_IMAGES = 256


class _MixedColour(Exception):  # noqa: N818 (a signal, not an error)
    """A colour image came after grey ones: all must be written as RGB."""


def cached_pixels(
    listing: Listing, spec: DataSpec, split: str, progress: Progress | None = None
) -> LabelledImages:
    """The listing's images as the spec selects and scales them, from the cache; decoded into it first if necessary.

    Args:
        split: `development` or `test`. The spec's limit applies to `development` only.

    Raises: DataError for unknown classes, more broken images than the spec tolerates, or images of different sizes.
    """
    shape, side = listing.image_shape, spec.image_size
    if side is not None and shape is not None and shape[1:] == (side, side):
        raise DataError(
            f"data.image_size: has no effect, the images of {spec.source} have this size; remove it"
        )
    selected = _selected(listing, spec, split)
    path = spec.cache / f"{_slug(spec.source)}-{split}-{_key(listing, spec, split)}.arrow"

    def waiting() -> None:
        if progress is not None:
            progress("waiting for another process to decode", 0, len(selected))

    build_or_fetch(path, spec.shared, lambda part: _decode_into(part, selected, spec, progress), waiting)
    return open_images(path)


def _selected(listing: Listing, spec: DataSpec, split: str) -> Listing:
    if spec.classes is not None:
        listing = listing.take_classes(spec.classes)
    if split == "development" and spec.limit is not None:
        listing = listing.take(balanced_rows(listing.labels_N, spec.limit, LIMIT_STREAM))
    return listing


def _slug(source: str) -> str:
    """The source as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", redact(source))[-40:].strip("-.")


def _key(listing: Listing, spec: DataSpec, split: str) -> str:
    selection = [DECODER_VERSION, split, spec.kind, spec.image_size, spec.classes, spec.max_broken]
    selection += [spec.limit] if split == "development" else []
    key = hashlib.blake2b(json.dumps(selection).encode(), digest_size=8)
    for file in listing.files:
        key.update(file.stamp().encode())
    return key.hexdigest()


def _decode_into(path: Path, listing: Listing, spec: DataSpec, progress: Progress | None) -> None:
    try:
        _write(path, listing, spec, progress, colour=False)
    except _MixedColour:
        _write(path, listing, spec, progress, colour=True)


def _write(path: Path, listing: Listing, spec: DataSpec, progress: Progress | None, *, colour: bool) -> None:
    broken = BrokenImages.up_to(spec.max_broken, len(listing))
    images = decode_images(listing, image_size=spec.image_size, broken=broken, progress=progress)
    writer, rows = ArrowImageWriter(path), list[int]()
    try:
        for chunk in _chunks(_uniform(images, colour=colour)):
            writer.add(np.stack([image.pixels_CHW for image in chunk]))
            rows += [image.row for image in chunk]
        if not rows:
            raise DataError(f"{spec.source}: no image can be decoded; the first is {broken.names[0]}")
        metadata = {"class_names": listing.class_names, "white": listing.white, "broken": broken.names}
        writer.finish(listing.labels_N[torch.tensor(rows)], metadata)
    finally:
        writer.close()


def _uniform(images: Iterator[DecodedImage], *, colour: bool) -> Iterator[DecodedImage]:
    """Images of one size and one number of channels: grey ones become RGB if there are colour ones.

    Raises: DataError for another size than that of the first; _ColourAfterGrey.
    """
    first = next(images, None)
    if first is None:
        return
    channels, size = len(first.pixels_CHW), first.pixels_CHW.shape[1:]
    colour = colour or channels > 1
    for image in chain([first], images):
        if image.pixels_CHW.shape[1:] != size:
            height, width = image.pixels_CHW.shape[1:]
            raise DataError(
                f"{image.location}: the image is {height}x{width} (height x width), but the ones before it are "
                f"{size[0]}x{size[1]}; set data.image_size to scale them to one size"
            )
        grey = len(image.pixels_CHW) == 1
        if not grey and not colour:
            raise _MixedColour
        yield image._replace(pixels_CHW=_to_rgb(image.pixels_CHW)) if grey and colour else image


def _to_rgb(grey_1HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey_1HW, 3, axis=0)


def _chunks(images: Iterator[DecodedImage]) -> Iterator[list[DecodedImage]]:
    chunk: list[DecodedImage] = []
    for image in images:
        chunk.append(image)
        if len(chunk) == _CHUNK_IMAGES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
