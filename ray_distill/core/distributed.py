"""The processes that share the replicas of a run: one alone, or those of torch.distributed."""

from dataclasses import dataclass
from typing import Protocol

import torch.distributed as dist
from torch import Tensor


class Communicator(Protocol):
    """The processes that share the replicas."""

    @property
    def rank(self) -> int:
        """The place of this process among them, from 0."""

    @property
    def size(self) -> int:
        """How many they are."""

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, on every rank the same; every rank must call it."""


@dataclass(frozen=True)
class SingleProcess:
    """A world of this process alone."""

    rank: int = 0
    size: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """The values themselves."""
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
