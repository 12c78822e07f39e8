"""Batches of several replicas, and splitting them into microbatches whose gradients are accumulated.

The inner loss is a sum over images, so this is exact. It keeps the activations in a CPU's cache, where a batch of 100
takes half the time, and bounds the memory of large real batches. Padding with rows of zero labels does not change the
sum, so compiled functions need a single shape.

With batch norm the loss is not such a sum: batches stay whole.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ray_distill.core.distilled import DistilledData
from ray_distill.core.networks.network import ImageShape, Network


class Batches(NamedTuple):
    """A batch for each of R replicas, all of the same size."""

    images_RBCHW: Tensor
    labels_RBK: Tensor

    @classmethod
    def stack(cls, batches: Sequence[DistilledData]) -> "Batches":
        """One batch per replica, in order."""
        return cls(*(stack(parts) for parts in zip(*batches, strict=True)))

    def unstack(self) -> list[DistilledData]:
        """The batch of each replica."""
        return [DistilledData(*batch) for batch in zip(*self, strict=True)]


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """torch.stack, without a copy for a single tensor."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))


_ACTIVATION_BYTES = {"cpu": 6 * 2**20, "cuda": 512 * 2**20}
"""Target size of a microbatch's largest activation: what a CPU's caches hold; on a GPU, enough to fill it."""


def microbatch_size(
    network: Network,
    image_shape: ImageShape,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    replicas: int = 1,
) -> int | None:
    """A good microbatch size for batches of `batch` images; None, the whole batch, for a network with batch norm.

    Args:
        replicas: how many are computed together, each with its own batch.
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
    """The size of equal parts of a batch whose largest activations fit into the cache."""
    bytes_per_image = replicas * network.max_activation_size(image_shape) * dtype.itemsize
    return even_split(
        batch, max(1, _ACTIVATION_BYTES.get(device.type, batch * bytes_per_image) // bytes_per_image)
    )


def even_split(batch: int, most: int) -> int:
    """The size of equal parts of a batch, at most `most`: a divisor of `batch` unless all are much smaller."""
    divisor = max(d for d in range(1, min(batch, most) + 1) if batch % d == 0)
    return divisor if 2 * divisor >= min(batch, most) else -(-batch // -(-batch // most))


def split_batches(batches: Batches, size: int, fill: bool) -> Iterator[tuple[Batches, int]]:
    """Microbatches of `size`, the last one padded with zeros if `fill`, each with its number of real rows."""
    for part in zip(*(x.split(size, dim=1) for x in batches), strict=True):
        rows = part[0].shape[1]
        if not fill:
            yield Batches(*part), rows
            continue
        filled = (torch.cat([x, x.new_zeros(len(x), size - rows, *x.shape[2:])], dim=1) for x in part)
        # Compiled functions depend on strides too.
        yield Batches(*(x.contiguous() for x in (part if rows == size else filled))), rows
