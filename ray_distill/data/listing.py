"""What a source holds before its images are decoded: a row for each image, its class, and how to get at it.

Every layout of files (`parquet_images`, `class_folders` ..) gives a listing; what is kept of it is chosen by
taking rows; `decoding` turns what is left into pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_distill.data.labelled_images import DataError
from ray_distill.data.paths import DataFile

Encoded = bytes | DataFile | NDArray[np.uint8] | None
"""An image file's content, the file itself, or pixels [C, H, W]; None where there should be one and is not."""

EncodedBatch = list[tuple[str, Encoded]]
"""Where each image is, for people, and the image."""

_BATCH_ROWS = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """Images by rows."""

    labels_N: Tensor
    """int64, each in 0 .. K-1."""
    class_names: tuple[str, ...]
    files: tuple[DataFile, ...]
    """All files that it depends on."""
    batches: Callable[[NDArray[np.int64]], Iterator[EncodedBatch]]
    """(ascending rows) -> their images in this order, some at a time."""
    white: int = 255
    """The value of full intensity."""
    image_shape: tuple[int, int, int] | None = None
    """(C, H, W) where it is known before anything is decoded."""

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, rows_N: Tensor) -> "Listing":
        """The listing of these rows, which ascend."""
        rows, batches = rows_N.numpy(), self.batches
        return replace(self, labels_N=self.labels_N[rows_N], batches=lambda chosen: batches(rows[chosen]))

    def take_classes(self, wanted: Sequence[str | int]) -> "Listing":
        """The listing of these classes, by name or index, numbered in this order.

        Raises: DataError for a class that there is not, or that is named twice.
        """
        old = [self._class(name) for name in wanted]
        for i, k in enumerate(old):
            if k in old[:i]:
                raise DataError(
                    f"data.classes: {wanted[i]!r} names the class {self.class_names[k]} again; remove it"
                )
        new_K = torch.full((len(self.class_names),), -1)
        new_K[torch.tensor(old)] = torch.arange(len(old))
        kept = self.take((new_K[self.labels_N] >= 0).nonzero().flatten())
        return replace(
            kept, labels_N=new_K[kept.labels_N], class_names=tuple(self.class_names[k] for k in old)
        )

    def _class(self, wanted: str | int) -> int:
        if isinstance(wanted, int) and 0 <= wanted < len(self.class_names):
            return wanted
        if wanted in self.class_names:
            return self.class_names.index(str(wanted))
        names = ", ".join(self.class_names[:12]) + (", .." if len(self.class_names) > 12 else "")
        raise DataError(
            f"data.classes: there is no class {wanted!r}; allowed: 0 .. {len(self.class_names) - 1}, or of {names}"
        )


def file_listing(
    files: Sequence[DataFile],
    labels: Sequence[int],
    class_names: Sequence[str],
    others: Sequence[DataFile] = (),
) -> Listing:
    """Image files, each with its class.

    Args:
        others: files that the labels were read from.
    """

    def batches(rows: NDArray[np.int64]) -> Iterator[EncodedBatch]:
        for start in range(0, len(rows), _BATCH_ROWS):
            yield [(str(files[row]), files[row]) for row in rows[start : start + _BATCH_ROWS]]

    return Listing(
        labels_N=torch.tensor(labels, dtype=torch.int64),
        class_names=tuple(class_names),
        files=(*files, *others),
        batches=batches,
    )


def array_listing(
    images_NCHW: NDArray[np.uint8],
    labels_N: NDArray[np.integer],
    class_names: Sequence[str],
    files: Sequence[DataFile],
    *,
    white: int = 255,
) -> Listing:
    """Pixels that are there already. Raises: DataError for no image, or a label outside 0 .. K-1."""
    where = str(files[0])
    if len(images_NCHW) != len(labels_N) or len(images_NCHW) == 0:
        raise DataError(f"{where}: {len(images_NCHW)} images and {len(labels_N)} labels")
    labels = torch.from_numpy(labels_N.astype(np.int64))
    check_labels(labels, len(class_names), where)

    def batches(rows: NDArray[np.int64]) -> Iterator[EncodedBatch]:
        for start in range(0, len(rows), _BATCH_ROWS):
            yield [(f"{where}, row {row}", images_NCHW[row]) for row in rows[start : start + _BATCH_ROWS]]

    channels, height, width = images_NCHW.shape[1:]
    return Listing(
        labels_N=labels,
        class_names=tuple(class_names),
        files=tuple(files),
        batches=batches,
        white=white,
        image_shape=(channels, height, width),
    )


def check_labels(labels_N: Tensor, num_classes: int, where: str) -> None:
    """Raises: DataError for the first label outside 0 .. K-1."""
    wrong = torch.nonzero((labels_N < 0) | (labels_N >= num_classes)).flatten()
    if len(wrong) > 0:
        row = int(wrong[0])
        raise DataError(
            f"{where}, row {row}: the label is {int(labels_N[row])}; with {num_classes} classes it must "
            f"lie in 0 .. {num_classes - 1}"
        )
