"""The values of trials: random, the points of a grid, or proposed by Optuna's TPE sampler (Bergstra et al., 2011).

Values are drawn here and not by Tune's samplers, so that trial n is a function of the search file and n: a search has the
same trials when it is resumed, extended, or run on another number of cores.

TPE learns from the trials before. It samples the numbers from 0 to 1 that values are made from, and the options of a choice,
so a range that depends on another value is one range to it. Its study is built from the journal for each trial, and its
generator is seeded with the search's seed and the trial's number, so that a resumed search continues as it would have.
"""

import math
from collections.abc import Callable
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch

from ray_distill.core.rng import Stream
from ray_distill.tuning.config import SearchConfig
from ray_distill.tuning.domains import Value, options
from ray_distill.tuning.journal import SearchJournal, TrialLog
from ray_distill.tuning.space import MAX_UNIFORM

if TYPE_CHECKING:
    import optuna

STATES = {"finished": "COMPLETE", "stopped": "PRUNED", "failed": "FAIL", "running": "RUNNING"}
"""A trial's status -> Optuna's state."""


class SampledValues(NamedTuple):
    """The values of a new trial."""

    values: dict[str, Value]
    numbers: dict[str, float] | None = None
    """The numbers they were made from, if the sampler learns."""


def trial_name(number: int) -> str:
    """The name of a trial by its number."""
    return f"trial-{number:03d}"


def trial_number(name: str) -> int:
    """The inverse of `trial_name`."""
    return int(name.rpartition("-")[2])


def uniform(search: SearchConfig, purpose: str, outer_step: int, number: int) -> float:
    """A random number in [0, 1) for some purpose of a trial at an outer step."""
    stream = Stream(seed=search.seed, name=f"search-{purpose}", outer_step=outer_step, replica=number)
    return float(stream.uniform(1, dtype=torch.float64)[0, 0])


def planned_values(search: SearchConfig) -> list[dict[str, Value]]:
    """The values of all trials of a search whose sampler does not learn; random trials begin with the base's values."""
    space = search.search_space
    if search.algorithm == "grid":
        return list(space.grid())[: search.num_trials]
    drawn = [
        space.draw(lambda key, _, number=number: uniform(search, key, 0, number))  # type: ignore[misc]
        for number in range(1, search.num_trials)
    ]
    return [space.base_values(), *drawn]


def make_sampler(search: SearchConfig, journal: SearchJournal) -> Callable[[int], SampledValues]:
    """The function that gives a trial, by its number, its values."""
    if search.algorithm == "optuna":
        return OptunaSampler(search, journal).sample
    planned = planned_values(search)
    return lambda number: SampledValues(planned[number])


class OptunaSampler:
    """Proposes the next trial's values by TPE, from the trials in the journal."""

    def __init__(self, search: SearchConfig, journal: SearchJournal) -> None:
        import optuna

        self._search, self._journal, self._space = search, journal, search.search_space
        optuna.logging.set_verbosity(optuna.logging.WARNING)

    def sample(self, number: int) -> SampledValues:
        """The values of a trial; trial 0 has the base's, which need not be in the space."""
        if number == 0:
            return SampledValues(self._space.base_values())
        import optuna

        seed = int(2**32 * uniform(self._search, "optuna", 0, number))
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        study.add_trials(
            [self._frozen(log) for log in self._journal.trials.values() if log.numbers is not None]
        )
        trial, numbers = study.ask(), dict[str, float]()

        def suggest(key: str, num_options: int | None) -> float:
            if num_options is None:
                numbers[key] = min(trial.suggest_float(key, 0.0, 1.0), MAX_UNIFORM)
            else:
                option = trial.suggest_categorical(key, tuple(range(num_options)))
                numbers[key] = (option + 0.5) / num_options
            return numbers[key]

        return SampledValues(self._space.draw(suggest), numbers)

    def _frozen(self, log: TrialLog) -> "optuna.trial.FrozenTrial":
        """A trial of the journal as Optuna's. One stopped early is PRUNED, so that TPE ranks it behind all complete ones, and
        among its like by the outer step it reached and then by its best accuracy until there."""
        import optuna

        assert log.numbers is not None
        distributions: dict[str, optuna.distributions.BaseDistribution] = {}
        params: dict[str, float] = {}
        for key, number in log.numbers.items():
            choices = options(self._space.domains[key])
            if choices is None:
                distributions[key], params[key] = optuna.distributions.FloatDistribution(0.0, 1.0), number
            else:
                distributions[key] = optuna.distributions.CategoricalDistribution(tuple(range(len(choices))))
                params[key] = math.floor(number * len(choices))
        best_so_far = accumulate((validation.validation_accuracy for validation in log.curve), max)
        steps = (validation.outer_step for validation in log.curve)
        return optuna.trial.create_trial(
            state=optuna.trial.TrialState[STATES[log.status]],
            params=params,
            distributions=distributions,
            intermediate_values=dict(zip(steps, best_so_far, strict=True)),
            value=log.best.validation_accuracy if log.status == "finished" and log.best else None,
        )
