"""A search by Ray Tune: trials that distil, a scheduler that stops or clones them, a journal to resume from.

Tune runs the trials, places them, and asks its scheduler at every validation whether one goes on. What it does not
do: draw the values (`search_proposals`), remember (`search_journal`, which says why), record. Every invocation is a new
Tune experiment with the trials that are left; the scheduler of successive halving is first told what the journal
knows of the others, so that a trial of an extended search is compared with all that came before it.
"""

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ray_distill.cluster import in_environment, require
from ray_distill.config import ConfigError
from ray_distill.config_search import AshaScheduler, HyperbandScheduler, PbtScheduler, SearchConfig
from ray_distill.data.splits import DevelopmentData
from ray_distill.errors import FailedError
from ray_distill.points import Point
from ray_distill.search_journal import TUNE, SearchFolder, SearchJournal, TrialLog
from ray_distill.search_proposals import Drawn, Proposal, Proposals, known, trial_name
from ray_distill.search_records import Value
from ray_distill.search_trial import trial

import ray  # isort: skip  (after ray_distill.cluster, which sets its environment)
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler, TrialScheduler

if TYPE_CHECKING:
    from ray_distill.search_population import Exchange

METRIC = "best_validation_accuracy"
"""What trials are compared by, with population-based training excepted."""


Ended = Literal["finished", "stopped", "failed"]


class SearchError(FailedError):
    """A search that could not be brought to its end."""


class Bystander(Protocol):
    """Who is told what happens, before the journal notes it, as far as it would not be told again after a kill in
    between; it neither blocks nor raises."""

    def begin(self, trial: str, values: Mapping[str, Value]) -> None:
        """A trial begins, or goes on, with these values."""

    def add_points(self, trial: str, points: Sequence[Point], held: Mapping[str, Value] | None) -> None:
        """Measurements of its outer steps, and the values that held, where they may change."""

    def clone(self, trial: str, parent: str, outer_step: int) -> None:
        """A member of a population goes on from another's state at this outer step, which both have come to."""

    def end(self, trial: str, status: Ended, reason: str | None) -> None:
        """It is over."""

    def show(self) -> None:
        """The journal knows of one more that is over."""


class _Clerk(tune.Callback):
    """Writes what happens into the journal, and tells the bystander; runs in the driver."""

    def __init__(
        self,
        search: SearchConfig,
        journal: SearchJournal,
        attempt: str,
        deadline: float,
        bystander: Bystander,
        take_exchange: Callable[[], "Exchange | None"] | None,
    ) -> None:
        """`take_exchange`: a population's."""
        self._journal, self._attempt, self._last = journal, attempt, search.outer_steps
        self._deadline, self._bystander = deadline, bystander
        self._take_exchange = take_exchange

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A validation, or that a trial cannot go on."""
        name, points = trial.trial_id, [Point(*p) for p in result["points"]]
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
        log = self._journal.logs[trial.trial_id]
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

    def _end(self, name: str, status: Ended, reason: str | None, seconds: float | None = None) -> None:
        self._bystander.end(name, status, reason)
        self._journal.write("end", trial=name, status=status, reason=reason, seconds=seconds)
        self._bystander.show()


def scheduler_of(search: SearchConfig, journal: SearchJournal) -> TrialScheduler:
    """The search's scheduler, which knows of the trials in the journal what it must."""
    chosen, steps = search.scheduler, search.outer_steps
    match chosen:
        case AshaScheduler():
            # Tune stops what reaches max_t; a trial ends by itself, so that its end can be told from a stop.
            asha = ASHAScheduler(
                time_attr="outer_step",
                metric=METRIC,
                mode="max",
                max_t=steps + 1,
                grace_period=chosen.grace,
                reduction_factor=chosen.reduction,
            )
            for log in journal.logs.values():
                _tell_again(asha, log)
            return asha
        case HyperbandScheduler():
            validations = math.ceil(steps / search.config.validation.every)
            return HyperBandScheduler(
                time_attr="validations",
                metric=METRIC,
                mode="max",
                max_t=validations,
                reduction_factor=chosen.reduction,
                stop_last_trials=False,
            )
        case PbtScheduler():
            from ray_distill.search_population import Population

            return Population(search, journal.barrier)
    return FIFOScheduler()


def _tell_again(scheduler: TrialScheduler, log: TrialLog) -> None:
    """Let a scheduler see a trial's validations once more; what it would do is over."""
    stand_in, best = SimpleNamespace(trial_id=log.name), 0.0
    scheduler.on_trial_add(None, stand_in)
    for measured in log.curve:
        best = max(best, measured.validation_accuracy)
        result = {"outer_step": measured.outer_step, METRIC: best}
        scheduler.on_trial_result(None, stand_in, result)


def waits(search: SearchConfig) -> bool:
    """Whether trials wait for each other, so that all must have begun; Tune has them take turns on the cores."""
    return isinstance(search.scheduler, PbtScheduler | HyperbandScheduler)


def cores_of_trial(search: SearchConfig) -> int:
    """Cores that a trial computes on."""
    return search.workers * search.config.cluster.cpus_per_worker


def room(search: SearchConfig) -> int:
    """How many trials the connected cluster can compute at once. Raises: ConfigError if not even one."""
    cluster = search.config.cluster
    gpus = 1.0 if cluster.use_gpu else 0.0
    require("num_workers", search.workers, cluster.cpus_per_worker, gpus)
    total = ray.cluster_resources()
    fits = int(total["CPU"] // cores_of_trial(search))
    return min(fits, int(total["GPU"] // search.workers)) if gpus else fits


def capacity(search: SearchConfig) -> int:
    """How many trials may be under way on the connected cluster: where they wait for each other, all of them.

    Raises: ConfigError if it has no room for one, or for Ray Train's workers of all where they wait.
    """
    fits = room(search)
    if not waits(search):
        return fits
    if search.workers > 1 and search.num_trials > fits:
        raise ConfigError(
            f"workers: with scheduler {search.scheduler.name} all {search.num_trials} trials are under way together, "
            f"and the cluster has room for {fits} with {search.workers} workers each; set workers to 1"
        )
    return search.num_trials


def _left(
    search: SearchConfig, folder: SearchFolder, journal: SearchJournal, bystander: Bystander
) -> Iterator[Callable[[], Proposal]]:
    """The trials that are to go on, and then those that have not begun."""
    for log in list(journal.logs.values()):
        if log.status == "running":
            if log.outer_step >= search.outer_steps:
                bystander.begin(log.name, log.values)
                bystander.end(log.name, "finished", None)
                journal.write("end", trial=log.name, status="finished", reason=None)
                bystander.show()
                continue
            journal.write("goes_on", trial=log.name, outer_step=log.outer_step)
            yield partial(_go_on, search, folder, journal, log, bystander)
    sampler = None
    if search.algorithm == "optuna":
        from ray_distill.search_optuna import Sampler

        sampler = Sampler(search, journal)
    values = [] if sampler else known(search)
    for number in range(len(journal.logs), search.num_trials):
        draw = partial(sampler.draw, number) if sampler else partial(_known, values, number)
        yield partial(_begin, journal, number, draw, bystander)


def _known(values: list[dict[str, Value]], number: int) -> Drawn:
    return Drawn(values[number], None)


def _go_on(
    search: SearchConfig, folder: SearchFolder, journal: SearchJournal, log: TrialLog, bystander: Bystander
) -> Proposal:
    kept = None if log.checkpoint is None else str((folder.path / log.checkpoint).resolve())
    # Members that wait for the others' report at an exchange say theirs again.
    again = isinstance(search.scheduler, PbtScheduler) and log.outer_step > journal.barrier
    bystander.begin(log.name, log.values)
    return Proposal(log.name, log.now, kept, again)


def _begin(journal: SearchJournal, number: int, draw: Callable[[], Drawn], bystander: Bystander) -> Proposal:
    drawn = draw()
    proposal = Proposal(trial_name(number), drawn.values)
    journal.write("trial", trial=proposal.name, values=drawn.values, numbers=drawn.numbers)
    bystander.begin(proposal.name, proposal.values)
    return proposal


def _trainable(search: SearchConfig, shared: dict[str, Any]) -> Any:
    """What Tune runs for each trial, with what it reserves for it."""
    cluster = search.config.cluster
    if search.workers > 1:
        from ray_distill.search_train import trial_by_train

        # The workers are placed by Ray Train, beside the trial: that itself takes next to nothing.
        return tune.with_resources(tune.with_parameters(trial_by_train, shared=shared), {"memory": 1})
    resources = {"CPU": float(cluster.cpus_per_worker)} | ({"GPU": 1.0} if cluster.use_gpu else {})
    return tune.with_resources(tune.with_parameters(trial, shared=shared), resources)


@contextmanager
def _quiet_tune(at_once: int) -> Iterator[None]:
    """Tune without prints and files that nobody reads; Ctrl-C is the caller's. It takes this from the environment."""
    values = {
        "TUNE_MAX_PENDING_TRIALS_PG": str(at_once),
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with in_environment(values):
        yield


def run_trials(
    search: SearchConfig,
    data: DevelopmentData,
    folder: SearchFolder,
    journal: SearchJournal,
    bystander: Bystander,
) -> None:
    """Run the trials that are left, on the connected cluster, until all have ended or time is up.

    Raises: ConfigError if a trial could never be placed; SearchError.
    """
    left = list(_left(search, folder, journal, bystander))
    if not left:
        return
    attempt = f"attempt-{1 + len(list(folder.tune.glob('attempt-*')))}"
    # Ray Train's own files; Tune has copies of the checkpoints that count.
    train_files = (folder.tune / attempt / "train").resolve()
    shared = {
        "data": data.ticket,
        "fitted": [ray.put(data.preprocessing)],
        "search_hash": search.hash,
        "train": str(train_files),
    }
    at_once = capacity(search)
    seconds = None if search.budget.hours is None else 3600 * search.budget.hours
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    scheduler = scheduler_of(search, journal)
    clerk = _Clerk(
        search,
        journal,
        attempt,
        deadline,
        bystander,
        scheduler.take_exchange if isinstance(search.scheduler, PbtScheduler) else None,
    )
    try:
        with _quiet_tune(at_once):
            # Not a Tuner: that begins by pickling itself, and what it drives here is not to be pickled.
            tune.run(
                _trainable(search, shared),
                name=attempt,
                storage_path=str(folder.tune.resolve()),
                search_alg=Proposals(search, left, at_once),
                scheduler=scheduler,
                callbacks=[clerk],
                time_budget_s=seconds,
                **_settings(search),
            )
    except tune.TuneError as e:
        raise SearchError(str(e)) from e
    finally:
        shutil.rmtree(train_files, ignore_errors=True)


def _settings(search: SearchConfig) -> dict[str, Any]:
    """How Tune is to run trials, whichever they are."""
    chosen, config = search.scheduler, search.config
    # A clone's parent may be an exchange ahead of it.
    keep = 2 + (chosen.every // config.validation.every if isinstance(chosen, PbtScheduler) else 0)
    return {
        "checkpoint_config": tune.CheckpointConfig(num_to_keep=keep),
        "max_failures": config.cluster.max_failures,
        "raise_on_failed_trial": False,
        # A process with Ray Train's controller in it must end with its trial.
        "reuse_actors": search.workers == 1,
        "verbose": 0,
    }
