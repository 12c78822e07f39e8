"""Schedules: values that change over a run, as pure functions of the outer step.

Outer steps count from 0. A linear or cosine schedule over n steps has its start value at step 0, its end
value at step n - 1 and from then on. Lengths are schedules too, rounded by `integer_at`.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: float

    def at(self, outer_step: int) -> float:
        """The value at an outer step."""
        return self.value


def _progress(outer_step: int, steps: int) -> float:
    """0 at the first of `steps` steps, 1 from the last one on."""
    return min(1.0, outer_step / (steps - 1))


@dataclass(frozen=True, kw_only=True)
class Linear:
    """start + (end - start) p, p = step / (steps - 1)."""

    start: float
    end: float
    steps: int
    """At least 2."""

    def at(self, outer_step: int) -> float:
        """The value at an outer step."""
        p = _progress(outer_step, self.steps)
        return (1.0 - p) * self.start + p * self.end


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """end + (start - end) (1 + cos(pi p)) / 2, p = step / (steps - 1): flat at both ends."""

    start: float
    end: float
    steps: int
    """At least 2."""

    def at(self, outer_step: int) -> float:
        """The value at an outer step."""
        weight = (1.0 + math.cos(math.pi * _progress(outer_step, self.steps))) / 2.0
        return weight * self.start + (1.0 - weight) * self.end


@dataclass(frozen=True, kw_only=True)
class Piecewise:
    """values[i] from step from_steps[i] until the next one."""

    values: tuple[float, ...]
    from_steps: tuple[int, ...]
    """Increasing, starting with 0; as many as values."""

    def at(self, outer_step: int) -> float:
        """The value at an outer step."""
        started = sum(first <= outer_step for first in self.from_steps)
        return self.values[started - 1]


Schedule = Constant | Linear | Cosine | Piecewise


def integer_at(schedule: Schedule, outer_step: int) -> int:
    """The schedule's value rounded to the nearest integer, halves up."""
    return math.floor(schedule.at(outer_step) + 0.5)
