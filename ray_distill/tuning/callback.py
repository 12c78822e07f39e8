"""The Tune callback that records a search: each event for MLflow, and then in the journal.

MLflow comes first, through its outbox, which neither blocks nor raises: what a kill in between keeps out of the journal
happens again in the resumed search, and is logged once.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from ray_distill.core.metrics import StepMetrics
from ray_distill.tuning.config import SearchConfig
from ray_distill.tuning.journal import SearchJournal
from ray_distill.tuning.population import Exchange
from ray_distill.tuning.results import leaderboard, ranked
from ray_distill.tuning.sampler import trial_number
from ray_distill.tuning.search_dir import TUNE
from ray_distill.tuning.tracking import SearchTracking, TrialEnd
from ray_distill.utils.progress import Update


def end_trial(
    journal: SearchJournal,
    tracking: SearchTracking,
    name: str,
    status: TrialEnd,
    reason: str | None = None,
    seconds: float | None = None,
) -> None:
    """Record that a trial has ended, and the new leaderboard."""
    tracking.end_trial(name, status, reason)
    journal.write("end", trial=name, status=status, reason=reason, seconds=seconds)
    tracking.log_leaderboard(leaderboard(list(journal.trials.values())))


class JournalCallback(tune.Callback):
    """Records what Tune's trials do, and shows the progress; runs in the driver."""

    def __init__(
        self,
        search: SearchConfig,
        journal: SearchJournal,
        tracking: SearchTracking,
        update: Update,
        attempt: str,
        deadline: float,
        pop_exchange: Callable[[], Exchange | None] | None,
    ) -> None:
        """`pop_exchange`: a population's; else None."""
        self._journal, self._tracking, self._update = journal, tracking, update
        self._attempt, self._last_step, self._deadline = attempt, search.outer_steps, deadline
        self._pop_exchange = pop_exchange

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A validation, or that a trial cannot continue."""
        name, steps = trial.trial_id, [StepMetrics(*step) for step in result["points"]]
        if "damaged" in result:
            self._tracking.log_damaged(name, result["damaged"])
        self._tracking.log_steps(name, steps, result.get("values") if self._pop_exchange else None)
        if "reason" in result:
            end_trial(self._journal, self._tracking, name, "failed", result["reason"], result["seconds"])
        else:
            checkpoint = result["checkpoint_dir_name"]
            self._journal.write(
                "report",
                trial=name,
                outer_step=result["outer_step"],
                seconds=result["seconds"],
                validation_accuracy=result["validation_accuracy"],
                checkpoint=checkpoint and f"{TUNE}/{self._attempt}/{name}/{checkpoint}",
            )
        self._record_exchange()

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial that reached its last step, was stopped by the scheduler, or is left where it is as time is up."""
        log = self._journal.trials[trial.trial_id]
        finished = log.outer_steps >= self._last_step
        if log.status == "running" and (finished or time.monotonic() < self._deadline):
            end_trial(self._journal, self._tracking, log.name, "finished" if finished else "stopped")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial whose process raised, or died more often than is allowed."""
        lines = Path(trial.error_file).read_text().strip().splitlines() if trial.error_file else []
        reason = lines[-1] if lines else "its process died"
        end_trial(self._journal, self._tracking, trial.trial_id, "failed", reason)
        self._record_exchange()

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        """Show how many trials have ended, and the best of all once one has."""
        logs = ranked(list(self._journal.trials.values()))
        num_ended = sum(log.status != "running" for log in logs)
        text = f"{len(logs) - num_ended} running"
        # Without a terminal, each new text before the first trial has ended gets a line.
        if num_ended and (best := logs[0].best) is not None:
            text += f"  best validation {100 * best.validation_accuracy:.1f}% ({logs[0].name})"
        self._update(num_ended, text)

    def _record_exchange(self) -> None:
        """Record a population's exchange, if the event just recorded completed it."""
        exchange = self._pop_exchange and self._pop_exchange()
        if not exchange:
            return
        for clone in exchange.clones:
            self._tracking.log_clone(clone.trial, trial_number(clone.parent), exchange.outer_step)
        clones = [clone._asdict() for clone in exchange.clones]
        self._journal.write("barrier", outer_step=exchange.outer_step, clones=clones)
