"""A search in MLflow: one run for the search, with a nested run for each trial.

Only the driver logs. Ray Tune brings it the trials' reports anyway, so workers need not know the store, trials cannot get
into each other's way, and MLflow is imported once.

A trial's run has each outer step once, as its own processes measured it. That also holds for a member of a population, which
continues from another's state after an exchange: its curves have a bend there, the metric `cloned_from` has the number of
the trial whose state it took over, and the metrics `searched/..` have the values it continues with. Its lineage, as in the
leaderboard, is the parent's until then, in the parent's run.

Everything goes to an outbox in the search's folder first and then, in a thread of its own, to MLflow: a store that does not
answer delays no trial. What is left in the outbox when the search ends, or is killed, is sent by the next `--resume`.

The outbox is a file apart from the search's journal, since a resume reads all of that, with its line for each validation,
while the measurements of all outer steps are needed only until MLflow has them. An event is written here before it is written
there: after a kill in between it happens again, is sent again, and is logged once.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ray_distill.core.metrics import StepMetrics
from ray_distill.tracking.retry_queue import RetryQueue
from ray_distill.tracking.tracker import DAMAGED_TAG, Tracker, final_status
from ray_distill.tuning.accounting import SearchTime
from ray_distill.tuning.domains import Value
from ray_distill.tuning.results import LeaderboardRow, markdown
from ray_distill.tuning.search_dir import OUTBOX
from ray_distill.utils.jsonl import OutboxEntry, OutboxFile

TrialEnd = Literal["finished", "stopped", "failed"]

MLFLOW_STATUSES: dict[str, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

LEADERBOARD_TABLE = "leaderboard.json"
"""The table artefact of the search's run."""

MAX_TAG = 5000
"""Characters of a tag that every store accepts."""

NOTE_TAG = "mlflow.note.content"
"""MLflow's description of a run: Markdown at the top of its page."""

NOTE_ROWS = 20
"""Trials in the description, since tags are short; the table artefact has all."""

FLUSH_TIMEOUT_S = 60.0
"""How long the end of a search waits for the store."""

logger = logging.getLogger(__name__)


class SearchTracking:
    """Logs a search; every method but `close` returns at once, and none raises for a store that does not answer."""

    def __init__(self, parent: Tracker, folder: Path) -> None:
        """Open the outbox in the search's folder; what an earlier process left in it is sent first.

        Args:
            parent: the search's run, open.

        Raises: JsonlError.
        """
        self.parent = parent
        self._runs: dict[str, Tracker] = {}
        """The trials' runs that are open in this process."""
        self._running: set[str] = set()
        self._path = folder / OUTBOX
        self._outbox = OutboxFile(self._path)
        self.num_recovered = len(self._outbox.pending)
        """How many entries an earlier process left."""
        self.queue = RetryQueue(self._send, list(self._outbox.pending))

    # Called by the driver.

    def resume(self) -> None:
        """The search's run continues after it had ended or was killed."""
        self._put("go_on")

    def begin_trial(self, trial: str, values: Mapping[str, Value]) -> None:
        """A trial starts, or is resumed: its run is created, or found.

        Args:
            values: the searched values it started with: the run's parameters, which never change.
        """
        self._running.add(trial)
        self._put("begin", trial=trial, values=dict(values), unix_s=time.time())

    def log_steps(
        self, trial: str, steps: Sequence[StepMetrics], values: Mapping[str, Value] | None = None
    ) -> None:
        """A trial's measurements of outer steps; steps that its run already has are ignored.

        Args:
            values: searched values that change during the run (population-based training), as they were at these outer
                steps: the numbers among them become the metrics `searched/<key>`.
        """
        numbers = {
            f"searched/{key}": float(v) for key, v in (values or {}).items() if isinstance(v, int | float)
        }
        if steps:
            points = [(step.outer_step, step.values | numbers, step.unix_s) for step in steps]
            self._put("points", trial=trial, points=points)

    def log_clone(self, trial: str, parent_number: int, outer_step: int) -> None:
        """A member of a population continues from the state of the trial with this number: the metric `cloned_from`."""
        self._put("clone", trial=trial, parent_number=parent_number, outer_step=outer_step)

    def log_damaged(self, trial: str, message: str) -> None:
        """A trial continues from an older checkpoint, as its last is damaged: a warning, and a tag of its run."""
        logger.warning("%s: %s", trial, message)
        self._put("damaged", trial=trial, said=message)

    def end_trial(self, trial: str, status: TrialEnd, reason: str | None = None) -> None:
        """A trial has ended; `reason`: why it failed."""
        self._running.discard(trial)
        self._put_end(trial, MLFLOW_STATUSES[status], status, reason)

    def log_leaderboard(
        self, rows: Sequence[LeaderboardRow], files: Sequence[Path] = (), took: SearchTime | None = None
    ) -> None:
        """Replace the leaderboard of the search's run, and add files, which must not move.

        Its best accuracy and the search's time become metrics over the number of trials that have ended; its first rows,
        with the time below them, become the run's description.
        """
        if rows:
            note = markdown(rows, NOTE_ROWS) + (f"\n{took}\n" if took else "")
            values = {"wall_s": took.wall_s, "orchestration": took.orchestration} if took else {}
            records = [row.to_dict() for row in rows]
            self._put("leaderboard", rows=records, note=note, values=values, unix_s=time.time())
        for path in files:
            self._put("file", path=str(path.resolve()))

    def close(self, status: str, timeout_s: float = FLUSH_TIMEOUT_S) -> list[str]:
        """End the search's run, and those of trials that still run: FINISHED, KILLED or FAILED; wait for the store.

        Returns: warnings about what MLflow does not have.
        """
        for trial in sorted(self._running):
            self._put_end(trial, "KILLED", "interrupted", None)
        self._put("finish", status=status, unix_s=time.time())
        left = self.queue.close(timeout_s)
        warnings = list(self.queue.rejected)
        if left:
            why = f" ({self.queue.last_error})" if self.queue.last_error else ""
            warnings.append(f"{left} entries of {self._path} are not in MLflow yet{why}; --resume sends them")
        return warnings

    def _put_end(self, trial: str, status: str, outcome: str, reason: str | None) -> None:
        self._put("end", trial=trial, status=status, outcome=outcome, reason=reason, unix_s=time.time())

    def _put(self, kind: str, **fields: Any) -> None:
        self.queue.put(self._outbox.append({"say": kind, **fields}))

    # Called by the queue's thread.

    def _send(self, entry: OutboxEntry) -> None:
        record, unix_s = entry.record, float(entry.record.get("unix_s", 0.0))
        match record["say"]:
            case "go_on":
                self.parent.reopen()
            case "begin":
                trial = record["trial"]
                self._runs[trial] = self.parent.open_trial_run(trial, record["values"], unix_s)
            case "points":
                self._run_of(record).log_steps([StepMetrics(*point) for point in record["points"]])
            case "clone":
                cloned_from = ("cloned_from", record["outer_step"], float(record["parent_number"]))
                self._run_of(record).log_metrics([cloned_from])
            case "damaged":
                self._run_of(record).set_tag(DAMAGED_TAG, record["said"][:MAX_TAG])
            case "end":
                run = self._run_of(record)
                # MLflow's list of runs has one icon for KILLED and FAILED.
                run.set_tag("outcome", record["outcome"])
                if record["reason"]:
                    run.set_tag("reason", record["reason"][:MAX_TAG])
                run.finish(record["status"], unix_s)
            case "leaderboard":
                self._send_leaderboard(record, unix_s)
            case "file":
                self.parent.log_file(Path(record["path"]))
            case "finish":
                self.parent.finish(record["status"], unix_s)
        self._outbox.ack(entry)

    def _run_of(self, record: Mapping[str, Any]) -> Tracker:
        """A trial's run, which an earlier process may have created."""
        trial = record["trial"]
        if trial not in self._runs:
            self._runs[trial] = self.parent.open_trial_run(trial, {}, time.time())
        return self._runs[trial]

    def _send_leaderboard(self, record: Mapping[str, Any], unix_s: float) -> None:
        rows = record["rows"]
        self.parent.log_table(rows, LEADERBOARD_TABLE)
        self.parent.set_tag(NOTE_TAG, record["note"])
        self.parent.set_tag("best_trial", rows[0]["trial"])
        best = rows[0]["best_validation_accuracy"]
        values = record["values"] | ({} if best is None else {"best_validation_accuracy": best})
        if values:
            num_ended = sum(row["status"] != "running" for row in rows)
            self.parent.log_batch(StepMetrics(num_ended, values, unix_s))


@contextmanager
def tracked_search(parent: Tracker, folder: Path, warnings: list[str]) -> Iterator[SearchTracking]:
    """Logs a search, whose MLflow run ends with the block: FINISHED, KILLED from outside, or FAILED.

    Warnings about what MLflow does not have then are added to `warnings`. Raises: JsonlError.
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
