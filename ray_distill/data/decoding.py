"""From image files to pixels of one size: decoded in parallel, scaled and cropped, broken ones counted.

Pillow decodes, and scales with an antialiasing filter. It releases the GIL meanwhile, so threads use all cores.
"""

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_distill.data.labelled_images import DataError
from ray_distill.data.listing import Encoded, Listing
from ray_distill.data.paths import DataFile

if TYPE_CHECKING:
    from PIL import Image

Progress = Callable[[str, int, int], None]
"""Called with (activity, units done, total units)."""

_PART_IMAGES = 128
_SHOWN_BROKEN = 5


class _UnreadableImage(Exception):  # noqa: N818 (returned by threads as a value)
    """Why an image is broken."""


class DecodedImage(NamedTuple):
    """An image's row in the listing, its location for messages, and its pixels [C, H, W]: one channel if grey, else RGB."""

    row: int
    location: str
    pixels_CHW: NDArray[np.uint8]


@dataclass
class BrokenImages:
    """The images so far that cannot be decoded."""

    allowed: int
    names: list[str] = field(default_factory=list)
    """Location and reason of each."""

    @classmethod
    def up_to(cls, max_broken: float, num_images: int) -> "BrokenImages":
        """Tolerates `max_broken` images, or that fraction of them if below 1."""
        return cls(int(max_broken * num_images) if max_broken < 1 else int(max_broken))

    def add(self, location: str, reason: str) -> None:
        """Count one. Raises: DataError if it is one too many."""
        self.names.append(f"{location}: {reason}")
        if len(self.names) > self.allowed:
            shown = "\n  ".join(self.names[:_SHOWN_BROKEN])
            if self.allowed == 0:
                raise DataError(
                    f"{shown}\nfix or remove it, or set data.max_broken to the number of images that may be skipped"
                )
            raise DataError(
                f"more broken images than data.max_broken allows ({self.allowed}); the first:\n  {shown}"
            )


def decode_images(
    listing: Listing, *, image_size: int | None, broken: BrokenImages, progress: Progress | None = None
) -> Iterator[DecodedImage]:
    """The listing's images in order, skipping broken ones.

    Args:
        image_size: scale the shorter side to it and crop the central square. None: as they are.
        broken: collects the broken ones.

    Raises: DataError for too many broken images.
    """
    row = 0
    with ThreadPoolExecutor() as pool:
        for batch in listing.batches(np.arange(len(listing))):
            parts = [batch[i : i + _PART_IMAGES] for i in range(0, len(batch), _PART_IMAGES)]
            sizes = [image_size] * len(parts)
            for part, images in zip(parts, pool.map(_decode_part, parts, sizes), strict=True):
                for (location, _), pixels_CHW in zip(part, images, strict=True):
                    if isinstance(pixels_CHW, _UnreadableImage):
                        broken.add(location, str(pixels_CHW))
                    else:
                        yield DecodedImage(row, location, pixels_CHW)
                    row += 1
            if progress is not None and batch:
                progress("decoding", row, len(listing))


def _decode_part(
    part: list[tuple[str, Encoded]], image_size: int | None
) -> list[NDArray[np.uint8] | _UnreadableImage]:
    images: list[NDArray[np.uint8] | _UnreadableImage] = []
    for _, encoded in part:
        try:
            images.append(_pixels(encoded, image_size))
        except _UnreadableImage as reason:
            images.append(reason)
    return images


def _pixels(encoded: Encoded, image_size: int | None) -> NDArray[np.uint8]:
    if isinstance(encoded, np.ndarray):
        return encoded if image_size is None else _resized_channels(encoded, image_size)
    if isinstance(encoded, DataFile):
        try:
            encoded = encoded.read()
        except DataError as error:
            raise _UnreadableImage(str(error)) from error
    if not encoded:
        raise _UnreadableImage("the image is empty (0 bytes); files that it refers to are not read")
    return _decode(encoded, image_size)


def _decode(encoded: bytes, image_size: int | None) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.mode in ("I", "F") or image.mode.startswith("I;"):
                raise _UnreadableImage(
                    f"the image has mode {image.mode}; only 8 bits per channel are supported"
                )
            if image_size is not None:
                # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, for proportionally less work.
                image.draft(None, (2 * image_size, 2 * image_size))
            grey = image.mode in ("1", "L", "LA")
            plain = image.convert("L" if grey else "RGB")
            pixels = np.asarray(plain if image_size is None else _square(plain, image_size))
    except _UnreadableImage:
        raise
    except Exception as error:
        raise _UnreadableImage(f"the image cannot be decoded: {error}") from error
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _square(image: "Image.Image", side: int) -> "Image.Image":
    """The shorter side scaled to `side`, then the central square."""
    from PIL.Image import Resampling

    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    scaled = image.resize((width, height), Resampling.BILINEAR)
    left, top = (width - side) // 2, (height - side) // 2
    return scaled.crop((left, top, left + side, top + side))


def _resized_channels(pixels_CHW: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    from PIL import Image

    return np.stack([np.asarray(_square(Image.fromarray(channel), side)) for channel in pixels_CHW])
