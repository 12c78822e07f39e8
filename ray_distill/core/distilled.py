"""The distilled dataset D = (images, labels): its initialisation, and drawing inner batches from it.

Images are sorted by class: image i of class k is row k * ipc + i.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ray_distill.core.rng import Stream


class DistilledData(NamedTuple):
    """The learnt dataset. A metagradient with respect to it has the same type and shapes."""

    images_NCHW: Tensor
    labels_NK: Tensor
    """Target probabilities of the cross entropy, one row per image."""

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.images_NCHW)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.labels_NK.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the images."""
        return self.images_NCHW.dtype

    @property
    def device(self) -> torch.device:
        """Of the images."""
        return self.images_NCHW.device

    def rows(self, rows_N: Tensor) -> "DistilledData":
        """The images and labels at these rows; differentiable."""
        return DistilledData(self.images_NCHW[rows_N], self.labels_NK[rows_N])


class TrainingSet(Protocol):
    """A dataset to train a network on: D, or real images that are loaded batch by batch."""

    @property
    def num_images(self) -> int:
        """N."""

    @property
    def num_classes(self) -> int:
        """K."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the images."""

    @property
    def device(self) -> torch.device:
        """Of the images."""

    def rows(self, rows_N: Tensor) -> DistilledData:
        """The images and labels at these rows."""


class RealDataset(TrainingSet, Protocol):
    """Real images, for the outer loss and for validation."""

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All images [n, C, H, W] and their classes [n], in batches."""


def class_labels(num_classes: int, ipc: int, device: torch.device) -> Tensor:
    """The class of each row: int64 [num_classes * ipc]."""
    return torch.arange(num_classes, device=device).repeat_interleave(ipc)


def one_hot(labels_N: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Class indices as target probabilities: [N, K]."""
    return torch.nn.functional.one_hot(labels_N, num_classes).to(dtype)


def noise(stream: Stream, num_images: int, image_shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Standard normal images [N, C, H, W]."""
    channels, height, width = image_shape
    values = stream.normal(num_images * channels * height * width, dtype=dtype)
    return values.reshape(num_images, channels, height, width)


def unit_noise(
    stream: Stream, num_images: int, image_shape: tuple[int, int, int], dtype: torch.dtype
) -> Tensor:
    """Standard normal images, each scaled to unit L2 norm, as in the paper: [N, C, H, W]."""
    images_NCHW = noise(stream, num_images, image_shape, dtype)
    norms_N: Tensor = images_NCHW.flatten(1).norm(dim=1)
    return images_NCHW / norms_N[:, None, None, None]


NOISE: dict[str, Callable[[Stream, int, tuple[int, int, int], torch.dtype], Tensor]] = {
    "unit-noise": unit_noise,
    "noise": noise,
}


def class_balanced_rows(stream: Stream, labels_N: Tensor, num_classes: int, ipc: int) -> Tensor:
    """Rows of ipc random images of each class, without replacement: int64 [num_classes * ipc].

    Raises: ValueError if a class has fewer than ipc images.
    """
    order = stream.permutation(len(labels_N))[0]
    rows = []
    for k in range(num_classes):
        class_rows = order[labels_N[order] == k]
        if len(class_rows) < ipc:
            raise ValueError(f"class {k} has {len(class_rows)} real images, fewer than ipc {ipc}")
        rows.append(class_rows[:ipc])
    return torch.cat(rows)


def inner_batches(
    stream: Stream,
    inner_steps: range,
    num_classes: int,
    ipc: int,
    inner_batch_per_class: int,
    classes_per_inner_batch: int | None = None,
) -> Tensor:
    """Rows of D for each inner step, b of each of S random classes, without replacement: int64 [T, S * b].

    With inner_batch_per_class >= ipc a class contributes all its images, in order. S is all classes by default;
    with fewer, the classes are drawn from the substream `classes`.

    Raises: ValueError if S is larger than the number of classes.
    """
    per_step = num_classes if classes_per_inner_batch is None else classes_per_inner_batch
    if per_step > num_classes:
        raise ValueError(f"a batch of {per_step} classes is larger than the set of {num_classes} classes")
    if per_step == num_classes:
        classes_TS = torch.arange(num_classes, device=stream.device).expand(len(inner_steps), -1)
    else:
        order_TK = stream.substream("classes").permutation(num_classes, inner_steps)
        classes_TS = order_TK[:, :per_step].sort(dim=1).values
    picked = torch.arange(ipc, device=stream.device)
    if inner_batch_per_class < ipc:
        # Drawn for the chosen classes only, keyed by their position in the batch.
        words = stream.words(per_step * ipc, inner_steps).unflatten(1, (per_step, ipc))
        picked = ((words << 31) | picked).argsort(dim=2)[:, :, :inner_batch_per_class]
    rows_TB: Tensor = (classes_TS[:, :, None] * ipc + picked).flatten(1)
    return rows_TB


def random_batches(stream: Stream, inner_steps: range, num_images: int, batch: int) -> Tensor:
    """Rows of a random batch for each step, without replacement within an epoch: int64 [T, batch].

    An incomplete last batch of an epoch is dropped.

    Raises: ValueError if the batch is larger than the set.
    """
    if batch > num_images:
        raise ValueError(f"a batch of {batch} is larger than the set of {num_images} images")
    per_epoch = num_images // batch
    rows, epoch, order = [], -1, torch.empty(0)
    for t in inner_steps:
        if t // per_epoch != epoch:
            epoch = t // per_epoch
            order = stream.permutation(num_images, range(epoch, epoch + 1))[0]
        rows.append(order[(t % per_epoch) * batch :][:batch])
    return torch.stack(rows)
