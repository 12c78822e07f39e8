"""Population-based training: members that are trained in parallel, and the winner's values as schedules.

At every exchange the worst members exploit the states of the best (D, outer optimiser, clip average, by Tune's scheduler)
and explore changed values (Jaderberg et al., "Population based training of neural networks", 2017). Exchanges are
synchronous, so that members are compared at the same outer step and who clones whom is a function of their accuracies and
the search file; random decisions are drawn from the search's streams, not from Python's generator as Tune's are.

A clone has a lineage: which values were used from which outer step on, along the states that led to it. All four keys that
may change are schedules in a distillation's configuration, and every draw of a run is a function of seed and outer step, so
the winner's lineage, written as piecewise schedules, is an ordinary run that reaches the same D.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from ray_distill.tuning.config import PbtScheduler, SearchConfig
from ray_distill.tuning.domains import LogUniformDomain, UniformDomain, Value, options
from ray_distill.tuning.sampler import trial_number, uniform
from ray_distill.tuning.space import Space

PERTURBATION_FACTOR = 1.25
METRIC = "validation_accuracy"
"""Of the state itself: the best so far would hide that a change was for the worse."""


def explore(
    search: SearchConfig, values: Mapping[str, Value], outer_step: int, number: int
) -> dict[str, Value]:
    """The new values of a member that takes over a state with these values at an outer step."""
    assert isinstance(search.scheduler, PbtScheduler)
    space, changed = search.search_space, dict[str, Value]()
    for key in space.order:
        resample, value, direction = (
            uniform(search, f"{use}-{key}", outer_step, number) for use in ("resample", "value", "direction")
        )
        if resample < search.scheduler.resample:
            changed[key] = space.value(key, value, changed)
        else:
            changed[key] = _perturb(space, key, values[key], 1 if direction < 0.5 else -1, changed)
    return changed


def _perturb(space: Space, key: str, value: Any, direction: int, others: Mapping[str, Value]) -> Value:
    """A larger or smaller value, within its limits given the others; of a choice, the next option."""
    choices = options(space.domains[key])
    if choices is not None:
        values: set[Any] = {space.value(key, (i + 0.5) / len(choices), others) for i in range(len(choices))}
        allowed = sorted(values)
        nearest = min(range(len(allowed)), key=lambda i: abs(allowed[i] - value))
        neighbour: Value = allowed[min(max(nearest + direction, 0), len(allowed) - 1)]
        return neighbour
    low, high = space.limits(key, others)
    new = value * PERTURBATION_FACTOR**direction
    if isinstance(space.domains[key], LogUniformDomain | UniformDomain) and not isinstance(low, int):
        return float(min(max(float(f"{new:.4g}"), low), high))
    # An integer moves by at least one.
    moved = max(value + 1, round(new)) if direction > 0 else min(value - 1, round(new))
    return int(min(max(moved, low), high))


class Clone(NamedTuple):
    """A member that continues from another's state."""

    trial: str
    parent: str
    values: dict[str, Value]
    """Its values from then on."""
    checkpoint: str
    """The folder of the parent's state, relative to the search's folder."""


class Exchange(NamedTuple):
    """The outcome of an exchange, at an outer step that all members had reached."""

    outer_step: int
    clones: list[Clone]


class Population(PopulationBasedTraining):
    """Tune's synchronous population-based training, with our own draws, which tells who was cloned.

    Args:
        last_exchange: the outer step of a resumed search's last exchange; else 0.
    """

    def __init__(self, search: SearchConfig, last_exchange: int) -> None:
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
        self._search, self._last_exchange = search, last_exchange
        self._clones: list[Clone] = []
        self._exchange: Exchange | None = None
        self._failed: list[Trial] = []
        self._next_perturbation_sync = last_exchange + chosen.every

    def pop_exchange(self) -> Exchange | None:
        """The exchange that the last result completed, once; else None."""
        exchange, self._exchange = self._exchange, None
        return exchange

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A member, which in a resumed search may have a state from before the last exchange."""
        super().on_trial_add(tune_controller, trial)
        self._trial_state[trial].last_perturbation_time = self._last_exchange

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Wait for the others at an exchange; there is none at the last outer step."""
        if "reason" in result:
            self._fail(tune_controller, trial)
            return str(TrialScheduler.CONTINUE)
        if result["outer_step"] >= self._search.outer_steps:
            return str(TrialScheduler.CONTINUE)
        return self._handle_result(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A member whose process died too often."""
        super().on_trial_error(tune_controller, trial)
        self._fail(tune_controller, trial)

    def _handle_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Handle a member's result, which completes an exchange if it is the last one missing."""
        for failed in self._failed:
            # Tune would wait for it.
            self._trial_state[failed].last_train_time = self._next_perturbation_sync
        before = self._next_perturbation_sync
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if self._next_perturbation_sync != before:
            # The callback records it after this result, which Tune passes to the scheduler first.
            self._exchange, self._clones = Exchange(before, self._clones), []
        return decision

    def _fail(self, tune_controller: Any, trial: Trial) -> None:
        """Exclude a member from exchanges; if the others only waited for it, theirs takes place."""
        self._failed.append(trial)
        self._trial_state[trial].last_score = None
        others = [
            (t, self._trial_state[t]) for t in tune_controller.get_live_trials() if t not in self._failed
        ]
        if others and all(state.last_train_time >= self._next_perturbation_sync for _, state in others):
            other, state = others[0]
            self._handle_result(tune_controller, other, state.last_result)

    def _checkpoint_or_exploit(
        self, trial: Trial, controller: Any, upper: list[Trial], lower: list[Trial]
    ) -> None:
        # Tune draws the parent from Python's generator; it gets only the one that we drew.
        if trial in lower:
            step, number = self._next_perturbation_sync, trial_number(trial.trial_id)
            upper = [upper[int(uniform(self._search, "parent", step, number) * len(upper))]]
        super()._checkpoint_or_exploit(trial, controller, upper, lower)

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        step, number = self._next_perturbation_sync, trial_number(trial.trial_id)
        values = explore(self._search, trial_to_clone.config["values"], step, number)
        config = self._search.search_space.config_dict(values)
        changed = {"values": values, "config": config, "checkpoint": None, "repeat_report": False}
        return {**trial.config, **changed}, {}

    def _exploit(self, tune_controller: Any, trial: Trial, trial_to_clone: Trial) -> None:
        super()._exploit(tune_controller, trial, trial_to_clone)
        checkpoint = "/".join(Path(trial.checkpoint.path).parts[-4:])
        self._clones.append(
            Clone(trial.trial_id, trial_to_clone.trial_id, trial.config["values"], checkpoint)
        )


def as_schedules(search: SearchConfig, lineage: list[tuple[int, dict[str, Value]]]) -> dict[str, Any]:
    """The values of a lineage for a configuration: piecewise schedules where they changed."""
    schedules: dict[str, Any] = {}
    for key in search.space:
        from_steps, values = [0], [lineage[0][1][key]]
        for step, changed in lineage[1:]:
            if changed[key] != values[-1]:
                from_steps.append(step)
                values.append(changed[key])
        piecewise = {"schedule": "piecewise", "values": values, "from_steps": from_steps}
        schedules[key] = values[0] if len(values) == 1 else piecewise
    return schedules
