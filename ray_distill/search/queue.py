"""Which trials a search has, and in which order they run: what Tune asks for its next trial.

Values are drawn here and not by Tune's generators, so that trial n is a function of the search file and n: resumed,
extended or run side by side, a search has the same trials. Tune sees a queue of trials with names of ours.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.search import SearchAlgorithm

from ray_distill.distillation.checkpoint import CheckpointError
from ray_distill.search.callback import SearchObserver
from ray_distill.search.config import PbtScheduler, SearchConfig
from ray_distill.search.domains import Value
from ray_distill.search.journal import SearchJournal, TrialCheckpoint, TrialLog
from ray_distill.search.sampler import OptunaSampler, SampledValues, planned_values, trial_name
from ray_distill.search.search_dir import SearchDir
from ray_distill.search.trial import read_state


@dataclass(frozen=True)
class QueuedTrial:
    """A trial that is to run, or to go on."""

    name: str
    values: dict[str, Value]
    checkpoint: str | None = None
    """Where the state is to go on from, in Tune's storage."""
    again: bool = False
    """Whether to begin with the checkpoint's own report."""


class TrialQueue(SearchAlgorithm):
    """The queue that Tune takes its trials from."""

    def __init__(
        self,
        search: SearchConfig,
        proposals: Iterable[Callable[[], QueuedTrial]],
        at_once: int,
    ) -> None:
        """
        Args:
            proposals: what draws each; asked when there is room for it, so that it can know of those before.
            at_once: how many may be under way.
        """
        self._space, self._at_once = search.search_space, at_once
        self._waiting = deque(proposals)
        self._live: set[str] = set()
        self._spec: dict[str, Any] = {}

    def add_configurations(self, experiments: Any) -> None:
        """Tune's experiment, whose settings all trials have."""
        (experiment,) = experiments
        self._spec = experiment.spec

    def next_trial(self) -> Trial | None:
        """The next trial; None if as many as may are under way, or none is left."""
        if len(self._live) >= self._at_once or not self._waiting:
            return None
        proposal = self._waiting.popleft()()
        self._live.add(proposal.name)
        values = proposal.values
        return Trial(
            self._spec["run"],
            config={
                "name": proposal.name,
                "values": values,
                "config": self._space.config_dict(values),
                "checkpoint": proposal.checkpoint,
                "again": proposal.again,
            },
            trial_id=proposal.name,
            experiment_tag=proposal.name,
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
        self._live.discard(trial_id)

    def is_finished(self) -> bool:
        """Whether no trial is left to be asked for."""
        # Tune sets the first when time is up.
        return bool(self._finished) or not self._waiting


def pending_trials(
    search: SearchConfig, folder: SearchDir, journal: SearchJournal, bystander: SearchObserver
) -> Iterator[Callable[[], QueuedTrial]]:
    """The trials that are to go on, and then those that have not begun; the journal says where each goes on."""
    for log in list(journal.trials.values()):
        if log.status == "running":
            kept, damaged = newest_valid_checkpoint(log, folder, search.hash)
            step = kept.outer_step if kept else 0
            if damaged:
                bystander.begin(log.name, log.values)
                bystander.damaged(log.name, damaged)
            elif step >= search.outer_steps:
                bystander.begin(log.name, log.values)
                bystander.end(log.name, "finished", None)
                journal.write("end", trial=log.name, status="finished", reason=None)
                bystander.show()
                continue
            seconds = kept.seconds if kept else 0.0
            journal.write("goes_on", trial=log.name, outer_step=step, seconds=seconds)
            yield partial(_go_on, search, folder, journal, log, bystander)
    sampler = OptunaSampler(search, journal) if search.algorithm == "optuna" else None
    values = [] if sampler else planned_values(search)
    for number in range(len(journal.trials), search.num_trials):
        draw = partial(sampler.draw, number) if sampler else partial(_known, values, number)
        yield partial(_begin, journal, number, draw, bystander)


def newest_valid_checkpoint(
    log: TrialLog, folder: SearchDir, search_hash: str
) -> tuple[TrialCheckpoint | None, str]:
    """The newest checkpoint of a trial that can be read, None for its start; and what is wrong with those after it."""
    damaged: list[str] = []
    found = None
    for kept in reversed(log.checkpoints):
        with folder.open_checkpoint(kept.checkpoint) as path:
            try:
                read_state(path, search_hash)
            except CheckpointError as e:
                # Older ones that are not there were deleted, as they should be.
                if not damaged or not isinstance(e.__cause__, FileNotFoundError):
                    damaged.append(str(e).replace(str(path), folder.describe_checkpoint(kept.checkpoint)))
                continue
        found = kept
        break
    where = f"goes on from outer step {found.outer_step}" if found else "begins anew"
    return found, f"{'; '.join(damaged)}; the trial {where}" if damaged else ""


def _known(values: list[dict[str, Value]], number: int) -> SampledValues:
    return SampledValues(values[number], None)


def _go_on(
    search: SearchConfig, folder: SearchDir, journal: SearchJournal, log: TrialLog, bystander: SearchObserver
) -> QueuedTrial:
    kept = None if log.checkpoint is None else folder.checkpoint_path(log.checkpoint)
    # Members that wait for the others' report at an exchange say theirs again.
    again = isinstance(search.scheduler, PbtScheduler) and log.checkpoint_step > journal.last_exchange
    bystander.begin(log.name, log.values)
    return QueuedTrial(log.name, log.current_values, kept, again)


def _begin(
    journal: SearchJournal, number: int, draw: Callable[[], SampledValues], bystander: SearchObserver
) -> QueuedTrial:
    drawn = draw()
    proposal = QueuedTrial(trial_name(number), drawn.values)
    journal.write("trial", trial=proposal.name, values=drawn.values, numbers=drawn.numbers)
    bystander.begin(proposal.name, proposal.values)
    return proposal
