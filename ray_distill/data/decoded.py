"""DecodedImage once: the pixels of a source in an Arrow file of the cache, as integers.

Kept are uint8 pixels (CIFAR-10: 154 MB, ImageNet at 64x64: 16 GB), since floats are four times as large and made
in no time from a batch. The file's name holds a hash of all that its pixels depend on: paths, sizes and times of
the source's files, and what was kept of them. Another process that wants the same waits for the one that builds.
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
"""Constant: a limit keeps the same images in every run, whatever its seed."""

DECODER_VERSION = 1
"""Raised with every change after which the same files give other pixels."""

_CHUNK_IMAGES = 256


class _MixedColour(Exception):  # noqa: N818 (a turn, not an error)
    """An image with colour came after grey ones."""


def cached_pixels(
    listing: Listing, spec: DataSpec, split: str, progress: Progress | None = None
) -> LabelledImages:
    """The listing's images as the spec wants them, from the cache; decoded into it first if they are not there.

    Args:
        split: `development` or `test`. A limit is for the first.

    Raises: DataError for classes that there are not, an image that cannot be decoded beyond the spec's
        tolerance, or one of another size than the first.
    """
    known, side = listing.image_shape, spec.image_size
    if side is not None and known is not None and known[1:] == (side, side):
        raise DataError(f"data.image_size: has no effect, {spec.source} has this size; remove it")
    wanted = _wanted(listing, spec, split)
    path = spec.cache / f"{_slug(spec.source)}-{split}-{_key(listing, spec, split)}.arrow"

    def waiting() -> None:
        if progress is not None:
            progress("waiting for another process to decode", 0, len(wanted))

    build_or_fetch(path, spec.shared, lambda part: _decode_into(part, wanted, spec, progress), waiting)
    return open_images(path)


def _wanted(listing: Listing, spec: DataSpec, split: str) -> Listing:
    if spec.classes is not None:
        listing = listing.take_classes(spec.classes)
    if split == "development" and spec.limit is not None:
        listing = listing.take(balanced_rows(listing.labels_N, spec.limit, LIMIT_STREAM))
    return listing


def _slug(source: str) -> str:
    """A readable part for a file's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", redact(source))[-40:].strip("-.")


def _key(listing: Listing, spec: DataSpec, split: str) -> str:
    kept = [DECODER_VERSION, split, spec.kind, spec.image_size, spec.classes, spec.max_broken]
    kept += [spec.limit] if split == "development" else []
    key = hashlib.blake2b(json.dumps(kept).encode(), digest_size=8)
    for file in listing.files:
        key.update(file.stamp().encode())
    return key.hexdigest()


def _decode_into(path: Path, listing: Listing, spec: DataSpec, progress: Progress | None) -> None:
    try:
        _spool(path, listing, spec, progress, colour=False)
    except _MixedColour:
        _spool(path, listing, spec, progress, colour=True)


def _spool(path: Path, listing: Listing, spec: DataSpec, progress: Progress | None, *, colour: bool) -> None:
    broken = BrokenImages.up_to(spec.max_broken, len(listing))
    images = decode_images(listing, image_size=spec.image_size, broken=broken, progress=progress)
    spool, rows = ArrowImageWriter(path), list[int]()
    try:
        for chunk in _chunks(_uniform(images, colour=colour)):
            spool.add(np.stack([image.pixels_CHW for image in chunk]))
            rows += [image.row for image in chunk]
        if not rows:
            raise DataError(f"{spec.source}: every image is broken, the first {broken.names[0]}")
        metadata = {"class_names": listing.class_names, "white": listing.white, "broken": broken.names}
        spool.finish(listing.labels_N[torch.tensor(rows)], metadata)
    finally:
        spool.close()


def _uniform(images: Iterator[DecodedImage], *, colour: bool) -> Iterator[DecodedImage]:
    """Images of one size and one number of channels: grey ones are spread to RGB beside colour.

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
                f"{image.place}: the image is {height}x{width} (height x width), the ones before it are "
                f"{size[0]}x{size[1]}; bring them to one size with data.image_size"
            )
        grey = len(image.pixels_CHW) == 1
        if not grey and not colour:
            raise _MixedColour
        yield image._replace(pixels_CHW=_spread(image.pixels_CHW)) if grey and colour else image


def _spread(grey_1HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
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
