"""A search by Ray Tune: trials that distil, a scheduler that stops or clones them, a journal to resume from.

Tune places and runs the trials, and asks its scheduler at every validation whether one continues. It does not draw values
(`search.sampler`), persist the search (`search.journal`, which says why) or log it. Every invocation is a new Tune experiment
with the pending trials; the scheduler of successive halving first gets the journal's validations of the others, so that a
trial of an extended search is compared with all before it.
"""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from ray_distill.cluster.connection import check_resources, environment
from ray_distill.config.config import ConfigError
from ray_distill.data.splits import DevelopmentData
from ray_distill.errors import RunError
from ray_distill.storage.run_dir import TRAIN
from ray_distill.tuning.callback import JournalCallback
from ray_distill.tuning.config import AshaScheduler, HyperbandScheduler, PbtScheduler, SearchConfig
from ray_distill.tuning.journal import SearchJournal, TrialLog
from ray_distill.tuning.population import Population
from ray_distill.tuning.queue import TrialQueue, pending_trials
from ray_distill.tuning.search_dir import TUNE, SearchDir
from ray_distill.tuning.tracking import SearchTracking
from ray_distill.tuning.trial import run_trial
from ray_distill.utils.progress import Update

import ray  # isort: skip  (after ray_distill.cluster.connection, which sets its environment)
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler, TrialScheduler

METRIC = "best_validation_accuracy"
"""What trials are compared by, except in population-based training."""


class SearchError(RunError):
    """A search that failed."""


def make_scheduler(search: SearchConfig, journal: SearchJournal) -> TrialScheduler:
    """The search's scheduler, with the state it needs from the journal."""
    chosen, steps = search.scheduler, search.outer_steps
    match chosen:
        case AshaScheduler():
            # Tune stops what reaches max_t; a trial ends by itself, so that its end differs from an early stop.
            asha = ASHAScheduler(
                time_attr="outer_step",
                metric=METRIC,
                mode="max",
                max_t=steps + 1,
                grace_period=chosen.grace,
                reduction_factor=chosen.reduction,
            )
            for log in journal.trials.values():
                _replay(asha, log)
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
            return Population(search, journal.last_exchange)
    return FIFOScheduler()


def _replay(scheduler: TrialScheduler, log: TrialLog) -> None:
    """Pass a trial's earlier validations to a scheduler; its decisions about them are ignored."""
    trial, best = SimpleNamespace(trial_id=log.name), 0.0
    scheduler.on_trial_add(None, trial)
    for validation in log.curve:
        best = max(best, validation.validation_accuracy)
        scheduler.on_trial_result(None, trial, {"outer_step": validation.outer_step, METRIC: best})


def is_synchronous(search: SearchConfig) -> bool:
    """Whether trials wait for each other, so that all must have started; Tune lets them take turns on the cores."""
    return isinstance(search.scheduler, PbtScheduler | HyperbandScheduler)


def cores_per_trial(search: SearchConfig) -> int:
    """CPU cores of one trial."""
    return search.workers * search.config.cluster.cpus_per_worker


def num_parallel_trials(search: SearchConfig) -> int:
    """How many trials the connected cluster can compute in parallel. Raises: ConfigError if not even one."""
    cluster = search.config.cluster
    gpus = 1.0 if cluster.use_gpu else 0.0
    check_resources("num_workers", search.workers, cluster.cpus_per_worker, gpus)
    total = ray.cluster_resources()
    fits = int(total["CPU"] // cores_per_trial(search))
    return min(fits, int(total["GPU"] // search.workers)) if gpus else fits


def max_concurrent_trials(search: SearchConfig) -> int:
    """How many trials may have started and not ended: all of them where they wait for each other.

    Raises: ConfigError if the cluster is too small for one, or for the Ray Train workers of all where they wait.
    """
    fits = num_parallel_trials(search)
    if not is_synchronous(search):
        return fits
    if search.workers > 1 and search.num_trials > fits:
        raise ConfigError(
            f"workers: with scheduler {search.scheduler.name} all {search.num_trials} trials run together, and the "
            f"cluster is large enough for {fits} with {search.workers} workers each; set workers to 1"
        )
    return search.num_trials


def _trainable(search: SearchConfig, shared: dict[str, Any]) -> Any:
    """The function that Tune runs for each trial, with the resources it reserves."""
    cluster = search.config.cluster
    if search.workers > 1:
        from ray_distill.tuning.multi_worker_trial import run_multi_worker_trial

        # Ray Train places the workers; the trial itself needs next to nothing.
        return tune.with_resources(tune.with_parameters(run_multi_worker_trial, shared=shared), {"memory": 1})
    resources = {"CPU": float(cluster.cpus_per_worker)} | ({"GPU": 1.0} if cluster.use_gpu else {})
    return tune.with_resources(tune.with_parameters(run_trial, shared=shared), resources)


@contextmanager
def _quiet_tune(max_concurrent: int) -> Iterator[None]:
    """Tune without its output and log files, with Ctrl-C left to the caller, by environment variables."""
    values = {
        "TUNE_MAX_PENDING_TRIALS_PG": str(max_concurrent),
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with environment(values):
        yield


def run_trials(
    search: SearchConfig,
    data: DevelopmentData,
    folder: SearchDir,
    journal: SearchJournal,
    tracking: SearchTracking,
    update: Update,
) -> None:
    """Run the pending trials on the connected cluster, until all have ended or time is up.

    Raises: ConfigError if a trial could never be placed; SearchError; LostLeaseError or StorageUnavailableError if the journals
    cannot be stored.
    """
    pending = list(pending_trials(search, folder, journal, tracking))
    if not pending:
        return
    attempt = folder.new_attempt()
    storage_path, filesystem = folder.ray_storage()
    shared = {
        "data": data.handle,
        "fitted": [ray.put(data.preprocessing)],
        "search_hash": search.hash,
        "filesystem": filesystem,
        "train": f"{storage_path}/{attempt}/{TRAIN}",
    }
    max_concurrent = max_concurrent_trials(search)
    seconds = None if search.budget.hours is None else 3600 * search.budget.hours
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    scheduler = make_scheduler(search, journal)
    pop_exchange = scheduler.pop_exchange if isinstance(scheduler, Population) else None
    callback = JournalCallback(search, journal, tracking, update, attempt, deadline, pop_exchange)
    try:
        with _quiet_tune(max_concurrent):
            # Not a Tuner, which pickles itself at its start: our callback cannot be pickled.
            tune.run(
                _trainable(search, shared),
                name=attempt,
                storage_path=storage_path,
                storage_filesystem=filesystem,
                search_alg=TrialQueue(search, pending, max_concurrent),
                scheduler=scheduler,
                callbacks=[callback],
                time_budget_s=seconds,
                **_settings(search),
            )
    except tune.TuneError as e:
        raise journal.sync_error or SearchError(str(e)) from e
    finally:
        if search.workers > 1:
            # Ray Train's own files; Tune has copies of the checkpoints.
            folder.delete(f"{TUNE}/{attempt}/{TRAIN}")


def _settings(search: SearchConfig) -> dict[str, Any]:
    """Tune's settings for all trials."""
    chosen, config = search.scheduler, search.config
    # A clone's parent may be an exchange ahead.
    keep = 2 + (chosen.every // config.validation.every if isinstance(chosen, PbtScheduler) else 0)
    return {
        "checkpoint_config": tune.CheckpointConfig(num_to_keep=keep),
        "max_failures": config.cluster.max_failures,
        "raise_on_failed_trial": False,
        # A process that hosts Ray Train's controller must end with its trial.
        "reuse_actors": search.workers == 1,
        "verbose": 0,
    }
