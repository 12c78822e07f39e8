"""A search by Ray Tune: trials that distil, a scheduler that stops or clones them, a journal to resume from.

Tune runs the trials, places them, and asks its scheduler at every validation whether one goes on. What it does not
do: draw the values (`search_proposals`), remember (`search_journal`, which says why), record. Every invocation is a new
Tune experiment with the trials that are left; the scheduler of successive halving is first told what the journal
knows of the others, so that a trial of an extended search is compared with all that came before it.
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
from ray_distill.search.callback import JournalCallback, SearchObserver
from ray_distill.search.config import AshaScheduler, HyperbandScheduler, PbtScheduler, SearchConfig
from ray_distill.search.journal import SearchJournal, TrialLog
from ray_distill.search.population import Population
from ray_distill.search.queue import TrialQueue, pending_trials
from ray_distill.search.search_dir import TUNE, SearchDir
from ray_distill.search.trial import run_trial
from ray_distill.storage.run_dir import TRAIN

import ray  # isort: skip  (after ray_distill.cluster.connection, which sets its environment)
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler, TrialScheduler

METRIC = "best_validation_accuracy"
"""What trials are compared by, with population-based training excepted."""


class SearchError(RunError):
    """A search that could not be brought to its end."""


def make_scheduler(search: SearchConfig, journal: SearchJournal) -> TrialScheduler:
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
            for log in journal.trials.values():
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
            return Population(search, journal.last_exchange)
    return FIFOScheduler()


def _tell_again(scheduler: TrialScheduler, log: TrialLog) -> None:
    """Let a scheduler see a trial's validations once more; what it would do is over."""
    stand_in, best = SimpleNamespace(trial_id=log.name), 0.0
    scheduler.on_trial_add(None, stand_in)
    for measured in log.curve:
        best = max(best, measured.validation_accuracy)
        result = {"outer_step": measured.outer_step, METRIC: best}
        scheduler.on_trial_result(None, stand_in, result)


def is_synchronous(search: SearchConfig) -> bool:
    """Whether trials wait for each other, so that all must have begun; Tune has them take turns on the cores."""
    return isinstance(search.scheduler, PbtScheduler | HyperbandScheduler)


def cores_per_trial(search: SearchConfig) -> int:
    """Cores that a trial computes on."""
    return search.workers * search.config.cluster.cpus_per_worker


def num_parallel_trials(search: SearchConfig) -> int:
    """How many trials the connected cluster can compute at once. Raises: ConfigError if not even one."""
    cluster = search.config.cluster
    gpus = 1.0 if cluster.use_gpu else 0.0
    check_resources("num_workers", search.workers, cluster.cpus_per_worker, gpus)
    total = ray.cluster_resources()
    fits = int(total["CPU"] // cores_per_trial(search))
    return min(fits, int(total["GPU"] // search.workers)) if gpus else fits


def max_concurrent_trials(search: SearchConfig) -> int:
    """How many trials may be under way on the connected cluster: where they wait for each other, all of them.

    Raises: ConfigError if it has no room for one, or for Ray Train's workers of all where they wait.
    """
    fits = num_parallel_trials(search)
    if not is_synchronous(search):
        return fits
    if search.workers > 1 and search.num_trials > fits:
        raise ConfigError(
            f"workers: with scheduler {search.scheduler.name} all {search.num_trials} trials are under way together, "
            f"and the cluster has room for {fits} with {search.workers} workers each; set workers to 1"
        )
    return search.num_trials


def _trainable(search: SearchConfig, shared: dict[str, Any]) -> Any:
    """What Tune runs for each trial, with what it reserves for it."""
    cluster = search.config.cluster
    if search.workers > 1:
        from ray_distill.search.multi_worker_trial import run_multi_worker_trial

        # The workers are placed by Ray Train, beside the trial: that itself takes next to nothing.
        return tune.with_resources(tune.with_parameters(run_multi_worker_trial, shared=shared), {"memory": 1})
    resources = {"CPU": float(cluster.cpus_per_worker)} | ({"GPU": 1.0} if cluster.use_gpu else {})
    return tune.with_resources(tune.with_parameters(run_trial, shared=shared), resources)


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
    with environment(values):
        yield


def run_trials(
    search: SearchConfig,
    data: DevelopmentData,
    folder: SearchDir,
    journal: SearchJournal,
    bystander: SearchObserver,
) -> None:
    """Run the trials that are left, on the connected cluster, until all have ended or time is up.

    Raises: ConfigError if a trial could never be placed; SearchError; LostLeaseError or StorageUnavailableError for a storage that
    does not take what is to be kept.
    """
    left = list(pending_trials(search, folder, journal, bystander))
    if not left:
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
    at_once = max_concurrent_trials(search)
    seconds = None if search.budget.hours is None else 3600 * search.budget.hours
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    scheduler = make_scheduler(search, journal)
    clerk = JournalCallback(
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
                storage_path=storage_path,
                storage_filesystem=filesystem,
                search_alg=TrialQueue(search, left, at_once),
                scheduler=scheduler,
                callbacks=[clerk],
                time_budget_s=seconds,
                **_settings(search),
            )
    except tune.TuneError as e:
        raise journal.sync_error or SearchError(str(e)) from e
    finally:
        if search.workers > 1:
            # Ray Train's own files; Tune has copies of the checkpoints that count.
            folder.delete(f"{TUNE}/{attempt}/{TRAIN}")


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
