"""Batches of replicas, and how they are cut into passes: equal parts whose contributions are added up.

The inner loss is a sum over images, so this is exact; it keeps a pass's maps in the cache of a CPU, where a batch
of 100 takes half the time, and bounds the memory of large real batches. A part that is filled up with rows of zero
labels gives the right sum too, and one shape is enough for everything that is compiled.

A network with batch norm joins the images of a batch: its loss is no such sum. It takes every batch whole.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ray_distill.core.distilled import DistilledData
from ray_distill.core.networks.network import ImageShape, Network


class Batches(NamedTuple):
    """A batch for each of R replicas, all of one size."""

    images_RBCHW: Tensor
    labels_RBK: Tensor

    @classmethod
    def stack(cls, batches: Sequence[DistilledData]) -> "Batches":
        """One batch for each replica, in order."""
        return cls(*(stack(parts) for parts in zip(*batches, strict=True)))

    def unstack(self) -> list[DistilledData]:
        """The batches, replica by replica."""
        return [DistilledData(*batch) for batch in zip(*self, strict=True)]


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape along a new first axis; without a copy if it is one."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))


_ACTIVATION_BYTES = {"cpu": 6 * 2**20, "cuda": 512 * 2**20}
"""How large the largest map of a pass should be: what a CPU's caches hold; on a GPU, enough to fill it."""


def microbatch_size(
    network: Network,
    image_shape: ImageShape,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    replicas: int = 1,
) -> int | None:
    """A good size of the passes over batches of `batch` images: equal parts, of maps that the cache holds.

    None, which is the whole batch, for a network that joins images.

    Args:
        replicas: how many are computed at once, each on so many images.
    """
    if network.has_batch_norm:
        return None
    return cache_sized(network, image_shape, batch, dtype, device, replicas)


def cache_sized(
    network: Network,
    image_shape: ImageShape,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    replicas: int = 1,
) -> int:
    """The size of equal parts of a batch whose largest maps the cache holds."""
    bytes_per_image = replicas * network.max_activation_size(image_shape) * dtype.itemsize
    return even_split(
        batch, max(1, _ACTIVATION_BYTES.get(device.type, batch * bytes_per_image) // bytes_per_image)
    )


def even_split(batch: int, most: int) -> int:
    """The size of equal parts of a batch, at most `most`: a divisor of it if there is a near one."""
    divisor = max(d for d in range(1, min(batch, most) + 1) if batch % d == 0)
    return divisor if 2 * divisor >= min(batch, most) else -(-batch // -(-batch // most))


def split_batches(batches: Batches, size: int, fill: bool) -> Iterator[tuple[Batches, int]]:
    """The batches in parts of `size`, the last one filled up with zeros if asked; and how many rows are real."""
    for part in zip(*(x.split(size, dim=1) for x in batches), strict=True):
        rows = part[0].shape[1]
        if not fill:
            yield Batches(*part), rows
            continue
        filled = (torch.cat([x, x.new_zeros(len(x), size - rows, *x.shape[2:])], dim=1) for x in part)
        # What is compiled is compiled for strides too.
        yield Batches(*(x.contiguous() for x in (part if rows == size else filled))), rows
