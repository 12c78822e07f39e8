"""Labelled images in a mapped Arrow file, and the error for unusable data.

The tensor of the images is the file, mapped into memory: all processes of a machine share its pages, and pages that are not
read cost nothing. `pixel_chunks` converts a few rows at a time to floats.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path

import torch
from torch import Tensor

from ray_distill.errors import UserError

CHUNK_IMAGES = 1000
"""Images converted to floats at a time: 12 MB of CIFAR."""


class DataError(UserError):
    """Unusable data; the message says what is wrong, where, and how to fix it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledImages:
    """Images and their classes."""

    images_NCHW: Tensor
    """uint8 from 0 to `white`, or float32 if preprocessed. Read-only."""
    labels_N: Tensor
    """int64, each in 0 .. K-1."""
    class_names: tuple[str, ...]
    white: int = 255
    """The value of full intensity: the pixels in [0, 1] are images_NCHW / white."""
    digest: str
    """Hash of the pixels, labels and names: equal for equal images from any source."""
    path: Path
    """The Arrow file."""
    mapping: mmap
    """The file, mapped into memory."""
    broken: tuple[str, ...] = ()
    """Images skipped because they cannot be decoded: location and reason of each."""

    @property
    def num_classes(self) -> int:
        """K, the named classes, whether they have images or not."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images_NCHW.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.labels_N)

    def pixels(self, rows_N: Tensor) -> Tensor:
        """The images at these rows as float32 in [0, 1], [N, C, H, W]."""
        return self.images_NCHW[rows_N].to(torch.float32) / self.white

    def pixel_chunks(self, rows_N: Tensor) -> Iterator[Tensor]:
        """The images at these rows as float32 in [0, 1], at most CHUNK_IMAGES at a time."""
        for chunk in torch.split(rows_N, CHUNK_IMAGES):
            yield self.pixels(chunk)
