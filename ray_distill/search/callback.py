"""Who writes down what happens in a search, as Tune tells it: in the journal, and to whoever else listens."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from ray import tune

from ray_distill.core.metrics import StepMetrics
from ray_distill.search.config import SearchConfig
from ray_distill.search.domains import Value
from ray_distill.search.journal import SearchJournal
from ray_distill.search.population import Exchange
from ray_distill.search.search_dir import TUNE

TrialEnd = Literal["finished", "stopped", "failed"]


class SearchObserver(Protocol):
    """Who is told what happens, before the journal notes it, as far as it would not be told again after a kill in
    between; it neither blocks nor raises."""

    def begin(self, trial: str, values: Mapping[str, Value]) -> None:
        """A trial begins, or goes on, with these values."""

    def add_points(self, trial: str, points: Sequence[StepMetrics], held: Mapping[str, Value] | None) -> None:
        """Measurements of its outer steps, and the values that held, where they may change."""

    def clone(self, trial: str, parent: str, outer_step: int) -> None:
        """A member of a population goes on from another's state at this outer step, which both have come to."""

    def damaged(self, trial: str, said: str) -> None:
        """It goes on from an older checkpoint than its last."""

    def end(self, trial: str, status: TrialEnd, reason: str | None) -> None:
        """It is over."""

    def show(self) -> None:
        """The journal knows of one more that is over."""


class JournalCallback(tune.Callback):
    """Writes what happens into the journal, and tells the bystander; runs in the driver."""

    def __init__(
        self,
        search: SearchConfig,
        journal: SearchJournal,
        attempt: str,
        deadline: float,
        bystander: SearchObserver,
        take_exchange: Callable[[], Exchange | None] | None,
    ) -> None:
        """`take_exchange`: a population's."""
        self._journal, self._attempt, self._last = journal, attempt, search.outer_steps
        self._deadline, self._bystander = deadline, bystander
        self._take_exchange = take_exchange

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A validation, or that a trial cannot go on."""
        name, points = trial.trial_id, [StepMetrics(*p) for p in result["points"]]
        if "damaged" in result:
            self._bystander.damaged(name, result["damaged"])
        self._bystander.add_points(name, points, result.get("values") if self._take_exchange else None)
        if "reason" in result:
            self._end(name, "failed", result["reason"], result["seconds"])
            self._note_exchange()
            return
        kept = result["checkpoint_dir_name"]
        self._journal.write(
            "report",
            trial=name,
            outer_step=result["outer_step"],
            seconds=result["seconds"],
            validation_accuracy=result["validation_accuracy"],
            checkpoint=kept and f"{TUNE}/{self._attempt}/{name}/{kept}",
        )
        self._note_exchange()

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial that ran to its end, was stopped by the scheduler, or is left where it is since time is up."""
        log = self._journal.trials[trial.trial_id]
        done = bool(log.curve) and log.curve[-1].outer_step >= self._last
        if log.status == "running" and (done or time.monotonic() < self._deadline):
            self._end(trial.trial_id, "finished" if done else "stopped", None)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial whose process raised or died more often than is borne."""
        lines = Path(trial.error_file).read_text().strip().splitlines() if trial.error_file else []
        self._end(trial.trial_id, "failed", lines[-1] if lines else "its process died")
        self._note_exchange()

    def _note_exchange(self) -> None:
        """Write a population's exchange, if what has just been written was what it waited for."""
        exchange = self._take_exchange and self._take_exchange()
        if not exchange:
            return
        for clone in exchange.clones:
            self._bystander.clone(clone.trial, clone.parent, exchange.outer_step)
        clones = [clone._asdict() for clone in exchange.clones]
        self._journal.write("barrier", outer_step=exchange.outer_step, clones=clones)

    def _end(self, name: str, status: TrialEnd, reason: str | None, seconds: float | None = None) -> None:
        self._bystander.end(name, status, reason)
        self._journal.write("end", trial=name, status=status, reason=reason, seconds=seconds)
        self._bystander.show()
