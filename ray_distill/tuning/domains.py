"""The values a searched key may take: the section `space` of a search file.

    truncation.rule: {choice: [rat-bptt, t-bptt, bptt]}
    truncation.unroll_length: {randint: [30, 80]}                               # both ends included
    truncation.window_length: {randint: [5, truncation.unroll_length]}
    truncation.window_length: {uniform: [0.2, 1.0], fraction_of: truncation.unroll_length}
    truncation.min_window_start: {randint: [0, truncation.unroll_length - truncation.window_length]}
    inner.lr: {loguniform: [3e-4, 3e-3]}
    outer.lr: {grid: [1e-3, 1e-2]}                                              # with algorithm grid

An end of a range may be another key or a difference of keys, and so may the whole of which a value is a fraction: what must
stay below another value then does so in every trial. `search.space` turns a number from 0 to 1 into a value.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    PositiveFloat,
    Tag,
    ValidationInfo,
    field_validator,
)

from ray_distill.config.base import Section, invalid

Value = bool | int | float | str | None
"""A value of a searched key."""

KEY = r"[a-z_]+(\.[a-z_]+)+"
KEY_DIFFERENCE = rf"^{KEY}( - {KEY})*$"
"""A key, or a key minus others."""

Tuple = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
Key = Annotated[str, Field(pattern=KEY_DIFFERENCE)]
Options = Annotated[tuple[Value, ...], Tuple, Field(min_length=1)]
Range = Annotated[tuple[float, float], Tuple]


def keys_in(difference: str) -> list[str]:
    """The keys that a difference names, in order."""
    return difference.split(" - ")


def _check_order(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise invalid("must be [low, high] with low below high")
    return value


def _is_fraction(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


class _Domain(Section):
    @property
    def depends_on(self) -> Iterator[str]:
        """The keys that must be drawn before this one."""
        yield from ()


class _Fractional(_Domain):
    fraction_of: Key | None = None
    """The numbers are fractions of this, 0 to 1; the value is an integer, rounded up."""

    @field_validator("fraction_of")
    @classmethod
    def _check_fractions(cls, value: str | None, info: ValidationInfo) -> str | None:
        numbers = next(iter(info.data.values()), None)
        if value is not None and numbers is not None and not all(map(_is_fraction, numbers)):
            raise invalid(f"needs fractions from 0 to 1, got {list(numbers)}")
        return value

    @property
    def depends_on(self) -> Iterator[str]:
        """The keys that must be drawn before this one."""
        yield from keys_in(self.fraction_of) if self.fraction_of else []


def _check_unique(value: tuple[Value, ...]) -> tuple[Value, ...]:
    if len(set(map(repr, value))) != len(value):
        raise invalid("has a duplicate value; remove it")
    return value


class ChoiceDomain(_Fractional):
    """One of some values, all equally likely."""

    choice: Options
    fraction_of: Key | None = None
    """As elsewhere."""

    _unique = field_validator("choice")(_check_unique)


class GridDomain(_Fractional):
    """Each of some values in turn."""

    grid: Options
    fraction_of: Key | None = None
    """As elsewhere."""

    _unique = field_validator("grid")(_check_unique)


class UniformDomain(_Fractional):
    """A number from a range."""

    uniform: Range
    fraction_of: Key | None = None
    """As elsewhere."""

    _order = field_validator("uniform")(_check_order)


class LogUniformDomain(_Domain):
    """A number whose logarithm is uniform."""

    loguniform: Annotated[tuple[PositiveFloat, PositiveFloat], Tuple]

    _order = field_validator("loguniform")(_check_order)


class RandintDomain(_Domain):
    """An integer from a range, both ends included."""

    randint: Annotated[tuple[int | Key, int | Key], Tuple]

    @field_validator("randint")
    @classmethod
    def _order(cls, value: tuple[int | str, int | str]) -> tuple[int | str, int | str]:
        low, high = value
        if isinstance(low, int) and isinstance(high, int):
            _check_order((low, high))
        return value

    @property
    def depends_on(self) -> Iterator[str]:
        """The keys that must be drawn before this one."""
        for end in self.randint:
            yield from keys_in(end) if isinstance(end, str) else []


_KINDS = ("choice", "uniform", "loguniform", "randint", "grid")


def _kind(value: Any) -> str | None:
    fields = value if isinstance(value, dict) else getattr(type(value), "model_fields", {})
    kinds = [kind for kind in _KINDS if kind in fields]
    return kinds[0] if len(kinds) == 1 else None


Domain = Annotated[
    Annotated[ChoiceDomain, Tag("choice")]
    | Annotated[UniformDomain, Tag("uniform")]
    | Annotated[LogUniformDomain, Tag("loguniform")]
    | Annotated[RandintDomain, Tag("randint")]
    | Annotated[GridDomain, Tag("grid")],
    Discriminator(
        _kind,
        custom_error_type="impossible",
        custom_error_message=f"allowed: a mapping with exactly one of {', '.join(_KINDS)}",
    ),
]


def options(domain: Domain) -> tuple[Value, ...] | None:
    """The values, or fractions, of a choice or a grid; None for a range."""
    match domain:
        case ChoiceDomain():
            return domain.choice
        case GridDomain():
            return domain.grid
    return None


def interpolate(domain: UniformDomain | LogUniformDomain, number: float) -> float:
    """The value at a position from 0 to 1 in a range, to four digits so that people can read it."""
    if isinstance(domain, UniformDomain):
        low, high = domain.uniform
        value = low + number * (high - low)
    else:
        low, high = domain.loguniform
        value = low * math.exp(number * math.log(high / low))
    return min(max(float(f"{value:.4g}"), low), high)
