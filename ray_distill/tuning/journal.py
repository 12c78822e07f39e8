"""The journal of a search: an append-only file of events, from which `--resume` continues.

Tune's own restore is not used. It unpickles files of the experiment's folder, and we load no pickle from a file; it also
refuses a search with more trials than it started with. So each invocation is a Tune experiment of its own, in
tune/attempt-N, and the journal says what is left to do. It has one JSON object a line, flushed to disk before the search
continues; a line that was cut off as the driver died is dropped.

    {"event": "attempt", "places": .., "cores": .., ..}             a command starts, with so many trials in parallel
    {"event": "trial", "trial": "trial-003", "values": {..}}        a trial got these values
    {"event": "report", "trial": .., "outer_step": .., ..}          it was validated and saved to `checkpoint`
    {"event": "barrier", "outer_step": .., "clones": [..]}          a population's exchange: who continues from whom
    {"event": "end", "trial": .., "status": .., "reason": ..}
    {"event": "goes_on", "trial": .., "outer_step": .., ..}         a resumed search continues it from here
    {"event": "done"}                                               the results are in the folder

Each line also has `unix_s`, the time it was written, from which `search.accounting` computes where the time went.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ray_distill.errors import RunError
from ray_distill.tuning.accounting import SearchTime, time_spent
from ray_distill.tuning.config import EVALUATION_KEY
from ray_distill.tuning.domains import Value
from ray_distill.utils.jsonl import OutboxFile

Status = Literal["finished", "stopped", "failed", "running"]
"""Stopped: by the scheduler, before its last outer step."""


class ValidationResult(NamedTuple):
    """A validation of a trial."""

    outer_step: int
    seconds: float
    """Since the trial started, without pauses."""
    validation_accuracy: float
    """A fraction."""


class TrialCheckpoint(NamedTuple):
    """A checkpoint of a trial."""

    outer_step: int
    seconds: float
    """The trial's time until then."""
    checkpoint: str
    """Its folder, relative to the search's folder."""


@dataclass
class TrialLog:
    """What the journal knows of a trial."""

    name: str
    values: dict[str, Value]
    """The searched values it started with."""
    numbers: dict[str, float] | None = None
    """The numbers the values were made from, with a sampler that learns."""
    status: Status = "running"
    reason: str | None = None
    """Why it failed."""
    curve: list[ValidationResult] = field(default_factory=list)
    """In the order of outer steps."""
    lineage: list[tuple[int, dict[str, Value]]] = field(default_factory=list)
    """For a cloned member of a population: from which outer step on it used which values."""
    checkpoints: list[TrialCheckpoint] = field(default_factory=list)
    """Those that led to its last state, the oldest first; Tune deletes all but the newest few."""

    @property
    def outer_steps(self) -> int:
        """Taken until its last validation."""
        return self.curve[-1].outer_step if self.curve else 0

    @property
    def seconds(self) -> float:
        """Taken until its last validation."""
        return self.curve[-1].seconds if self.curve else 0.0

    @property
    def best(self) -> ValidationResult | None:
        """The best validation, the first of equal ones."""
        return max(self.curve, key=lambda v: (v.validation_accuracy, -v.outer_step), default=None)

    @property
    def checkpoint(self) -> str | None:
        """The folder of its last checkpoint, relative to the search's folder."""
        return self.checkpoints[-1].checkpoint if self.checkpoints else None

    @property
    def checkpoint_step(self) -> int:
        """The outer step of its last checkpoint."""
        return self.checkpoints[-1].outer_step if self.checkpoints else 0

    @property
    def current_values(self) -> dict[str, Value]:
        """The values it uses now."""
        return self.lineage[-1][1] if self.lineage else self.values

    def apply(self, event: dict[str, Any]) -> None:
        """Update the log by an event of this trial."""
        match event["event"]:
            case "report":
                self._report(event)
            case "end":
                self.status, self.reason = event["status"], event["reason"]
            case "goes_on":
                self.status = "running"
                self._rewind(event["outer_step"])

    def clone_from(self, parent: "TrialLog", outer_step: int, event: dict[str, Any]) -> None:
        """Continue from another trial's state with other values: the parent's history becomes this one's."""
        parent_values = parent.current_values
        self.lineage = [*(parent.lineage or [(0, parent.values)]), (outer_step, event["values"])]
        older = [saved for saved in parent.checkpoints if saved.outer_step < outer_step]
        seconds = parent.checkpoints[-1].seconds if parent.checkpoints else 0.0
        self.checkpoints = [*older, TrialCheckpoint(outer_step, seconds, event["checkpoint"])]
        # Accuracies with another inner step size cannot be compared with those to come.
        same = parent_values.get(EVALUATION_KEY) == event["values"].get(EVALUATION_KEY)
        self.curve = list(parent.curve) if same else []

    def _report(self, event: dict[str, Any]) -> None:
        step, seconds = event["outer_step"], event["seconds"]
        # A resumed member that waits at an exchange repeats its last report; a trial that continues from an older state
        # repeats all reports after that.
        older = [validation for validation in self.curve if validation.outer_step < step]
        self.curve = [*older, ValidationResult(step, seconds, event["validation_accuracy"])]
        if event["checkpoint"] is not None:
            saved = [checkpoint for checkpoint in self.checkpoints if checkpoint.outer_step < step]
            self.checkpoints = [*saved, TrialCheckpoint(step, seconds, event["checkpoint"])]

    def _rewind(self, outer_step: int) -> None:
        """Forget what came after the checkpoint of an outer step; 0: restart with the values that the trial started with,
        whatever it was cloned from since."""
        self.curve = [validation for validation in self.curve if validation.outer_step <= outer_step]
        self.checkpoints = [saved for saved in self.checkpoints if saved.outer_step <= outer_step]
        self.lineage = [
            (step, values) for step, values in self.lineage if step <= outer_step and self.checkpoints
        ]


class SearchJournal:
    """The journal, open for writing."""

    def __init__(self, path: Path, sync: Callable[[], None] = lambda: None) -> None:
        """Reads what is there; `sync` is called after each line, to copy it to storage. Raises: JsonlError."""
        self.sync_error: RunError | None = None
        """What `sync` raised; Tune replaces what a callback raises by an error of its own."""
        self._sync = sync
        self.trials: dict[str, TrialLog] = {}
        self.last_exchange = 0
        """The outer step of the population's last exchange."""
        self._events: list[dict[str, Any]] = []
        self._file = OutboxFile(path)
        for entry in self._file.pending:
            self._apply(entry.record)

    def _apply(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        if event["event"] == "trial":
            self.trials[event["trial"]] = TrialLog(event["trial"], event["values"], event.get("numbers"))
        elif event["event"] == "barrier":
            self.last_exchange = event["outer_step"]
            for clone in event["clones"]:
                self.trials[clone["trial"]].clone_from(
                    self.trials[clone["parent"]], event["outer_step"], clone
                )
        elif "trial" in event:
            self.trials[event["trial"]].apply(event)

    def write(self, event: str, **fields: Any) -> None:
        """Append an event; it is on disk, and synced, when this returns. Raises: what `sync` raises."""
        self._apply(self._file.append({"event": event, **fields, "unix_s": time.time()}).record)
        try:
            self._sync()
        except RunError as e:
            self.sync_error = e
            raise

    @property
    def time(self) -> SearchTime:
        """Where the search's time went so far."""
        return time_spent(self._events)
