"""The queue of trials from which Ray Tune takes its next one: interrupted trials first, each from its newest valid
checkpoint, and then new ones.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.search import SearchAlgorithm

from ray_distill.distillation.checkpoint import CheckpointError
from ray_distill.tuning.callback import end_trial
from ray_distill.tuning.config import PbtScheduler, SearchConfig
from ray_distill.tuning.domains import Value
from ray_distill.tuning.journal import SearchJournal, TrialCheckpoint, TrialLog
from ray_distill.tuning.sampler import SampledValues, make_sampler, trial_name
from ray_distill.tuning.search_dir import SearchDir
from ray_distill.tuning.tracking import SearchTracking
from ray_distill.tuning.trial import read_state


@dataclass(frozen=True)
class QueuedTrial:
    """A trial to start or to resume."""

    name: str
    values: dict[str, Value]
    checkpoint: str | None = None
    """The checkpoint to resume from, in Tune's storage."""
    repeat_report: bool = False
    """Whether to repeat the checkpoint's report first."""


class TrialQueue(SearchAlgorithm):
    """The search algorithm for Tune: hands out the trials of a queue, under our names."""

    def __init__(
        self, search: SearchConfig, pending: Iterable[Callable[[], QueuedTrial]], max_concurrent: int
    ) -> None:
        """
        Args:
            pending: makers of trials, each called when Tune can start another, so that a sampler knows the trials before.
        """
        self._space, self._max_concurrent = search.search_space, max_concurrent
        self._pending = deque(pending)
        self._running: set[str] = set()
        self._spec: dict[str, Any] = {}

    def add_configurations(self, experiments: Any) -> None:
        """Tune's experiment, whose settings all trials share."""
        (experiment,) = experiments
        self._spec = experiment.spec

    def next_trial(self) -> Trial | None:
        """The next trial; None if enough are running, or none is left."""
        if len(self._running) >= self._max_concurrent or not self._pending:
            return None
        queued = self._pending.popleft()()
        self._running.add(queued.name)
        return Trial(
            self._spec["run"],
            config={**vars(queued), "config": self._space.config_dict(queued.values)},
            trial_id=queued.name,
            experiment_tag=queued.name,
            storage=self._spec["storage"],
            stopping_criterion=self._spec.get("stop", {}),
            checkpoint_config=self._spec.get("checkpoint_config"),
            placement_group_factory=self._spec.get("resources_per_trial"),
            trial_dirname_creator=lambda t: str(t.trial_id),
            trial_name_creator=lambda t: str(t.trial_id),
            max_failures=self._spec.get("max_failures", 0),
        )

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """A trial has ended."""
        self._running.discard(trial_id)

    def is_finished(self) -> bool:
        """Whether no trial is left."""
        # Tune sets the first when time is up.
        return bool(self._finished) or not self._pending


def pending_trials(
    search: SearchConfig, folder: SearchDir, journal: SearchJournal, tracking: SearchTracking
) -> Iterator[Callable[[], QueuedTrial]]:
    """The trials to resume, and then those that have not started. The journal gets the step from which each is resumed."""
    for log in list(journal.trials.values()):
        if log.status == "running":
            saved, damaged = newest_valid_checkpoint(log, folder, search.hash)
            step = saved.outer_step if saved else 0
            if damaged:
                tracking.begin_trial(log.name, log.values)
                tracking.log_damaged(log.name, damaged)
            elif step >= search.outer_steps:
                tracking.begin_trial(log.name, log.values)
                end_trial(journal, tracking, log.name, "finished")
                continue
            seconds = saved.seconds if saved else 0.0
            journal.write("goes_on", trial=log.name, outer_step=step, seconds=seconds)
            yield partial(_resumed, search, folder, journal, log, tracking)
    sample = make_sampler(search, journal)
    for number in range(len(journal.trials), search.num_trials):
        yield partial(_started, journal, number, sample, tracking)


def newest_valid_checkpoint(
    log: TrialLog, folder: SearchDir, search_hash: str
) -> tuple[TrialCheckpoint | None, str]:
    """The newest checkpoint of a trial that can be read, None for its start; and a message about damaged newer ones."""
    damaged: list[str] = []
    newest = None
    for saved in reversed(log.checkpoints):
        with folder.open_checkpoint(saved.checkpoint) as path:
            try:
                read_state(path, search_hash)
            except CheckpointError as e:
                # Older ones that do not exist were deleted by Tune.
                if not damaged or not isinstance(e.__cause__, FileNotFoundError):
                    damaged.append(str(e).replace(str(path), folder.describe_checkpoint(saved.checkpoint)))
                continue
        newest = saved
        break
    action = f"resumes from outer step {newest.outer_step}" if newest else "restarts"
    return newest, f"{'; '.join(damaged)}; the trial {action}" if damaged else ""


def _resumed(
    search: SearchConfig, folder: SearchDir, journal: SearchJournal, log: TrialLog, tracking: SearchTracking
) -> QueuedTrial:
    checkpoint = None if log.checkpoint is None else folder.checkpoint_path(log.checkpoint)
    # Members that waited for the others at an exchange report again.
    repeat = isinstance(search.scheduler, PbtScheduler) and log.checkpoint_step > journal.last_exchange
    tracking.begin_trial(log.name, log.values)
    return QueuedTrial(log.name, log.current_values, checkpoint, repeat)


def _started(
    journal: SearchJournal, number: int, sample: Callable[[int], SampledValues], tracking: SearchTracking
) -> QueuedTrial:
    name, (values, numbers) = trial_name(number), sample(number)
    journal.write("trial", trial=name, values=values, numbers=numbers)
    tracking.begin_trial(name, values)
    return QueuedTrial(name, values)
