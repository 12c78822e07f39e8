"""What the unrolls of a run come to: inner steps in the mean over its outer steps, and states kept at once."""

from collections import Counter
from typing import NamedTuple

from ray_distill.core.metagradient import segment_length
from ray_distill.core.schedules import Constant, integer_at
from ray_distill.core.truncation import BPTT, RBPTT, TBPTT, Truncation


class InnerSteps(NamedTuple):
    """Inner steps of one replica in an outer step, in the mean over the run."""

    burn_in: float
    window: float
    replayed: float
    """Steps of the window that are taken a second time, for want of memory."""


def replayed_steps(length: int, max_states: int | None) -> int:
    """The steps of a window that its replay takes again: all but those of the last segment."""
    segment = segment_length(length, max_states)
    return (-(-length // segment) - 1) * segment


def states_kept(length: int, max_states: int | None) -> int:
    """The states of a window that are there at once."""
    segment = segment_length(length, max_states)
    return length if segment == length else -(-length // segment) + segment


def mean_steps(rule: Truncation, outer_steps: int, max_states: int | None) -> InnerSteps:
    """The truncation rule's inner steps in the mean over the run and over its draws.

    How a forward curriculum moves is not known beforehand: its window counts as if half-way.
    """
    schedules = [rule.unroll_length, *([rule.window_length] if hasattr(rule, "window_length") else [])]
    fixed = all(isinstance(schedule, Constant) for schedule in schedules)
    steps = 1 if fixed else outer_steps
    lengths = Counter(tuple(integer_at(s, step) for s in schedules) for step in range(steps))
    sums = [0.0, 0.0, 0.0]
    for (unroll, *windowed), count in lengths.items():
        one = _of_lengths(rule, unroll, windowed[0] if windowed else unroll, max_states)
        sums = [total + count * value for total, value in zip(sums, one, strict=True)]
    return InnerSteps(*(total / steps for total in sums))


def _of_lengths(rule: Truncation, unroll: int, window: int, max_states: int | None) -> InnerSteps:
    """The means for one pair of lengths."""
    if isinstance(rule, RBPTT):
        replayed = sum(replayed_steps(length, max_states) for length in range(1, unroll + 1)) / unroll
        return InnerSteps(0.0, (1 + unroll) / 2, replayed)
    replayed = float(replayed_steps(window, max_states))
    if isinstance(rule, BPTT):
        return InnerSteps(0.0, float(unroll), replayed)
    last = unroll - window
    first = last if isinstance(rule, TBPTT) else rule.min_window_start
    return InnerSteps((first + last) / 2, float(window), replayed)
