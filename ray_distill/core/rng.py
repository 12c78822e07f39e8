"""Randomness as data: named, counter-based random streams.

A draw is a pure function of (seed, stream name, outer step, replica, inner step, index). There is no state
between draws, so the adjoint replays exactly what the forward pass drew, a resumed run needs no generator
state, and numbers cannot depend on ranks or clocks.

The bits are Philox-4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2,
3", SC 2011): the key is a hash of (seed, name), the 128-bit counter holds (block, inner step, outer
step, replica), so two draws of one stream cannot coincide. It uses integer tensor operations and gives the same
bits on every device. `torch.Generator` would not do: on CPU it uses only the low 32 bits of its seed, too few
for the draws of a long run, and it draws other numbers on CUDA.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_CPU = torch.device("cpu")


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox-4x32-10: four 32-bit words per counter.

    Args:
        counter: four int64 tensors of broadcastable shapes, each word in [0, 2^32).
        key: two 32-bit words.

    Returns: four int64 tensors of 32-bit words, of the broadcast shape.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2^64; the high 32 bits are correct after shifting and masking.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A named random stream at one position (outer step, replica) of a run.

    Draws are functions of name and position, so drawing twice gives the same numbers. Draws that must differ
    need different names or positions.
    """

    seed: int
    name: str
    outer_step: int = 0
    replica: int = 0
    device: torch.device = _CPU

    def at(self, *, outer_step: int, replica: int = 0) -> "Stream":
        """The same stream at another outer step; replica 0 by default, for draws that all replicas share."""
        return Stream(
            seed=self.seed, name=self.name, outer_step=outer_step, replica=replica, device=self.device
        )

    def substream(self, name: str) -> "Stream":
        """An independent stream at the same position, named `<name>-<substream>`."""
        return replace(self, name=f"{self.name}-{name}")

    def key(self) -> tuple[int, int]:
        """The Philox key: the first 64 bits of a hash of seed and name."""
        digest = hashlib.blake2b(f"{self.seed}:{self.name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")

    def words(self, count: int, inner_steps: Sequence[int] = range(1)) -> Tensor:
        """Independent 32-bit words: int64 [len(inner_steps), count], each uniform on [0, 2^32)."""
        blocks = torch.arange(-(-count // 4), device=self.device)
        steps = torch.tensor(list(inner_steps), dtype=torch.int64, device=self.device)
        outer_step, replica = (
            torch.tensor(v, dtype=torch.int64, device=self.device) for v in (self.outer_step, self.replica)
        )
        words = philox((blocks[None, :], steps[:, None], outer_step, replica), self.key())
        return torch.stack(words, dim=-1).flatten(1)[:, :count]

    def uniform(self, count: int, inner_steps: Sequence[int] = range(1), *, dtype: torch.dtype) -> Tensor:
        """Uniform on [0, 1) with 24 random bits, the same numbers in float32 and float64: [steps, count]."""
        return (self.words(count, inner_steps) >> 8).to(dtype) * 2.0**-24

    def normal(self, count: int, inner_steps: Sequence[int] = range(1), *, dtype: torch.dtype) -> Tensor:
        """Standard normal by Box-Muller, computed in float64 and rounded to dtype: [steps, count]."""
        words = self.words(2 * (-(-count // 2)), inner_steps).to(torch.float64) * 2.0**-32
        first, second = words.unflatten(1, (-1, 2)).unbind(-1)
        radius = torch.sqrt(-2.0 * torch.log(first + 2.0**-32))
        angle = 2.0 * math.pi * second
        pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
        return pairs.flatten(1)[:, :count].to(dtype)

    def permutation(self, count: int, inner_steps: Sequence[int] = range(1)) -> Tensor:
        """A uniformly random permutation of range(count) for each step: int64 [steps, count]."""
        # The index in the low bits breaks ties, so that the order does not depend on the sort.
        index = torch.arange(count, device=self.device)
        return ((self.words(count, inner_steps) << 31) | index).argsort(dim=1)
