"""Metrics of a run as plain values, so that any process can use them without importing torch."""

from typing import NamedTuple


class StepMetrics(NamedTuple):
    """The metrics of one outer step by name, with those of the validation after it, if any."""

    outer_step: int
    values: dict[str, float]
    unix_s: float
    """End of the outer step, its validation included: Unix time in seconds."""
