"""What a search finds out: one record for each trial. Plain data for the leaderboard, the plots and MLflow."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Value = bool | int | float | str | None
"""Of a searched key."""


class Measured(NamedTuple):
    """A validation of a trial."""

    outer_step: int
    seconds: float
    """Since the trial began, pauses left out."""
    validation_accuracy: float
    """A fraction."""


@dataclass(frozen=True)
class TrialRecord:
    """How a trial went."""

    name: str
    values: dict[str, Value]
    """What was searched: the key's path in the configuration, and the value that the trial began with."""
    status: Literal["finished", "stopped", "failed", "running"]
    """Stopped: by the scheduler, before its last outer step."""
    outer_steps: int
    """Taken."""
    seconds: float
    curve: tuple[Measured, ...]
    """In the order of outer steps."""
    changes: tuple[tuple[int, dict[str, Value]], ...] = ()
    """Population-based training only: from which outer step on which values held."""
    reason: str | None = None
    """Why it failed."""

    @property
    def best(self) -> Measured | None:
        """The best validation, the first of equal ones."""
        return max(self.curve, key=lambda m: (m.validation_accuracy, -m.outer_step), default=None)
