"""Values in a configuration that may change over the run, as functions of the outer step.

A number is a constant. A mapping is a schedule, by its `schedule`:

    lr: 1e-3
    lr: {schedule: cosine, start: 1e-2, end: 1e-4}
    window_length: {schedule: linear, start: 10, end: 40, steps: 500}
    window_length: {schedule: piecewise, values: [10, 20, 40], from_steps: [0, 100, 500]}

What they mean at each step is said in `core.schedules`, which needs no torch; a length is rounded to the
nearest integer, halves up.
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
    """From one value to another."""

    schedule: Literal["linear", "cosine"]
    """In equal steps, or along half a cosine, which is level at both ends."""
    start: Number
    """The value at the first outer step."""
    end: Number
    """The value at the last of `steps` outer steps and after it."""
    steps: Annotated[int, Field(ge=2)] | None = None
    """Outer steps from start to end. Default: the whole run."""

    def __str__(self) -> str:
        return f"{self.start} to {self.end} ({self.schedule})"


class PiecewiseConfig(Section, Generic[Number]):
    """One value after another."""

    schedule: Literal["piecewise"]
    values: Annotated[tuple[Number, ...], Field(min_length=2)]
    """The values in their order."""
    from_steps: tuple[NonNegativeInt, ...]
    """The outer step from which each value holds; the first is 0."""

    @field_validator("values", "from_steps", mode="before")
    @classmethod
    def _lists(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("from_steps")
    @classmethod
    def _one_for_each_value(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        values = sibling(info, "values")
        if values is not None and len(values) != len(value):
            raise invalid(f"must be as many as values, which are {len(values)}")
        if not value or value[0] != 0 or list(value) != sorted(set(value)):
            raise invalid("must begin with 0 and increase")
        return value

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.values))} (piecewise)"


_TAG_OF = {"linear": "ramp", "cosine": "ramp", "piecewise": "piecewise"}
TAGS = ("number", *dict.fromkeys(_TAG_OF.values()))
"""The tags that pydantic puts into the path of a mistake."""


def _tag(value: Any) -> str | None:
    if isinstance(value, dict):
        return _TAG_OF.get(str(value.get("schedule")))
    return _TAG_OF[value.schedule] if isinstance(value, RampConfig | PiecewiseConfig) else "number"


_BY_FORM = Discriminator(
    _tag,
    custom_error_type="impossible",
    custom_error_message=f"allowed: a number, or a mapping whose `schedule` is one of {', '.join(_TAG_OF)}",
)
ScheduledFloat = Annotated[
    Annotated[PositiveFloat, Tag("number")]
    | Annotated[RampConfig[PositiveFloat], Tag("ramp")]
    | Annotated[PiecewiseConfig[PositiveFloat], Tag("piecewise")],
    _BY_FORM,
]
"""A positive number at every outer step."""
ScheduledInt = Annotated[
    Annotated[Length, Tag("number")]
    | Annotated[RampConfig[Length], Tag("ramp")]
    | Annotated[PiecewiseConfig[Length], Tag("piecewise")],
    _BY_FORM,
]
"""A length at every outer step."""


def schedule(value: ScheduledFloat | ScheduledInt, outer_steps: int) -> Schedule:
    """The value as a function of the outer step, in a run of so many."""
    match value:
        case RampConfig():
            kind = Linear if value.schedule == "linear" else Cosine
            return kind(start=value.start, end=value.end, steps=value.steps or outer_steps)
        case PiecewiseConfig():
            return Piecewise(values=value.values, from_steps=value.from_steps)
    return Constant(value)


def schedule_errors(key: str, value: ScheduledFloat | ScheduledInt, outer_steps: int) -> Iterator[str]:
    """What is wrong with a value in a run of so many outer steps, for people."""
    if isinstance(value, RampConfig) and value.steps is None and outer_steps < 2:
        yield f"{key}: a {value.schedule} schedule needs 2 outer steps, and outer.steps is 1; write a number"
    if isinstance(value, PiecewiseConfig) and value.from_steps[-1] >= outer_steps:
        yield (
            f"{key}.from_steps: must be below outer.steps, which is {outer_steps} (found {value.from_steps[-1]}); "
            "the values from there on would have no effect"
        )
