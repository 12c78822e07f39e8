"""The section `truncation` of a configuration: which inner steps are differentiated.

Each rule has a section class of its own, so that an option of another rule is an unknown key. Lengths may change over
the run (`schedules`); that they fit at every outer step is checked before the first.
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
    """Inner steps of a whole unroll (the paper's N), differentiated or not."""


class _Windowed(_Unroll):
    window_length: ScheduledInt
    """Differentiated inner steps (the paper's W); at most `unroll_length` at every outer step."""


class BpttConfig(_Unroll):
    """Differentiate the whole unroll."""

    rule: Literal["bptt"]


class TbpttConfig(_Windowed):
    """Differentiate the last window of the unroll."""

    rule: Literal["t-bptt"]


class RbpttConfig(_Unroll):
    """Train for a random number of inner steps, up to `unroll_length`, and differentiate all of them."""

    rule: Literal["r-bptt"]
    redraw_every: PositiveInt = 1
    """Outer steps between two draws of the number of inner steps."""


class RatBpttConfig(_Windowed):
    """Differentiate a window at a random position, and stop the unroll at its end."""

    rule: Literal["rat-bptt"]
    min_window_start: NonNegativeInt = 0
    """Earliest start of the window, in inner steps; at most `unroll_length - window_length`."""
    redraw_every: PositiveInt = 1
    """Outer steps between two draws of the window; its lengths are those of the outer step of the draw."""


class ForwardConfig(_Windowed):
    """Differentiate a window that moves forward by its length whenever the validation loss stalls."""

    rule: Literal["forward"]
    min_window_start: NonNegativeInt = 0
    """First start of the window, in inner steps; at most `unroll_length - window_length`."""
    patience: PositiveInt
    """Validations in a row without a new lowest loss since the last move after which the window moves on. At the end of
    the unroll it stays."""


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
    """The keys of the section with this rule; of an unknown rule, `rule` alone."""
    return frozenset(_BY_RULE[rule].model_fields if rule in _BY_RULE else ("rule",))


def truncation_errors(section: TruncationConfig, outer_steps: int) -> Iterator[str]:
    """Messages for lengths that do not fit a run of `outer_steps`, or each other at some outer step."""
    errors = list(schedule_errors("truncation.unroll_length", section.unroll_length, outer_steps))
    if isinstance(section, _Windowed):
        errors += schedule_errors("truncation.window_length", section.window_length, outer_steps)
        # A schedule that does not fit the run has no values to compare.
        errors = errors or list(_length_errors(section, outer_steps))
    yield from errors


def _length_errors(section: _Windowed, outer_steps: int) -> Iterator[str]:
    """The first outer step at which the window does not fit into the unroll."""
    unrolls, windows = (schedule(x, outer_steps) for x in (section.unroll_length, section.window_length))
    earliest = section.min_window_start if isinstance(section, RatBpttConfig | ForwardConfig) else 0
    # The lengths are constant between two changes; runs may have millions of steps.
    for step in sorted({*_changes(unrolls, outer_steps), *_changes(windows, outer_steps)}):
        unroll, window = integer_at(unrolls, step), integer_at(windows, step)
        if window > unroll:
            yield (
                f"truncation.window_length: must be at most truncation.unroll_length at every outer step; "
                f"at step {step} they are {window} and {unroll}; lower the window or raise the unroll"
            )
            return
        if earliest > unroll - window:
            yield (
                "truncation.min_window_start: must be at most unroll_length - window_length at every outer step, "
                f"which at step {step} is {unroll} - {window} = {unroll - window} (got {earliest})"
            )
            return


def _changes(lengths: Schedule, outer_steps: int) -> Iterator[int]:
    """The first outer step, and those at which the length changes."""
    if isinstance(lengths, Piecewise):
        yield from lengths.from_steps
        return
    step = 0
    while step < outer_steps:
        yield step
        # A ramp is monotonic: it never returns to a value that it has left.
        changed = partial(_differ, lengths, step)
        step += 1 + bisect_left(range(step + 1, outer_steps), True, key=changed)


def _differ(lengths: Schedule, step: int, other: int) -> bool:
    return integer_at(lengths, step) != integer_at(lengths, other)
