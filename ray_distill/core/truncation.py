"""Truncation: which steps of the inner training are differentiated.

Each rule is a pure function of (its fields, outer step, random stream). The stream's place holds no
replica and no rank: all metagradients of one outer step share their window, as in the paper (section 3).
"""

from dataclasses import dataclass
from typing import NamedTuple

from ray_distill.core.rng import Stream


class Window(NamedTuple):
    """Inner steps [start, start + length): `start` steps of burn-in, then `length` differentiated ones."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The number of inner steps taken in all."""
        return self.start + self.length


def _uniform_integer(stream: Stream, low: int, high: int) -> int:
    """Uniform on the integers low .. high, for all replicas the same."""
    return low + int(stream.at(outer_step=stream.outer_step).words(1)[0, 0]) % (high - low + 1)


@dataclass(frozen=True, kw_only=True)
class BPTT:
    """The whole unroll: start 0, length N."""

    unroll_length: int

    def draw(self, stream: Stream) -> Window:
        """The window at the stream's outer step."""
        return Window(0, self.unroll_length)


@dataclass(frozen=True, kw_only=True)
class TBPTT:
    """The last W steps of N: start N - W."""

    unroll_length: int
    window_length: int

    def draw(self, stream: Stream) -> Window:
        """The window at the stream's outer step."""
        return Window(self.unroll_length - self.window_length, self.window_length)


@dataclass(frozen=True, kw_only=True)
class RBPTT:
    """From the first step, a length uniform on 1 .. N."""

    unroll_length: int

    def draw(self, stream: Stream) -> Window:
        """The window at the stream's outer step."""
        return Window(0, _uniform_integer(stream, 1, self.unroll_length))


@dataclass(frozen=True, kw_only=True)
class RaTBPTT:
    """W steps from a start uniform on min_window_start .. N - W (the paper's algorithm 1)."""

    unroll_length: int
    window_length: int
    min_window_start: int = 0

    def draw(self, stream: Stream) -> Window:
        """The window at the stream's outer step."""
        start = _uniform_integer(stream, self.min_window_start, self.unroll_length - self.window_length)
        return Window(start, self.window_length)


Truncation = BPTT | TBPTT | RBPTT | RaTBPTT
