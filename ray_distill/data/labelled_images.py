"""Labelled images as they lie in an Arrow file, and the error for data that cannot be used.

The tensor of the images is the file itself, mapped into memory: all processes of a machine share its pages, and
what is not read costs nothing. `pixel_chunks` makes floats of a few rows at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path

import torch
from torch import Tensor

from ray_distill.errors import UserError

CHUNK_IMAGES = 1000
"""Images that are turned into floats at a time: 12 MB of CIFAR."""


class DataError(UserError):
    """The data that the user named cannot be used; the message says what, where and how to mend it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledImages:
    """Images and their classes."""

    images_NCHW: Tensor
    """uint8 from 0 to `white`, or float32 where they are preprocessed. Never written to."""
    labels_N: Tensor
    """int64, each in 0 .. K-1."""
    class_names: tuple[str, ...]
    white: int = 255
    """The value of full intensity: the pixels in [0, 1] are images_NCHW / white."""
    digest: str
    """Of the pixels, the labels and the names: the same for the same images wherever they come from."""
    path: Path
    """The file that they lie in."""
    mapping: mmap
    """That file in memory."""
    broken: tuple[str, ...] = ()
    """Images of the source that could not be decoded and were left out: where they are, and why."""

    @property
    def num_classes(self) -> int:
        """K, the classes that have a name, seen or not."""
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
