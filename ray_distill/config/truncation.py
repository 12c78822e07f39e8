"""The section `truncation` of a configuration: which inner steps are differentiated.

Each rule has a section type of its own, so that an option of another rule is an unknown key. Lengths may
change over the run (`config_schedules`); that they fit at every outer step is checked before the first.
"""

from bisect import bisect_left
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from ray_distill.config.base import NonNegativeInt, PositiveInt, Section
from ray_distill.config.schedules import ScheduledInt, schedule, schedule_errors
from ray_distill.core.schedules import Piecewise, Schedule, integer_at


class _Unroll(Section):
    unroll_length: ScheduledInt
    """N: inner steps of a whole unroll."""


class _Windowed(_Unroll):
    window_length: ScheduledInt
    """W: differentiated inner steps."""


class BpttConfig(_Unroll):
    """Differentiate the whole unroll."""

    rule: Literal["bptt"]


class TbpttConfig(_Windowed):
    """Differentiate the last window of the unroll."""

    rule: Literal["t-bptt"]


class RbpttConfig(_Unroll):
    """Differentiate the first steps, a random number of them."""

    rule: Literal["r-bptt"]
    redraw_every: PositiveInt = 1
    """Outer steps that share a window, drawn with the lengths of the first of them."""


class RatBpttConfig(_Windowed):
    """Differentiate a window at a random place."""

    rule: Literal["rat-bptt"]
    min_window_start: NonNegativeInt = 0
    """The earliest start of the window."""
    redraw_every: PositiveInt = 1
    """Outer steps that share a window, drawn with the lengths of the first of them."""


class ForwardConfig(_Windowed):
    """Differentiate a window that moves on whenever the validation loss stalls."""

    rule: Literal["forward"]
    min_window_start: NonNegativeInt = 0
    """Where the window starts first."""
    patience: PositiveInt
    """Validations in a row without a new lowest loss, since the window moved last, that make it move on by
    its length. It stays where it has come to the end of the unroll."""


TruncationConfig = Annotated[
    BpttConfig | TbpttConfig | RbpttConfig | RatBpttConfig | ForwardConfig, Field(discriminator="rule")
]

_BY_RULE: dict[str, type[Section]] = {
    "bptt": BpttConfig,
    "t-bptt": TbpttConfig,
    "r-bptt": RbpttConfig,
    "rat-bptt": RatBpttConfig,
    "forward": ForwardConfig,
}

RULES = tuple(_BY_RULE)


def fields_of(rule: str) -> frozenset[str]:
    """The names of the keys that a section with this rule has; of an unknown rule, only that."""
    return frozenset(_BY_RULE[rule].model_fields if rule in _BY_RULE else ("rule",))


def truncation_errors(section: TruncationConfig, outer_steps: int) -> Iterator[str]:
    """What is wrong with the lengths in a run of so many outer steps, for people: the first step of each."""
    found = list(schedule_errors("truncation.unroll_length", section.unroll_length, outer_steps))
    if isinstance(section, _Windowed):
        found += schedule_errors("truncation.window_length", section.window_length, outer_steps)
        # A schedule that is wrong in itself has no values to look at.
        found = found or list(_length_errors(section, outer_steps))
    yield from found


def _length_errors(section: _Windowed, outer_steps: int) -> Iterator[str]:
    unrolls, windows = (schedule(x, outer_steps) for x in (section.unroll_length, section.window_length))
    earliest = section.min_window_start if isinstance(section, RatBpttConfig | ForwardConfig) else 0
    # Between two changes every step is as the first of them: runs have many millions of steps.
    for step in sorted({*_changes(unrolls, outer_steps), *_changes(windows, outer_steps)}):
        unroll, window = integer_at(unrolls, step), integer_at(windows, step)
        if window > unroll:
            yield (
                f"truncation.window_length: must be at most truncation.unroll_length at every outer step; "
                f"at step {step} they are {window} and {unroll}; lower one or raise the other"
            )
            return
        if earliest > unroll - window:
            yield (
                "truncation.min_window_start: must be at most unroll_length - window_length at every outer step, "
                f"which at step {step} is {unroll} - {window} = {unroll - window} (found {earliest})"
            )
            return


def _changes(lengths: Schedule, outer_steps: int) -> Iterator[int]:
    """The first outer step, and those at which the length is another than at the step before."""
    if isinstance(lengths, Piecewise):
        yield from lengths.from_steps
        return
    step = 0
    while step < outer_steps:
        yield step
        # What rises or falls all the way does not come back to a value that it has left.
        leaves = partial(_differ, lengths, step)
        step += 1 + bisect_left(range(step + 1, outer_steps), True, key=leaves)


def _differ(lengths: Schedule, step: int, other: int) -> bool:
    return integer_at(lengths, step) != integer_at(lengths, other)
