"""Labelled images as they were stored, and the error for data that cannot be used.

Pixels stay integers: 50,000 CIFAR images are 154 MB as uint8 and 614 MB as float32, and every float
copy that is made on the way to the preprocessed tensors would cost that again. `pixels` gives floats for
the rows that are asked for, `pixel_chunks` a few at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_distill.errors import MistakeError

CHUNK_IMAGES = 1000
"""Images that are turned into floats at a time: 12 MB of CIFAR."""


class DataError(MistakeError):
    """The data that the user named cannot be used; the message says what, where and how to mend it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledImages:
    """Images and their classes."""

    images_NCHW: Tensor
    """uint8, from 0 to `white`."""
    labels_N: Tensor
    """int64, each in 0 .. K-1."""
    class_names: tuple[str, ...]
    white: int = 255
    """The value of full intensity: the pixels in [0, 1] are images_NCHW / white."""

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

    def take(self, rows: Tensor) -> "LabelledImages":
        """The images at these rows, in this order."""
        return LabelledImages(
            images_NCHW=self.images_NCHW[rows],
            labels_N=self.labels_N[rows],
            class_names=self.class_names,
            white=self.white,
        )

    def pixels(self) -> Tensor:
        """All images as float32 in [0, 1], [N, C, H, W]."""
        return self.images_NCHW.to(torch.float32) / self.white

    def pixel_chunks(self, rows: Tensor) -> Iterator[Tensor]:
        """The images at these rows as float32 in [0, 1], at most CHUNK_IMAGES at a time."""
        for chunk in torch.split(rows, CHUNK_IMAGES):
            yield self.images_NCHW[chunk].to(torch.float32) / self.white
