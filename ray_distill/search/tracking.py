"""A search in MLflow: one run for the search, and below it one for each trial.

Only the driver records. A trial's reports reach it by Ray Tune in any case, so no worker needs to know the
store, trials cannot get into each other's way, and MLflow is imported once, not by each trial.

A trial's run has each outer step once, with what its own processes measured there. That holds for a member of a population
too: it exchanges its state where all members have come to the same step, and goes on from there with another's. Its curves
have a bend there, its metric `cloned_from` says by its number whose state it took over, and the metrics `searched/..`
with which values it went on. Its way as the leaderboard has it, the parent's until then, is in the parent's run.

All that is to be said goes to a journal in the search's folder first and then, in a thread of its own, to MLflow:
a store that is away delays no trial. What it has not taken when the search ends, or is killed, stays in the
journal, and the next `--resume` says it.

Why a second journal, beside the search's memory (`search_journal`): every resume reads that one whole, so it has a
line for each validation; this one has the measurements of all outer steps, which lie nowhere else until MLflow has
them, and which nobody reads after. What happens is said here before it is noted there: after a kill in between it happens
again, is said again, and is there once.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ray_distill.core.metrics import StepMetrics
from ray_distill.search.accounting import SearchTime
from ray_distill.search.domains import Value
from ray_distill.search.results import LeaderboardRow, markdown
from ray_distill.tracking.retry_queue import RetryQueue
from ray_distill.tracking.tracker import DAMAGED_TAG, Tracker, final_status
from ray_distill.utils.jsonl import OutboxEntry, OutboxFile

JOURNAL = "mlflow_journal.jsonl"
"""The journal's file in the search's folder."""

MLFLOW_STATUSES: dict[str, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
"""A trial's status in MLflow's words."""

LEADERBOARD_TABLE = "leaderboard.json"
"""The table on the search's run."""

MAX_TAG = 5000
"""Characters of a tag that every store takes."""

NOTE_TAG = "mlflow.note.content"
"""MLflow's description of a run: Markdown at the top of its page."""

NOTE_ROWS = 20
"""Trials in the description; MLflow's tags are short, and its table artefact has them all."""

FLUSH_TIMEOUT_S = 60.0
"""How long the end of a search waits for the store."""


class SearchTracking:
    """The record of a search; every method but `close` returns at once, and none raises for a store's sake."""

    def __init__(self, parent: Tracker, folder: Path) -> None:
        """Take up what the folder's journal has not said yet, or begin one.

        Args:
            parent: the search's run, open.
            folder: the search's.

        Raises: JournalError.
        """
        self.parent = parent
        self._folder = folder
        self._runs: dict[str, Tracker] = {}
        """Those that the recording has opened."""
        self._running: set[str] = set()
        self._journal = OutboxFile(folder / JOURNAL)
        self.num_recovered = len(self._journal.pending)
        """How many things an earlier process could not say; they are said first."""
        self._recording = RetryQueue(self._say, list(self._journal.pending))

    # What the driver says.

    def go_on(self) -> None:
        """The search goes on after it had ended, or was killed: its run does too."""
        self._put("go_on")

    def begin(self, trial: str, values: Mapping[str, Value]) -> None:
        """A trial begins, or goes on after a resume: its run is made, or found again.

        Args:
            values: what was searched, as the trial began with it: its run's parameters, which stay.
        """
        self._running.add(trial)
        self._put("begin", trial=trial, values=dict(values), unix_s=time.time())

    def add_points(
        self, trial: str, points: Sequence[StepMetrics], held: Mapping[str, Value] | None = None
    ) -> None:
        """Measurements of a trial's outer steps; steps that its run has already are passed over.

        Args:
            held: searched values that changed during the run (population-based training), as they were at these
                outer steps: they become the metrics `searched/<key>`; a value that is no number does not.
        """
        numbers = {
            f"searched/{key}": float(v) for key, v in (held or {}).items() if isinstance(v, int | float)
        }
        if points:
            self._put(
                "points", trial=trial, points=[(p.outer_step, p.values | numbers, p.unix_s) for p in points]
            )

    def clone(self, trial: str, parent_number: int, outer_step: int) -> None:
        """A member of a population goes on from the state of another, the trial of this number: the metric
        `cloned_from`."""
        self._put("clone", trial=trial, parent_number=parent_number, outer_step=outer_step)

    def damaged(self, trial: str, said: str) -> None:
        """A trial goes on from an older checkpoint than its last, since that was damaged: its run's tag, as a run has it."""
        self._put("damaged", trial=trial, said=said)

    def end(
        self, trial: str, status: Literal["finished", "stopped", "failed"], reason: str | None = None
    ) -> None:
        """A trial is over; `reason`: why it failed."""
        self._running.discard(trial)
        self._put(
            "end",
            trial=trial,
            status=MLFLOW_STATUSES[status],
            outcome=status,
            reason=reason,
            unix_s=time.time(),
        )

    def show(
        self, rows: Sequence[LeaderboardRow], files: Sequence[Path] = (), took: SearchTime | None = None
    ) -> None:
        """The leaderboard on the search's run, in place of an earlier one; with files, which must stay where they are.

        Its best accuracy becomes a metric over the number of trials that are over, as does what the search took; its
        first rows, with that below them, become the run's description.
        """
        if rows:
            note = markdown(rows, NOTE_ROWS) + (f"\n{took}\n" if took else "")
            values = {"wall_s": took.wall_s, "orchestration": took.orchestration} if took else {}
            self._put(
                "leaderboard",
                rows=[row.to_dict() for row in rows],
                note=note,
                values=values,
                unix_s=time.time(),
            )
        for path in files:
            self._put("file", path=str(path.resolve()))

    def close(self, status: str, within_s: float = FLUSH_TIMEOUT_S) -> list[str]:
        """End the search's run, and trials that still run: FINISHED, KILLED or FAILED; wait for the store.

        Returns: what MLflow has not got, for the user.
        """
        for trial in sorted(self._running):
            self._put(
                "end", trial=trial, status="KILLED", outcome="interrupted", reason=None, unix_s=time.time()
            )
        self._put("finish", status=status, unix_s=time.time())
        left = self._recording.close(within_s)
        warnings = list(self._recording.rejected)
        if left:
            why = f" ({self._recording.last_error})" if self._recording.last_error else ""
            warnings.append(
                f"{left} entries of {self._folder / JOURNAL} are not in MLflow yet{why}; --resume says them"
            )
        return warnings

    @property
    def num_waiting(self) -> int:
        """How many entries MLflow has not got yet."""
        return self._recording.num_pending

    @property
    def trouble(self) -> str | None:
        """Why MLflow does not take them; None while it does."""
        return self._recording.last_error

    # What the thread does with it.

    def _put(self, what: str, **thing: Any) -> None:
        self._recording.put(self._journal.append({"say": what, **thing}))

    def _say(self, entry: OutboxEntry) -> None:
        said, unix_s = entry.record, float(entry.record.get("unix_s", 0.0))
        match said["say"]:
            case "go_on":
                self.parent.reopen()
            case "begin":
                self._runs[said["trial"]] = self.parent.open_trial_run(said["trial"], said["values"], unix_s)
            case "points":
                self._run_of(said["trial"]).log_steps([StepMetrics(*point) for point in said["points"]])
            case "clone":
                cloned_from = ("cloned_from", said["outer_step"], float(said["parent_number"]))
                self._run_of(said["trial"]).log_metrics([cloned_from])
            case "damaged":
                self._run_of(said["trial"]).set_tag(DAMAGED_TAG, said["said"][:MAX_TAG])
            case "end":
                run = self._run_of(said["trial"])
                # MLflow's list has one sign for KILLED and FAILED.
                run.set_tag("outcome", said["outcome"])
                if said["reason"]:
                    run.set_tag("reason", said["reason"][:MAX_TAG])
                run.finish(said["status"], unix_s)
            case "leaderboard":
                self._say_leaderboard(said, unix_s)
            case "file":
                self.parent.log_file(Path(said["path"]))
            case "finish":
                self.parent.finish(said["status"], unix_s)
        self._journal.ack(entry)

    def _run_of(self, trial: str) -> Tracker:
        """A trial's run, which an earlier process may have opened."""
        if trial not in self._runs:
            self._runs[trial] = self.parent.open_trial_run(trial, {}, time.time())
        return self._runs[trial]

    def _say_leaderboard(self, said: Mapping[str, Any], unix_s: float) -> None:
        self.parent.log_table(said["rows"], LEADERBOARD_TABLE)
        self.parent.set_tag(NOTE_TAG, said["note"])
        self.parent.set_tag("best_trial", said["rows"][0]["trial"])
        best = said["rows"][0]["best_validation_accuracy"]
        values = said["values"] | ({} if best is None else {"best_validation_accuracy": best})
        if values:
            over = sum(row["status"] != "running" for row in said["rows"])
            self.parent.log_batch(StepMetrics(over, values, unix_s))


@contextmanager
def tracked_search(parent: Tracker, folder: Path, warnings: list[str]) -> Iterator[SearchTracking]:
    """The record of a search, whose MLflow run ends with the block: FINISHED, KILLED from outside, or FAILED.

    What MLflow has not got then is added to `warnings`. Raises: JournalError.
    """
    tracking = SearchTracking(parent, folder)
    error: BaseException | None = None
    try:
        yield tracking
    except BaseException as e:
        error = e
        raise
    finally:
        warnings += tracking.close(final_status(error))
