"""A place where a run puts up how far it has come and what it has to say: for the driver, which shows the one and
records the other; and where the driver puts up what is recorded, for the workers, which keep the rest.

In a module of its own that imports little but ray, since the actor's process imports it: on a small
machine every import there delays the training.
"""

from typing import Any, NamedTuple

import ray

from ray_distill.core.metrics import StepMetrics


class Posted(NamedTuple):
    """A report that is to be recorded."""

    points: list[StepMetrics]
    computation: str | None = None
    """What became of compiling, if it is the report that says so."""
    damaged: str | None = None
    """Which checkpoints could not be read, likewise."""
    picture_png: bytes | None = None
    """D after an outer step that was kept as a checkpoint."""
    picture_outer_step: int = 0


class Taken(NamedTuple):
    """What a driver finds on the board."""

    done: int
    said: str
    posted: list[Posted]
    number: int
    """Of the last of them, to be named at the next visit."""


class ReportMailbox:
    """The last thing that a run said of itself, and the reports that the driver has not taken yet."""

    def __init__(self) -> None:
        self._last: tuple[int, str] = (0, "workers are starting")
        self._posted: list[Posted] = []
        self._number = 0
        self._recorded = 0

    def post(self, done: int, said: str) -> None:
        """Put up what is true now."""
        self._last = (done, said)

    def post_report(self, posted: Posted) -> None:
        """Add a report."""
        self._posted.append(posted)
        self._number += 1

    def take(self, number: int) -> Taken:
        """What was put up last, and the reports after the one with this number; those before are forgotten.

        So a visit whose answer was lost on the way can be made again.
        """
        self._posted = self._posted[len(self._posted) - (self._number - number) :]
        return Taken(*self._last, self._posted, self._number)

    def post_recorded(self, outer_step: int) -> None:
        """Put up that MLflow has all points up to this outer step."""
        self._recorded = outer_step

    def recorded(self) -> int:
        """The last outer step whose point MLflow has, as far as is known; 0 if nothing is."""
        return self._recorded


ProgressBoard: Any = ray.remote(num_cpus=0)(ReportMailbox)
