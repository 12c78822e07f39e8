"""A Ray actor between a run's workers and its driver: status and reports one way, what MLflow has the other way.

A module that imports little but ray, since the actor's process imports it: on a small machine every import there
delays the training.
"""

from typing import Any, NamedTuple

import ray

from ray_distill.core.metrics import StepMetrics


class RunReport(NamedTuple):
    """A report to log to MLflow."""

    steps: list[StepMetrics]
    compile_status: str | None = None
    """How compiling went, in the report after it."""
    damaged_checkpoints: str | None = None
    """Checkpoints that could not be read, in the first report of a resumed run."""
    picture_png: bytes | None = None
    """The contact sheet of a checkpoint's D."""
    picture_outer_step: int = 0


class MailboxContents(NamedTuple):
    """What the driver fetches."""

    done: int
    status: str
    reports: list[RunReport]
    number: int
    """Of the last report, to pass to the next `fetch`."""


class ReportMailbox:
    """A run's latest status, and the reports that the driver has not fetched yet."""

    def __init__(self) -> None:
        self._status: tuple[int, str] = (0, "workers are starting")
        self._reports: list[RunReport] = []
        self._number = 0
        self._logged_step = 0

    def set_status(self, done: int, status: str) -> None:
        """Replace the status: outer steps done, and a text beside them."""
        self._status = (done, status)

    def add_report(self, report: RunReport) -> None:
        """Queue a report."""
        self._reports.append(report)
        self._number += 1

    def fetch(self, number: int) -> MailboxContents:
        """The status and the reports after this number; earlier ones are dropped.

        If an answer is lost on the way, the same call returns it again.
        """
        self._reports = self._reports[len(self._reports) - (self._number - number) :]
        return MailboxContents(*self._status, self._reports, self._number)

    def set_logged_step(self, outer_step: int) -> None:
        """MLflow has all steps up to this one."""
        self._logged_step = outer_step

    def logged_step(self) -> int:
        """The last outer step known to be in MLflow; 0 if none is."""
        return self._logged_step


MailboxActor: Any = ray.remote(num_cpus=0)(ReportMailbox)
