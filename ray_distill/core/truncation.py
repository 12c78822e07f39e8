"""Truncation: which steps of the inner training are differentiated.

Each rule is a pure function of (its fields, outer step, random stream). The stream's position has the outer step
but no replica and no rank: all metagradients of one outer step share their window, as in the paper (section 3). The
lengths N and W are schedules, evaluated at the stream's outer step; the caller ensures 1 <= W <= N and
min_window_start <= N - W at every step of the run.

The forward curriculum depends on the run so far: it takes and returns its state as a value.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ray_distill.core.rng import Stream
from ray_distill.core.schedules import Schedule, integer_at


class Window(NamedTuple):
    """Inner steps [start, start + length): `start` steps of burn-in, then `length` differentiated ones."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The total number of inner steps."""
        return self.start + self.length


class TruncationRule(Protocol):
    """What the outer loop needs of a rule; one of your own works as those here do."""

    @property
    def unroll_length(self) -> Schedule:
        """N."""

    def draw(self, stream: Stream) -> Window:
        """The window at the stream's outer step; random only by the stream, so that a run can be repeated."""


def _uniform_integer(stream: Stream, low: int, high: int) -> int:
    """Uniform on the integers low .. high, the same for all replicas."""
    return low + int(stream.at(outer_step=stream.outer_step).words(1)[0, 0]) % (high - low + 1)


@dataclass(frozen=True, kw_only=True)
class BPTT:
    """The whole unroll: start 0, length N."""

    unroll_length: Schedule

    def draw(self, stream: Stream) -> Window:
        """The window at the stream's outer step."""
        return Window(0, integer_at(self.unroll_length, stream.outer_step))


@dataclass(frozen=True, kw_only=True)
class TBPTT:
    """The last W steps of N: start N - W."""

    unroll_length: Schedule
    window_length: Schedule

    def draw(self, stream: Stream) -> Window:
        """The window at the stream's outer step."""
        unroll, window = (integer_at(x, stream.outer_step) for x in (self.unroll_length, self.window_length))
        return Window(unroll - window, window)


@dataclass(frozen=True, kw_only=True)
class RBPTT:
    """Start 0, a length uniform on 1 .. N."""

    unroll_length: Schedule

    def draw(self, stream: Stream) -> Window:
        """The window at the stream's outer step."""
        return Window(0, _uniform_integer(stream, 1, integer_at(self.unroll_length, stream.outer_step)))


@dataclass(frozen=True, kw_only=True)
class RaTBPTT:
    """W steps from a start uniform on min_window_start .. N - W (the paper's algorithm 1)."""

    unroll_length: Schedule
    window_length: Schedule
    min_window_start: int = 0

    def draw(self, stream: Stream) -> Window:
        """The window at the stream's outer step."""
        unroll, window = (integer_at(x, stream.outer_step) for x in (self.unroll_length, self.window_length))
        return Window(_uniform_integer(stream, self.min_window_start, unroll - window), window)


class CurriculumState(NamedTuple):
    """The state of a forward curriculum; the defaults are the state before the first validation."""

    advanced: int = 0
    """Inner steps by which the window has moved from min_window_start."""
    best_loss: float | None = None
    """The lowest validation loss with the current window; None before the first."""
    num_stalled: int = 0
    """Consecutive validations without improvement."""


@dataclass(frozen=True, kw_only=True)
class ForwardCurriculum:
    """W steps from min_window_start, moved by W whenever the validation loss stalls, up to N - W.

    Where schedules change the lengths, it moves by the W of the following step, and its start is limited to the
    current N - W.
    """

    unroll_length: Schedule
    window_length: Schedule
    min_window_start: int = 0
    patience: int
    """Consecutive validations without improvement after which the window moves."""

    def draw(self, outer_step: int, state: CurriculumState) -> Window:
        """The window at an outer step; not random."""
        unroll, window = (integer_at(x, outer_step) for x in (self.unroll_length, self.window_length))
        return Window(min(self.min_window_start + state.advanced, unroll - window), window)

    def update(self, outer_step: int, state: CurriculumState, validation_loss: float) -> CurriculumState:
        """The state after a validation before this outer step. A non-finite loss is no improvement."""
        best = math.inf if state.best_loss is None else state.best_loss
        if validation_loss < best:
            return state._replace(best_loss=validation_loss, num_stalled=0)
        if state.num_stalled + 1 < self.patience:
            return state._replace(num_stalled=state.num_stalled + 1)
        window = self.draw(outer_step, state)
        last = integer_at(self.unroll_length, outer_step) - window.length
        return CurriculumState(advanced=min(window.end, last) - self.min_window_start)


Truncation = BPTT | TBPTT | RBPTT | RaTBPTT | ForwardCurriculum
