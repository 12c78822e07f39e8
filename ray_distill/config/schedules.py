"""Values in a configuration that may change over the run, as functions of the outer step.

A number is a constant. A mapping is a schedule:

    lr: 1e-3
    lr: {schedule: cosine, start: 1e-2, end: 1e-4}
    window_length: {schedule: linear, start: 10, end: 40, steps: 500}
    window_length: {schedule: piecewise, values: [10, 20, 40], from_steps: [0, 100, 500]}

`core.schedules` computes their values; lengths are rounded to the nearest integer, halves up.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import (
    Discriminator,
    Field,
    PositiveFloat,
    Tag,
    ValidationInfo,
    field_validator,
)

from ray_distill.config.base import NonNegativeInt, Section, invalid, sibling
from ray_distill.core.schedules import Constant, Cosine, Linear, Piecewise, Schedule

Number = TypeVar("Number", int, float)
Length = Annotated[int, Field(gt=0, le=100_000)]
"""In inner steps."""


class RampConfig(Section, Generic[Number]):
    """A value that goes from `start` to `end`."""

    schedule: Literal["linear", "cosine"]
    """`linear`: in equal steps. `cosine`: along half a cosine, which is flat at both ends."""
    start: Number
    """The value at the first outer step."""
    end: Number
    """The value at the last of `steps` outer steps, and after it."""
    steps: Annotated[int, Field(ge=2)] | None = None
    """Outer steps from `start` to `end`. Default: the whole run."""

    def __str__(self) -> str:
        return f"{self.start} to {self.end} ({self.schedule})"


class PiecewiseConfig(Section, Generic[Number]):
    """A value that is constant between given outer steps."""

    schedule: Literal["piecewise"]
    values: Annotated[tuple[Number, ...], Field(min_length=2)]
    """The values, in order."""
    from_steps: tuple[NonNegativeInt, ...]
    """The outer step from which each value applies: as many as `values`, starting with 0 and increasing."""

    @field_validator("values", "from_steps", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("from_steps")
    @classmethod
    def _one_per_value(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        values = sibling(info, "values")
        if values is not None and len(values) != len(value):
            raise invalid(f"must have as many entries as values, which has {len(values)}")
        if not value or value[0] != 0 or list(value) != sorted(set(value)):
            raise invalid("must start with 0 and increase")
        return value

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.values))} (piecewise)"


_TAG_OF = {"linear": "ramp", "cosine": "ramp", "piecewise": "piecewise"}


def _tag(value: Any) -> str | None:
    if isinstance(value, dict):
        return _TAG_OF.get(str(value.get("schedule")))
    return _TAG_OF[value.schedule] if isinstance(value, RampConfig | PiecewiseConfig) else "number"


_BY_TAG = Discriminator(
    _tag,
    custom_error_type="invalid",
    custom_error_message=f"must be a number, or a mapping whose `schedule` is one of {', '.join(_TAG_OF)}",
)
ScheduledFloat = Annotated[
    Annotated[PositiveFloat, Tag("number")]
    | Annotated[RampConfig[PositiveFloat], Tag("ramp")]
    | Annotated[PiecewiseConfig[PositiveFloat], Tag("piecewise")],
    _BY_TAG,
]
"""A positive number at every outer step."""
ScheduledInt = Annotated[
    Annotated[Length, Tag("number")]
    | Annotated[RampConfig[Length], Tag("ramp")]
    | Annotated[PiecewiseConfig[Length], Tag("piecewise")],
    _BY_TAG,
]
"""A length at every outer step."""


def schedule(value: ScheduledFloat | ScheduledInt, outer_steps: int) -> Schedule:
    """The value as a function of the outer step, in a run of `outer_steps`."""
    match value:
        case RampConfig():
            kind = Linear if value.schedule == "linear" else Cosine
            return kind(start=value.start, end=value.end, steps=value.steps or outer_steps)
        case PiecewiseConfig():
            return Piecewise(values=value.values, from_steps=value.from_steps)
    return Constant(value)


def schedule_errors(key: str, value: ScheduledFloat | ScheduledInt, outer_steps: int) -> Iterator[str]:
    """Messages for a schedule that does not fit a run of `outer_steps`."""
    if isinstance(value, RampConfig) and value.steps is None and outer_steps < 2:
        yield f"{key}: a {value.schedule} schedule needs 2 outer steps, but outer.steps is 1; use a number instead"
    if isinstance(value, PiecewiseConfig) and value.from_steps[-1] >= outer_steps:
        yield (
            f"{key}.from_steps: must be below outer.steps, which is {outer_steps} (got {value.from_steps[-1]}); "
            "later values would have no effect"
        )
