"""Real images from which batches are taken, and preprocessed as they are taken.

They stay in a file that is mapped into memory, so a dataset may be larger than the memory: batches are copied out, and the
operating system shares the file's pages between processes and frees them when it needs the memory. If a GPU has enough
free memory, all are copied there once.
"""

import mmap as mmap_module
from collections.abc import Iterator
from dataclasses import dataclass, replace
from mmap import mmap

import torch
from torch import Tensor

from ray_distill.core.distilled import DistilledData, one_hot
from ray_distill.data.labelled_images import CHUNK_IMAGES, LabelledImages
from ray_distill.data.preprocessing import Preprocessing

MADV_DONTNEED: int | None = getattr(mmap_module, "MADV_DONTNEED", None)
"""None where the operating system lacks it."""

GPU_MEMORY_FRACTION = 0.5
"""Fraction of a GPU's free memory that real images may take."""

LARGE_BYTES = 2**30
"""Size from which a file's pages are released after each batch, or a cluster's memory monitor would count all of them as the
process's. They stay in the operating system's cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RealData:
    """Preprocessed real images and their classes."""

    source_NCHW: Tensor
    """uint8 pixels, or preprocessed float32 images; mapped from a file, or on the device."""
    rows_N: Tensor
    """The rows of `source_NCHW` that belong to these data: int64, on the same device."""
    labels_N: Tensor
    """The class of each row: int64, on the device."""
    num_classes: int
    white: int
    preprocessing: Preprocessing | None
    """Applied to batches of pixels in [0, 1]; None if the source is preprocessed."""
    mapping: mmap | None
    """The mapped file; None if the images are on a GPU."""
    dtype: torch.dtype = torch.float32
    """Of batches."""

    @classmethod
    def from_images(
        cls, images: LabelledImages, rows_N: Tensor, preprocessing: Preprocessing | None
    ) -> "RealData":
        """These rows of images, on the CPU in float32."""
        return cls(
            source_NCHW=images.images_NCHW,
            rows_N=rows_N,
            labels_N=images.labels_N[rows_N],
            num_classes=images.num_classes,
            white=images.white,
            preprocessing=preprocessing,
            mapping=images.mapping,
        )

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.labels_N)

    @property
    def device(self) -> torch.device:
        """Of batches."""
        return self.labels_N.device

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.source_NCHW.shape[1:]
        return channels, height, width

    def images(self, rows_N: Tensor) -> Tensor:
        """The preprocessed images at these rows, [n, C, H, W], on `device` in `dtype`."""
        chosen = self.rows_N[rows_N.to(self.rows_N.device)]
        images_NCHW = self.source_NCHW[chosen].to(self.device)
        if self.mapping is not None and len(self.mapping) >= LARGE_BYTES and MADV_DONTNEED is not None:
            self.mapping.madvise(MADV_DONTNEED)
        if self.preprocessing is not None:
            # A tensor on the device: dividing by a Python number rounds differently on GPUs.
            white = torch.tensor(float(self.white), device=self.device)
            images_NCHW = self.preprocessing.apply(images_NCHW.to(torch.float32) / white)
        return images_NCHW.to(self.dtype)

    def rows(self, rows_N: Tensor) -> DistilledData:
        """The images at these rows, with one-hot labels."""
        labels_N = self.labels_N[rows_N.to(self.device)]
        return DistilledData(self.images(rows_N), one_hot(labels_N, self.num_classes, self.dtype))

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All images and their labels, in batches."""
        for rows_N in torch.arange(self.num_images).split(CHUNK_IMAGES):
            yield self.images(rows_N), self.labels_N[rows_N.to(self.device)]

    def to(self, device: torch.device, dtype: torch.dtype) -> "RealData":
        """The same data with batches in this dtype on this device; copied to a GPU if it has enough free memory."""
        moved = replace(self, labels_N=self.labels_N.to(device), dtype=dtype)
        if device.type == "cpu" or not _fits_on(self, device):
            return moved
        shape = (self.num_images, *self.image_shape)
        copied = torch.empty(shape, dtype=self.source_NCHW.dtype, device=device)
        for out, rows_N in zip(copied.split(CHUNK_IMAGES), self.rows_N.split(CHUNK_IMAGES), strict=True):
            out.copy_(self.source_NCHW[rows_N])
        rows_N = torch.arange(self.num_images, device=device)
        return replace(moved, source_NCHW=copied, rows_N=rows_N, mapping=None)


def _fits_on(data: RealData, device: torch.device) -> bool:
    free_bytes, _ = torch.cuda.mem_get_info(device)
    image = data.source_NCHW[0]
    return data.num_images * image.numel() * image.element_size() <= GPU_MEMORY_FRACTION * free_bytes
