"""Which trials a search has, and in which order they run: what Tune asks for its next trial.

Values are drawn here and not by Tune's generators, so that trial n is a function of the search file and n: resumed,
extended or run side by side, a search has the same trials. Tune sees a queue of trials with names of ours.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from ray.tune.experiment import Trial
from ray.tune.search import SearchAlgorithm

from ray_distill.core.rng import Stream
from ray_distill.search.config import SearchConfig
from ray_distill.search.results import Value


def trial_name(number: int) -> str:
    """The name of a trial by its number."""
    return f"trial-{number:03d}"


def number_of(name: str) -> int:
    """The inverse of `trial_name`."""
    return int(name.rpartition("-")[2])


def uniform(search: SearchConfig, use: str, outer_step: int, number: int) -> float:
    """A number from 0 to below 1 for some use of a search: of a trial, at an outer step."""
    stream = Stream(seed=search.seed, name=f"search-{use}", outer_step=outer_step, replica=number)
    return float(stream.uniform(1, dtype=torch.float64)[0, 0])


def drawn(search: SearchConfig, number: int) -> dict[str, Value]:
    """The values of trial `number` of a search whose algorithm is random; those of trial 0 are the base's."""
    if number == 0:
        return search.around.of_base()
    return search.around.draw(lambda key, _: uniform(search, key, 0, number))


def known(search: SearchConfig) -> list[dict[str, Value]]:
    """The values of all trials, where they can be known before any has run."""
    if search.algorithm == "grid":
        return list(search.around.grid())[: search.num_trials]
    return [drawn(search, n) for n in range(search.num_trials)]


class Drawn(NamedTuple):
    """The values of a new trial."""

    values: dict[str, Value]
    numbers: dict[str, float] | None
    """What they were made from, where a sampler learns."""


@dataclass(frozen=True)
class Proposal:
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
        proposals: Iterable[Callable[[], Proposal]],
        at_once: int,
    ) -> None:
        """
        Args:
            proposals: what draws each; asked when there is room for it, so that it can know of those before.
            at_once: how many may be under way.
        """
        self._space, self._at_once = search.around, at_once
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
                "config": self._space.plain(values),
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
