"""Values by Optuna's TPE sampler, which learns from the trials before (Bergstra et al., 2011).

Optuna sees the numbers from 0 to 1 that values are made of, and the options of a choice: so a range that depends on
another value is one range to it. What it knows is taken from the journal each time it is asked, and its generator
starts from the search's seed and the trial's number, so that a search that is resumed goes on as it would have.
"""

import math
from itertools import accumulate

import optuna

from ray_distill.search.config import SearchConfig
from ray_distill.search.domains import options
from ray_distill.search.journal import SearchJournal, TrialLog
from ray_distill.search.queue import Drawn, drawn, uniform
from ray_distill.search.space import TOP

STATES = {
    "finished": optuna.trial.TrialState.COMPLETE,
    "stopped": optuna.trial.TrialState.PRUNED,
    "failed": optuna.trial.TrialState.FAIL,
    "running": optuna.trial.TrialState.RUNNING,
}


class Sampler:
    """What Optuna would try next."""

    def __init__(self, search: SearchConfig, journal: SearchJournal) -> None:
        self._search, self._journal, self._space = search, journal, search.around
        optuna.logging.set_verbosity(optuna.logging.WARNING)

    def draw(self, number: int) -> Drawn:
        """The values of trial `number`; those of trial 0 are the base's, which need not lie in the space."""
        if number == 0:
            return Drawn(drawn(self._search, 0), None)
        seed = int(2**32 * uniform(self._search, "optuna", 0, number))
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        for log in self._journal.logs.values():
            if log.numbers is not None:
                study.add_trial(self._frozen(log))
        trial, numbers = study.ask(), dict[str, float]()

        def pick(key: str, count: int | None) -> float:
            if count is not None:
                numbers[key] = (trial.suggest_categorical(key, tuple(range(count))) + 0.5) / count
            else:
                numbers[key] = min(trial.suggest_float(key, 0.0, 1.0), TOP)
            return numbers[key]

        return Drawn(self._space.draw(pick), numbers)

    def _frozen(self, log: TrialLog) -> "optuna.trial.FrozenTrial":
        """A trial of the journal as Optuna's: one stopped early is PRUNED, so that TPE ranks it behind all complete ones, and
        among its like by the outer step it came to and its best accuracy until then."""
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
            state=STATES[log.status],
            params=params,
            distributions=distributions,
            intermediate_values=values,
            value=max(values.values()) if log.status == "finished" else None,
        )
