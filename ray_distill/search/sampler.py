"""Where the values of trials come from: random numbers, a grid, or Optuna's TPE sampler (Bergstra et al., 2011).

Values are drawn here and not by Tune's generators, so that trial n is a function of the search file and n: resumed,
extended or run side by side, a search has the same trials.

TPE learns from the trials before. It sees the numbers from 0 to 1 that values are made of, and the options of a choice, so
a range that depends on another value is one range to it. Its study is built from the journal for each trial, and its
generator starts from the search's seed and the trial's number, so that a resumed search continues as it would have.
"""

import math
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch

from ray_distill.core.rng import Stream
from ray_distill.search.config import SearchConfig
from ray_distill.search.domains import Value, options
from ray_distill.search.journal import SearchJournal, TrialLog
from ray_distill.search.space import MAX_UNIFORM

if TYPE_CHECKING:
    import optuna


def trial_name(number: int) -> str:
    """The name of a trial by its number."""
    return f"trial-{number:03d}"


def trial_number(name: str) -> int:
    """The inverse of `trial_name`."""
    return int(name.rpartition("-")[2])


def uniform(search: SearchConfig, use: str, outer_step: int, number: int) -> float:
    """A number from 0 to below 1 for some use of a search: of a trial, at an outer step."""
    stream = Stream(seed=search.seed, name=f"search-{use}", outer_step=outer_step, replica=number)
    return float(stream.uniform(1, dtype=torch.float64)[0, 0])


def random_values(search: SearchConfig, number: int) -> dict[str, Value]:
    """The values of trial `number` of a search whose algorithm is random; those of trial 0 are the base's."""
    if number == 0:
        return search.search_space.base_values()
    return search.search_space.draw(lambda key, _: uniform(search, key, 0, number))


def planned_values(search: SearchConfig) -> list[dict[str, Value]]:
    """The values of all trials, where they can be known before any has run."""
    if search.algorithm == "grid":
        return list(search.search_space.grid())[: search.num_trials]
    return [random_values(search, n) for n in range(search.num_trials)]


class SampledValues(NamedTuple):
    """The values of a new trial."""

    values: dict[str, Value]
    numbers: dict[str, float] | None
    """What they were made from, where a sampler learns."""


STATES = {"finished": "COMPLETE", "stopped": "PRUNED", "failed": "FAIL", "running": "RUNNING"}
"""A trial's status -> Optuna's state."""


class OptunaSampler:
    """What Optuna would try next."""

    def __init__(self, search: SearchConfig, journal: SearchJournal) -> None:
        self._search, self._journal, self._space = search, journal, search.search_space
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)

    def draw(self, number: int) -> SampledValues:
        """The values of trial `number`; those of trial 0 are the base's, which need not lie in the space."""
        if number == 0:
            return SampledValues(random_values(self._search, 0), None)
        import optuna

        seed = int(2**32 * uniform(self._search, "optuna", 0, number))
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        for log in self._journal.trials.values():
            if log.numbers is not None:
                study.add_trial(self._frozen(log))
        trial, numbers = study.ask(), dict[str, float]()

        def pick(key: str, count: int | None) -> float:
            if count is not None:
                numbers[key] = (trial.suggest_categorical(key, tuple(range(count))) + 0.5) / count
            else:
                numbers[key] = min(trial.suggest_float(key, 0.0, 1.0), MAX_UNIFORM)
            return numbers[key]

        return SampledValues(self._space.draw(pick), numbers)

    def _frozen(self, log: TrialLog) -> "optuna.trial.FrozenTrial":
        """A trial of the journal as Optuna's: one stopped early is PRUNED, so that TPE ranks it behind all complete ones, and
        among its like by the outer step it came to and its best accuracy until then."""
        import optuna

        assert log.numbers is not None
        distributions: dict[str, optuna.distributions.BaseDistribution] = {}
        params: dict[str, float] = {}
        for key, number in log.numbers.items():
            chosen = options(self._space.domains[key])
            if chosen is None:
                distributions[key], params[key] = optuna.distributions.FloatDistribution(0.0, 1.0), number
            else:
                distributions[key] = optuna.distributions.CategoricalDistribution(tuple(range(len(chosen))))
                params[key] = math.floor(number * len(chosen))
        best_so_far = accumulate((measured.validation_accuracy for measured in log.curve), max)
        values = dict(zip((measured.outer_step for measured in log.curve), best_so_far, strict=True))
        return optuna.trial.create_trial(
            state=optuna.trial.TrialState[STATES[log.status]],
            params=params,
            distributions=distributions,
            intermediate_values=values,
            value=max(values.values()) if log.status == "finished" else None,
        )
