"""What a search has done so far, in a file that only grows: its memory, from which `--resume` goes on.

Tune's own restore is not used. It unpickles what lies in the experiment's folder, and we load no pickle from a file;
it also refuses a search with more trials than it began with. So each invocation is a Tune experiment of its own, in
tune/attempt-N, and the journal says what is left to do: one JSON object a line, forced to the disk before the search
goes on. A line that was cut off as the driver died is dropped.

    {"event": "attempt", "places": .., "cores": .., ..}             a command begins; of so many trials at once
    {"event": "trial", "trial": "trial-003", "values": {..}}        it was given these values
    {"event": "report", "trial": .., "outer_step": .., ..}          it was validated, and kept at `checkpoint`
    {"event": "barrier", "outer_step": .., "clones": [..]}          a population's exchange: who goes on from whom
    {"event": "end", "trial": .., "status": .., "reason": ..}
    {"event": "goes_on", "trial": .., "outer_step": .., ..}         a resumed search takes it up again here
    {"event": "done"}                                               the results lie in the folder

Each line also has `unix_s`, when it was written: what the search's time went into is read from that (`search_time`).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ray_distill.errors import RunError
from ray_distill.search.accounting import SearchTime, spent
from ray_distill.search.config import JUDGED_BY
from ray_distill.search.results import Measured, TrialRecord, Value
from ray_distill.utils.jsonl import OutboxFile

Status = Literal["finished", "stopped", "failed", "running"]


class Kept(NamedTuple):
    """A checkpoint of a trial."""

    outer_step: int
    seconds: float
    """That the trial had taken there."""
    checkpoint: str
    """Its folder, from the search's folder."""


@dataclass
class TrialLog:
    """What the journal knows of a trial."""

    name: str
    values: dict[str, Value]
    """That it began with."""
    numbers: dict[str, float] | None = None
    """What the values were made from, where a sampler learns."""
    status: Status = "running"
    reason: str | None = None
    curve: list[Measured] = field(default_factory=list)
    lineage: list[tuple[int, dict[str, Value]]] = field(default_factory=list)
    """Of a member of a population that was cloned: which values held from which outer step on."""
    kept: list[Kept] = field(default_factory=list)
    """The states that led to its last one, the oldest first; Tune deletes all but the newest few."""

    @property
    def checkpoint(self) -> str | None:
        """The folder that holds its last state, from the search's folder."""
        return self.kept[-1].checkpoint if self.kept else None

    @property
    def outer_step(self) -> int:
        """Of that state."""
        return self.kept[-1].outer_step if self.kept else 0

    @property
    def now(self) -> dict[str, Value]:
        """The values that hold now."""
        return self.lineage[-1][1] if self.lineage else self.values

    def record(self) -> TrialRecord:
        """As the leaderboard and the pictures want it."""
        last = self.curve[-1] if self.curve else None
        return TrialRecord(
            name=self.name,
            values=self.values,
            status=self.status,
            outer_steps=last.outer_step if last else 0,
            seconds=last.seconds if last else 0.0,
            curve=tuple(self.curve),
            changes=tuple(self.lineage),
            reason=self.reason,
        )

    def take(self, event: dict[str, Any]) -> None:
        """What an event of this trial changes."""
        match event["event"]:
            case "report":
                self._report(event)
            case "end":
                self.status, self.reason = event["status"], event["reason"]
            case "goes_on":
                self.status = "running"
                self._cut_back(event["outer_step"])

    def clone(self, parent: "TrialLog", outer_step: int, event: dict[str, Any]) -> None:
        """Go on from another's state with other values: its way is this one's from now on."""
        before = parent.now
        self.lineage = [*(parent.lineage or [(0, parent.values)]), (outer_step, event["values"])]
        before_it = [kept for kept in parent.kept if kept.outer_step < outer_step]
        seconds = parent.kept[-1].seconds if parent.kept else 0.0
        self.kept = [*before_it, Kept(outer_step, seconds, event["checkpoint"])]
        # Accuracies by another inner step size cannot be compared with those that come.
        same = before.get(JUDGED_BY) == event["values"].get(JUDGED_BY)
        self.curve = list(parent.curve) if same else []

    def _report(self, event: dict[str, Any]) -> None:
        step = event["outer_step"]
        measured = Measured(step, event["seconds"], event["validation_accuracy"])
        # A member that waits at a barrier says its last report again when it is taken up, and a trial that goes on from an
        # older state all that came after that.
        self.curve = [*(m for m in self.curve if m.outer_step < step), measured]
        if event["checkpoint"] is not None:
            before = (kept for kept in self.kept if kept.outer_step < step)
            self.kept = [*before, Kept(step, event["seconds"], event["checkpoint"])]

    def _cut_back(self, outer_step: int) -> None:
        """Forget what came after an outer step, to go on from the state that was kept there; 0: from the start, with the
        values that it began with, whoever it was cloned from since."""
        self.curve = [m for m in self.curve if m.outer_step <= outer_step]
        self.kept = [kept for kept in self.kept if kept.outer_step <= outer_step]
        self.lineage = [(step, of) for step, of in self.lineage if step <= outer_step and self.kept]


class SearchJournal:
    """The journal, open to be written on."""

    def __init__(self, path: Path, keep: Callable[[], None] = lambda: None) -> None:
        """Reads what is there; `keep` is called after each line. Raises: JournalError."""
        self.trouble: RunError | None = None
        """Why what was written could not be kept; Tune makes something else of what a callback raises."""
        self._keep = keep
        self.logs: dict[str, TrialLog] = {}
        self.barrier = 0
        """The population's last exchange."""
        self._events: list[dict[str, Any]] = []
        self._lines = OutboxFile(path)
        for entry in self._lines.pending:
            self._take(entry.record)

    def _take(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        if event["event"] == "trial":
            self.logs[event["trial"]] = TrialLog(event["trial"], event["values"], event.get("numbers"))
        elif event["event"] == "barrier":
            self.barrier = event["outer_step"]
            for clone in event["clones"]:
                self.logs[clone["trial"]].clone(self.logs[clone["parent"]], event["outer_step"], clone)
        elif "trial" in event:
            self.logs[event["trial"]].take(event)

    def write(self, event: str, **of: Any) -> None:
        """Add an event, on the disk, and kept, when this returns. Raises: what `keep` does."""
        self._take(self._lines.append({"event": event, **of, "unix_s": time.time()}).record)
        try:
            self._keep()
        except RunError as e:
            self.trouble = e
            raise

    @property
    def time(self) -> SearchTime:
        """What the search's time went into so far."""
        return spent(self._events)
