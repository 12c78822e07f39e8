"""One search from its file to its best configuration: claim, trials, leaderboard, artefact, record.

Trials are chosen by validation alone; nothing here can reach the test split. What wins may be judged on it once, by
`distill` with best.yaml, or by the command's --finalise.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ray_distill.builders.experiment import check_fits_data
from ray_distill.config.config import Config
from ray_distill.core.metrics import StepMetrics
from ray_distill.data.splits import DevelopmentData
from ray_distill.distillation.outputs import to_dataset
from ray_distill.search import figures, results
from ray_distill.search.accounting import SearchTime
from ray_distill.search.callback import TrialEnd
from ray_distill.search.config import PbtScheduler, SearchConfig, check_installed
from ray_distill.search.domains import Value
from ray_distill.search.journal import SearchJournal, TrialLog
from ray_distill.search.results import LeaderboardRow
from ray_distill.search.sampler import planned_values, trial_number
from ray_distill.search.search_dir import SearchDir
from ray_distill.search.tracking import SearchTracking, tracked_search
from ray_distill.search.trial import read_state
from ray_distill.search.tuner import (
    SearchError,
    cores_per_trial,
    max_concurrent_trials,
    num_parallel_trials,
    run_trials,
)
from ray_distill.storage.preflight import check_reachable
from ray_distill.tracking import tracker as tracking_tracker
from ray_distill.tracking.tracker import Tracker
from ray_distill.utils.atomic import write_json, write_text
from ray_distill.utils.progress import Bar, Update

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchResult:
    """What a search came to."""

    rows: list[LeaderboardRow]
    config: Config
    """The best trial's, as long as the base."""
    tracker: Tracker
    time: SearchTime
    """Of all commands on it."""
    warnings: list[str] = field(default_factory=list)
    """What MLflow did not take."""


def check_trials(search: SearchConfig, data: DevelopmentData) -> None:
    """Raises: ConfigError if nothing can make the trials' values, or if one, of those that can be known before any has
    run, does not fit the data."""
    check_installed(search)
    check_fits_data(search.config, data)
    if search.algorithm != "optuna":
        for values in planned_values(search):
            check_fits_data(search.search_space.config(values), data)


class _Desk:
    """Passes what happens on to MLflow's record, and to the progress bar."""

    def __init__(self, journal: SearchJournal, record: SearchTracking, update: Update) -> None:
        self._journal, self._record, self._update = journal, record, update

    def begin(self, trial: str, values: Mapping[str, Value]) -> None:
        self._record.begin(trial, values)
        self._say()

    def add_points(self, trial: str, points: Sequence[StepMetrics], held: Mapping[str, Value] | None) -> None:
        self._record.add_points(trial, points, held)
        self._say()

    def clone(self, trial: str, parent: str, outer_step: int) -> None:
        self._record.clone(trial, trial_number(parent), outer_step)

    def damaged(self, trial: str, said: str) -> None:
        logger.warning("%s: %s", trial, said)
        self._record.damaged(trial, said)

    def end(self, trial: str, status: TrialEnd, reason: str | None) -> None:
        self._record.end(trial, status, reason)

    def show(self) -> None:
        self._record.show(results.leaderboard(list(self._journal.trials.values())))
        self._say()

    def _say(self) -> None:
        trials = results.ranked(list(self._journal.trials.values()))
        over = sum(t.status != "running" for t in trials)
        said = f"{len(trials) - over} under way"
        # Where there is no terminal, what is said before the first has ended gets a line each time it changes.
        if over and (best := trials[0].best) is not None:
            said += f"  best validation {100 * best.validation_accuracy:.1f}% ({trials[0].name})"
        self._update(over, said)


@contextmanager
def open_search(search: SearchConfig, folder: SearchDir, uri: str, *, resume: bool) -> Iterator[Tracker]:
    """The folder for this process alone, while the block lasts, and the search's MLflow run, new or taken up again.

    Raises: ConfigError, StoreError, StorageError, StorageUnavailableError.
    """
    with folder.lock():
        check_reachable(folder.storage)
        if resume:
            tracker = folder.tracker_to_resume(search)
            folder.fetch()
            write_text(folder.config, search.to_yaml())
            folder.store(folder.config)
        else:
            # Another search may have taken it since it was looked at.
            folder.check_empty("Use another --out.")
            tracker = _open_run(search, uri, folder)
            folder.claim(search, tracker)
        yield tracker


def _open_run(search: SearchConfig, uri: str, folder: SearchDir) -> Tracker:
    params = search.model_dump(mode="json", exclude={"base"}, exclude_none=True)
    params |= {"base": search.config.experiment()}
    tags = {"search_hash": search.hash, "kind": "search"}
    if folder.storage:
        tags["storage"] = str(folder.storage)
    return tracking_tracker.create_run(uri, search.config.tracking.experiment, search.name, params, tags)


def run_search(
    search: SearchConfig,
    data: DevelopmentData,
    folder: SearchDir,
    uri: str,
    bar: Bar,
    *,
    resume: bool,
    began: float,
) -> SearchResult:
    """Run the trials that are left, on the connected Ray cluster, and keep the best. The MLflow run ends with it.

    Args:
        began: `time.monotonic()` when the command began, from which the search's time counts.

    Raises: ConfigError, StoreError or StorageError before any trial; SearchError, StorageUnavailableError.
    """
    check_trials(search, data)
    max_concurrent_trials(search)
    warnings: list[str] = []
    with open_search(search, folder, uri, resume=resume) as tracker:
        journal = SearchJournal(folder.journal, folder.store_journals)
        _begin_attempt(search, journal, began)
        with tracked_search(tracker, folder.path, warnings) as record:
            if resume:
                record.go_on()
            with bar("searching", search.num_trials) as update:
                run_trials(search, data, folder, journal, _Desk(journal, record, update))
            config, rows, took = _keep(search, data, folder, journal, record)
        # MLflow has been told what it takes.
        folder.store_journals()
    return SearchResult(rows, config, tracker, took, warnings)


def _keep(
    search: SearchConfig,
    data: DevelopmentData,
    folder: SearchDir,
    journal: SearchJournal,
    record: SearchTracking,
) -> tuple[Config, list[LeaderboardRow], SearchTime]:
    """Write what the search came to, on the disk and then in its record."""
    config, files = _keep_best(search, data, folder, journal, record.parent)
    trials = list(journal.trials.values())
    rows = results.leaderboard(trials)
    files += figures.save_figures(trials, folder.path)
    journal.write("done")
    took = journal.time
    write_json(folder.summary, {"name": search.name, "search_hash": search.hash, **took.flat()})
    files += [folder.summary, *results.save_leaderboard(rows, folder.path, str(took))]
    folder.store(*files)
    record.show(rows, files, took)
    return config, rows, took


def _begin_attempt(search: SearchConfig, journal: SearchJournal, began: float) -> None:
    """Note when the command began, and how many of the trials that are left can compute at once."""
    left = search.num_trials - sum(log.status != "running" for log in journal.trials.values())
    journal.write(
        "attempt",
        began_unix_s=time.time() - (time.monotonic() - began),
        places=min(num_parallel_trials(search), left),
        cores=cores_per_trial(search),
    )


def _keep_best(
    search: SearchConfig,
    data: DevelopmentData,
    folder: SearchDir,
    journal: SearchJournal,
    tracker: Tracker,
) -> tuple[Config, list[Path]]:
    """Write the best trial's configuration and its distilled set."""
    usable = [
        t
        for t in results.ranked(list(journal.trials.values()))
        if t.best is not None and t.status != "failed"
    ]
    log = journal.trials[usable[0].name] if usable else None
    if log is None or log.checkpoint is None:
        reasons = sorted({log.reason for log in journal.trials.values() if log.reason}) or [
            "time was up before"
        ]
        raise SearchError("no trial came to a validation: " + "; ".join(reasons))
    with folder.open_checkpoint(log.checkpoint) as checkpoint:
        state, _ = read_state(checkpoint, search.hash)
    values = config_values(search, log)
    dataset = to_dataset(search.search_space.config(values), data, state, tracker.run_id)
    dataset.save(folder.artifact)
    config = search.search_space.full_config(values)
    # The search's storage is no place for another run.
    cluster = config.cluster.model_copy(update={"storage": None})
    config = config.model_copy(update={"name": f"{search.name}-best", "cluster": cluster})
    write_text(folder.best, config.to_yaml())
    return config, [folder.best, folder.artifact]


def config_values(search: SearchConfig, log: TrialLog) -> Mapping[str, object]:
    """A trial's values as a configuration's: schedules, if they changed on the way to its state."""
    if isinstance(search.scheduler, PbtScheduler) and log.lineage:
        from ray_distill.search.population import as_schedules

        return as_schedules(search, log.lineage)
    return log.values
