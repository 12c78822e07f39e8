"""The images of a source before they are decoded: a row for each, with its class, and how to read it.

Every reader in `formats` gives a listing; images are selected by taking rows; `decoding` makes pixels of them.
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
"""An image file's content, the file itself, or pixels [C, H, W]; None if the image is missing."""

EncodedBatch = list[tuple[str, Encoded]]
"""(location for messages, image) of each."""

_BATCH_ROWS = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """Images by rows."""

    labels_N: Tensor
    """int64, each in 0 .. K-1."""
    class_names: tuple[str, ...]
    files: tuple[DataFile, ...]
    """All files that the images and labels come from."""
    batches: Callable[[NDArray[np.int64]], Iterator[EncodedBatch]]
    """(ascending rows) -> their images in this order, in batches."""
    white: int = 255
    """The value of full intensity."""
    image_shape: tuple[int, int, int] | None = None
    """(C, H, W), if known before decoding."""

    def __len__(self) -> int:
        return len(self.labels_N)

    def take(self, rows_N: Tensor) -> "Listing":
        """The listing of these ascending rows."""
        rows, batches = rows_N.numpy(), self.batches
        return replace(self, labels_N=self.labels_N[rows_N], batches=lambda chosen: batches(rows[chosen]))

    def take_classes(self, classes: Sequence[str | int]) -> "Listing":
        """The listing of these classes, by name or index, numbered in this order.

        Raises: DataError for an unknown class, or a duplicate.
        """
        old = [self._class(name) for name in classes]
        for i, k in enumerate(old):
            if k in old[:i]:
                raise DataError(
                    f"data.classes: {classes[i]!r} is a duplicate of class {self.class_names[k]}; remove it"
                )
        new_K = torch.full((len(self.class_names),), -1)
        new_K[torch.tensor(old)] = torch.arange(len(old))
        selected = self.take((new_K[self.labels_N] >= 0).nonzero().flatten())
        return replace(
            selected, labels_N=new_K[selected.labels_N], class_names=tuple(self.class_names[k] for k in old)
        )

    def _class(self, name: str | int) -> int:
        if isinstance(name, int) and 0 <= name < len(self.class_names):
            return name
        if name in self.class_names:
            return self.class_names.index(str(name))
        names = ", ".join(self.class_names[:12]) + (", .." if len(self.class_names) > 12 else "")
        raise DataError(
            f"data.classes: there is no class {name!r}; allowed: 0 .. {len(self.class_names) - 1}, or names: {names}"
        )


def file_listing(
    files: Sequence[DataFile],
    labels: Sequence[int],
    class_names: Sequence[str],
    others: Sequence[DataFile] = (),
) -> Listing:
    """Image files, each with its class.

    Args:
        others: files that the labels come from.
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
    """Images that are arrays already. Raises: DataError for no image, or a label outside 0 .. K-1."""
    location = str(files[0])
    if len(images_NCHW) != len(labels_N) or len(images_NCHW) == 0:
        raise DataError(f"{location}: {len(images_NCHW)} images and {len(labels_N)} labels")
    labels = torch.from_numpy(labels_N.astype(np.int64))
    check_labels(labels, len(class_names), location)

    def batches(rows: NDArray[np.int64]) -> Iterator[EncodedBatch]:
        for start in range(0, len(rows), _BATCH_ROWS):
            yield [(f"{location}, row {row}", images_NCHW[row]) for row in rows[start : start + _BATCH_ROWS]]

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
            f"{where}, row {row}: label {int(labels_N[row])} is out of range; with {num_classes} classes labels "
            f"must be in 0 .. {num_classes - 1}"
        )
