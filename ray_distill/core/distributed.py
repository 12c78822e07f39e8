"""Communication between the processes of a run: a single process, or torch.distributed."""

from dataclasses import dataclass
from typing import Protocol

import torch.distributed as dist
from torch import Tensor


class Communicator(Protocol):
    """A group of processes that share the replicas."""

    @property
    def rank(self) -> int:
        """The index of this process, from 0."""

    @property
    def size(self) -> int:
        """The number of processes."""

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, the same on every rank. Collective: every rank must call it."""


@dataclass(frozen=True)
class SingleProcess:
    """A group of one process."""

    rank: int = 0
    size: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """The values unchanged."""
        return values


class TorchDistributed:
    """The default process group of torch.distributed."""

    @property
    def rank(self) -> int:
        """The rank of this process."""
        return dist.get_rank()

    @property
    def size(self) -> int:
        """The number of processes."""
        return dist.get_world_size()

    def sum(self, values: Tensor) -> Tensor:
        """All-reduce by sum."""
        total = values.clone()
        dist.all_reduce(total)
        return total
