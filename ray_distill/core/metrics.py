"""The measurements of a run, as plain values that any process can take without importing torch."""

from typing import NamedTuple


class StepMetrics(NamedTuple):
    """The measurements of one outer step, by name; those of a validation are there when there was one."""

    outer_step: int
    values: dict[str, float]
    unix_s: float
    """When the outer step ended, its validation included: seconds since 1970."""
