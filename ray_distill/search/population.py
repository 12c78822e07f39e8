"""Population-based training: members that learn side by side, and what becomes of the winner's values.

At every exchange the worst members take over the states of the best (D, outer optimiser, clip average, by Tune's
scheduler) and go on with changed values (Jaderberg et al., "Population based training of neural networks", 2017).
Exchanges are synchronous, so that members are compared at the same outer step and who clones whom is a function of
their accuracies and the search file; what is random about it is drawn from the search's streams, and not from
Python's generator as Tune does.

A clone carries its lineage: which values held from which outer step on, along the states that led to it. All four keys
that may change are schedules in a distillation's configuration, and every draw of a run is a function of seed and
outer step, so the winner's lineage, written as piecewise schedules, is an ordinary run that arrives at the same D.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from ray_distill.search.config import PbtScheduler, SearchConfig
from ray_distill.search.domains import LogUniformDomain, UniformDomain, Value, options
from ray_distill.search.sampler import trial_number, uniform
from ray_distill.search.space import Space

PERTURBATION_FACTOR = 1.25
METRIC = "validation_accuracy"
"""Of the state itself: its best so far would hide that a change was for the worse."""


def explore(
    search: SearchConfig, values: Mapping[str, Value], outer_step: int, number: int
) -> dict[str, Value]:
    """The values of a member that takes over a state with these values, drawn at an outer step."""
    assert isinstance(search.scheduler, PbtScheduler)
    space, changed = search.search_space, dict[str, Value]()
    for key in space.order:
        again, number_there, direction = (
            uniform(search, f"{use}-{key}", outer_step, number) for use in ("resample", "value", "direction")
        )
        if again < search.scheduler.resample:
            changed[key] = space.value(key, number_there, changed)
        else:
            changed[key] = _nudged(space, key, values[key], 1 if direction < 0.5 else -1, changed)
    return changed


def _nudged(space: Space, key: str, value: Any, direction: int, given: Mapping[str, Value]) -> Value:
    """A value made larger or smaller, within its limits among the given ones; of a choice, the next option."""
    chosen = options(space.domains[key])
    if chosen is not None:
        found: set[Any] = {space.value(key, (i + 0.5) / len(chosen), given) for i in range(len(chosen))}
        allowed = sorted(found)
        place = min(range(len(allowed)), key=lambda i: abs(allowed[i] - value))
        nearest: Value = allowed[min(max(place + direction, 0), len(allowed) - 1)]
        return nearest
    low, high = space.limits(key, given)
    new = value * PERTURBATION_FACTOR**direction
    if isinstance(space.domains[key], LogUniformDomain | UniformDomain) and not isinstance(low, int):
        return float(min(max(float(f"{new:.4g}"), low), high))
    # An integer moves by one at least.
    moved = max(value + 1, round(new)) if direction > 0 else min(value - 1, round(new))
    return int(min(max(moved, low), high))


class Clone(NamedTuple):
    """A member that goes on from another's state."""

    trial: str
    parent: str
    values: dict[str, Value]
    """That it goes on with."""
    checkpoint: str
    """The folder of the parent's state, from the search's folder."""


class Exchange(NamedTuple):
    """What became of the members at an outer step that all had come to."""

    outer_step: int
    clones: list[Clone]


class Population(PopulationBasedTraining):
    """Tune's synchronous population-based training, with draws of ours, that says who was cloned.

    Args:
        barrier: the outer step of the last exchange, of a search that is resumed; else 0.
    """

    def __init__(self, search: SearchConfig, barrier: int) -> None:
        chosen = search.scheduler
        assert isinstance(chosen, PbtScheduler)
        super().__init__(
            time_attr="outer_step",
            metric=METRIC,
            mode="max",
            perturbation_interval=chosen.every,
            quantile_fraction=chosen.replaced,
            custom_explore_fn=dict,
            synch=True,
            log_config=False,
        )
        self._search, self._barrier = search, barrier
        self._clones: list[Clone] = []
        self._exchange: Exchange | None = None
        self._failed: list[Trial] = []
        self._next_perturbation_sync = barrier + chosen.every

    def take_exchange(self) -> "Exchange | None":
        """The exchange that the last result has completed, once; None if it has not."""
        exchange, self._exchange = self._exchange, None
        return exchange

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A member, which may come with a state from before the last exchange of a search that is resumed."""
        super().on_trial_add(tune_controller, trial)
        self._trial_state[trial].last_perturbation_time = self._barrier

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Wait for the others at an exchange; at the last outer step nothing is exchanged any more."""
        if "reason" in result:
            self._fail(tune_controller, trial)
            return str(TrialScheduler.CONTINUE)
        if result["outer_step"] >= self._search.outer_steps:
            return str(TrialScheduler.CONTINUE)
        return self._meet(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A member whose process died too often."""
        super().on_trial_error(tune_controller, trial)
        self._fail(tune_controller, trial)

    def _meet(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """A member has come to a result; if it is the last to come to an exchange, that is held."""
        for failed in self._failed:
            # Tune would wait for it.
            self._trial_state[failed].last_train_time = self._next_perturbation_sync
        before = self._next_perturbation_sync
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if self._next_perturbation_sync != before:
            # To be written by whoever writes this result, which Tune shows its callbacks after its scheduler.
            self._exchange, self._clones = Exchange(before, self._clones), []
        return decision

    def _fail(self, tune_controller: Any, trial: Trial) -> None:
        """A member takes part in exchanges no more; those who wait for it alone hold theirs."""
        self._failed.append(trial)
        self._trial_state[trial].last_score = None
        others = [
            (t, self._trial_state[t]) for t in tune_controller.get_live_trials() if t not in self._failed
        ]
        if others and all(state.last_train_time >= self._next_perturbation_sync for _, state in others):
            one, state = others[0]
            self._meet(tune_controller, one, state.last_result)

    def _checkpoint_or_exploit(
        self, trial: Trial, controller: Any, upper: list[Trial], lower: list[Trial]
    ) -> None:
        # Tune draws the parent from Python's generator; from one it can only take that one.
        if trial in lower:
            step, number = self._next_perturbation_sync, trial_number(trial.trial_id)
            upper = [upper[int(uniform(self._search, "parent", step, number) * len(upper))]]
        super()._checkpoint_or_exploit(trial, controller, upper, lower)

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        step, number = self._next_perturbation_sync, trial_number(trial.trial_id)
        values = explore(self._search, trial_to_clone.config["values"], step, number)
        plain = self._search.search_space.config_dict(values)
        config = {"values": values, "config": plain, "checkpoint": None, "again": False}
        return {**trial.config, **config}, {}

    def _exploit(self, tune_controller: Any, trial: Trial, trial_to_clone: Trial) -> None:
        super()._exploit(tune_controller, trial, trial_to_clone)
        kept = Path(trial.checkpoint.path).parts[-4:]
        self._clones.append(
            Clone(trial.trial_id, trial_to_clone.trial_id, trial.config["values"], "/".join(kept))
        )


def as_schedules(search: SearchConfig, lineage: list[tuple[int, dict[str, Value]]]) -> dict[str, Any]:
    """The values of a lineage as a configuration's: piecewise where they changed."""
    values: dict[str, Any] = {}
    for key in search.space:
        steps, of = [0], [lineage[0][1][key]]
        for step, at in lineage[1:]:
            if at[key] != of[-1]:
                steps.append(step)
                of.append(at[key])
        values[key] = of[0] if len(of) == 1 else {"schedule": "piecewise", "values": of, "from_steps": steps}
    return values
