"""A search from its file to its best configuration: folder, trials, leaderboard, artefacts, MLflow run.

Trials are compared by validation alone; nothing here can reach the test split. The best may be evaluated on it once, by
`distill` with best.yaml, or by the command's --finalise.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ray_distill.builders.experiment import check_fits_data
from ray_distill.config.config import Config
from ray_distill.data.splits import DevelopmentData
from ray_distill.distillation.outputs import to_dataset
from ray_distill.storage.preflight import check_reachable
from ray_distill.tracking.tracker import Tracker, create_run
from ray_distill.tuning.accounting import SearchTime
from ray_distill.tuning.config import PbtScheduler, SearchConfig, check_installed
from ray_distill.tuning.figures import save_figures
from ray_distill.tuning.journal import SearchJournal, TrialLog
from ray_distill.tuning.results import LeaderboardRow, leaderboard, ranked, save_leaderboard
from ray_distill.tuning.sampler import planned_values
from ray_distill.tuning.search_dir import SearchDir
from ray_distill.tuning.tracking import SearchTracking, tracked_search
from ray_distill.tuning.trial import read_state
from ray_distill.tuning.tuner import (
    SearchError,
    cores_per_trial,
    max_concurrent_trials,
    num_parallel_trials,
    run_trials,
)
from ray_distill.utils.atomic import write_json, write_text
from ray_distill.utils.progress import Bar


@dataclass(frozen=True)
class SearchOutcome:
    """The result of a search."""

    rows: list[LeaderboardRow]
    config: Config
    """The best trial's, with the base's number of outer steps."""
    tracker: Tracker
    time: SearchTime
    """Of all invocations."""
    warnings: list[str] = field(default_factory=list)
    """About what MLflow does not have."""


def check_trials(search: SearchConfig, data: DevelopmentData) -> None:
    """Raises: ConfigError if the sampler is not installed, or if a trial whose values are known in advance does not fit the
    data."""
    check_installed(search)
    check_fits_data(search.config, data)
    if search.algorithm != "optuna":
        for values in planned_values(search):
            check_fits_data(search.search_space.config(values), data)


@contextmanager
def open_search(search: SearchConfig, folder: SearchDir, uri: str, *, resume: bool) -> Iterator[Tracker]:
    """The search's MLflow run, new or resumed; the folder is locked during the block.

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
            # Another search may have claimed it since it was checked.
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
    return create_run(uri, search.config.tracking.experiment, search.name, params, tags)


def run_search(
    search: SearchConfig,
    data: DevelopmentData,
    folder: SearchDir,
    uri: str,
    bar: Bar,
    *,
    resume: bool,
    began: float,
) -> SearchOutcome:
    """Run the pending trials on the connected Ray cluster, and save the best. The MLflow run ends with the search.

    Args:
        began: `time.monotonic()` when the command started, from which the search's time counts.

    Raises: ConfigError, StoreError or StorageError before any trial; SearchError, StorageUnavailableError.
    """
    check_trials(search, data)
    max_concurrent_trials(search)
    warnings: list[str] = []
    with open_search(search, folder, uri, resume=resume) as tracker:
        journal = SearchJournal(folder.journal, folder.store_journals)
        _begin_attempt(search, journal, began)
        with tracked_search(tracker, folder.path, warnings) as tracking:
            if resume:
                tracking.resume()
            with bar("searching", search.num_trials) as update:
                run_trials(search, data, folder, journal, tracking, update)
            config, rows, took = _save_results(search, data, folder, journal, tracking)
        # The outbox now has only what MLflow did not accept.
        folder.store_journals()
    return SearchOutcome(rows, config, tracker, took, warnings)


def _save_results(
    search: SearchConfig,
    data: DevelopmentData,
    folder: SearchDir,
    journal: SearchJournal,
    tracking: SearchTracking,
) -> tuple[Config, list[LeaderboardRow], SearchTime]:
    """Write the results to disk, and then to MLflow."""
    trials = list(journal.trials.values())
    config, files = _save_best(search, data, folder, trials, tracking.parent)
    rows = leaderboard(trials)
    files += save_figures(trials, folder.path)
    journal.write("done")
    took = journal.time
    write_json(folder.summary, {"name": search.name, "search_hash": search.hash, **took.to_dict()})
    files += [folder.summary, *save_leaderboard(rows, folder.path, str(took))]
    folder.store(*files)
    tracking.log_leaderboard(rows, files, took)
    return config, rows, took


def _begin_attempt(search: SearchConfig, journal: SearchJournal, began: float) -> None:
    """Record when the command started, and how many of the pending trials can run in parallel."""
    left = search.num_trials - sum(log.status != "running" for log in journal.trials.values())
    journal.write(
        "attempt",
        began_unix_s=time.time() - (time.monotonic() - began),
        places=min(num_parallel_trials(search), left),
        cores=cores_per_trial(search),
    )


def _save_best(
    search: SearchConfig, data: DevelopmentData, folder: SearchDir, trials: list[TrialLog], tracker: Tracker
) -> tuple[Config, list[Path]]:
    """Write the best trial's configuration and its distilled set."""
    log = next((trial for trial in ranked(trials) if trial.best and trial.status != "failed"), None)
    if log is None or log.checkpoint is None:
        reasons = sorted({trial.reason for trial in trials if trial.reason}) or ["time was up before"]
        raise SearchError("no trial reached a validation: " + "; ".join(reasons))
    with folder.open_checkpoint(log.checkpoint) as checkpoint:
        state, _ = read_state(checkpoint, search.hash)
    values = config_values(search, log)
    dataset = to_dataset(search.search_space.config(values), data, state, tracker.run_id)
    dataset.save(folder.artifact)
    config = search.search_space.full_config(values)
    # The search's storage cannot be another run's.
    cluster = config.cluster.model_copy(update={"storage": None})
    config = config.model_copy(update={"name": f"{search.name}-best", "cluster": cluster})
    write_text(folder.best, config.to_yaml())
    return config, [folder.best, folder.artifact]


def config_values(search: SearchConfig, log: TrialLog) -> Mapping[str, object]:
    """A trial's values for a configuration: schedules, if they changed during the run that led to its state."""
    if isinstance(search.scheduler, PbtScheduler) and log.lineage:
        from ray_distill.tuning.population import as_schedules

        return as_schedules(search, log.lineage)
    return log.values
