"""A population without Tune's processes: exchanges, perturbed values, and a lineage as schedules."""

from types import SimpleNamespace
from typing import Any

import pytest

from ray_distill.tuning.population import Population, as_schedules, explore
from ray_distill.tuning.sampler import planned_values, trial_name
from tests.helpers.tiny_search import SPACE, tiny_search

SEARCH = tiny_search(scheduler={"name": "pbt", "every": 5, "replaced": 0.5}, budget={"trials": 3})


class Member:
    """A fake of a Tune trial that waits at a checkpoint."""

    def __init__(self, number: int) -> None:
        self.trial_id, self.experiment_tag, self.status = trial_name(number), "", "PAUSED"
        self.config = {"values": planned_values(SEARCH)[number]}
        self.temporary_state = SimpleNamespace(saving_to=None)
        at = SimpleNamespace(path=f"/s/tune/attempt-1/{self.trial_id}/checkpoint_000005")
        manager = SimpleNamespace(
            checkpoint_config=SimpleNamespace(num_to_keep=3),
            _latest_checkpoint_result=SimpleNamespace(checkpoint=at),
        )
        self.run_metadata = SimpleNamespace(checkpoint_manager=manager)

    @property
    def checkpoint(self) -> Any:
        return self.run_metadata.checkpoint_manager._latest_checkpoint_result.checkpoint

    def is_finished(self) -> bool:
        return self.status in ("TERMINATED", "ERROR")

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config

    def set_experiment_tag(self, tag: str) -> None:
        self.experiment_tag = tag


class Tune:
    """A fake of Tune's controller, with a population of three."""

    def __init__(self) -> None:
        self.members = [Member(number) for number in range(3)]
        self.population = Population(SEARCH, 0)
        self._controller = SimpleNamespace(
            search_alg=None, get_trials=lambda: self.members, get_live_trials=lambda: set(self.members)
        )
        for member in self.members:
            self.population.on_trial_add(self._controller, member)

    def result(self, number: int, **result: Any) -> None:
        self.population.on_trial_result(self._controller, self.members[number], result)

    def report(self, number: int, step: int, accuracy: float) -> None:
        self.result(number, outer_step=step, validation_accuracy=accuracy)

    def fail(self, number: int, by: str) -> None:
        if by == "reason":
            self.result(number, outer_step=0, validation_accuracy=0.0, reason="not finite")
        else:
            self.population.on_trial_error(self._controller, self.members[number])
        # Tune keeps a dead trial among its live ones.
        self.members[number].status = "ERROR"

    def exchanged(self) -> tuple[int, list[tuple[str, str]]] | None:
        exchange = self.population.pop_exchange()
        return exchange and (exchange.outer_step, [(clone.trial, clone.parent) for clone in exchange.clones])

    def next_one(self) -> Member | None:
        return self.population.choose_trial_to_run(self._controller)


def test_the_last_to_report_completes_an_exchange() -> None:
    """The worst of three continues from the best, with changed values; the exchange is returned once."""
    tune = Tune()
    tune.report(0, 5, 0.5)
    tune.report(2, 5, 0.6)
    assert (tune.exchanged(), tune.next_one()) == (None, tune.members[1])
    tune.report(1, 5, 0.7)
    exchange = tune.population.pop_exchange()
    assert exchange is not None
    (clone,) = exchange.clones
    assert (exchange.outer_step, clone.trial, clone.parent) == (5, "trial-000", "trial-001")
    assert clone.checkpoint == "tune/attempt-1/trial-001/checkpoint_000005"
    assert clone.values == tune.members[0].config["values"] != planned_values(SEARCH)[0]
    assert tune.exchanged() is None
    assert tune.next_one() is not None


@pytest.mark.parametrize("by", ["reason", "error"])
@pytest.mark.parametrize("last", [True, False])
def test_nobody_waits_for_a_member_that_failed(by: str, last: bool) -> None:
    """It fails while the other two wait for it, or before: they exchange without it, continue, and exchange again at the next
    step."""
    tune = Tune()
    if not last:
        tune.fail(2, by)
    tune.report(0, 5, 0.5)
    tune.report(1, 5, 0.7)
    if last:
        assert tune.exchanged() is None
        tune.fail(2, by)
    assert tune.exchanged() == (5, [("trial-000", "trial-001")])
    assert tune.next_one() in tune.members[:2]
    tune.report(0, 10, 0.8)
    assert tune.exchanged() is None
    tune.report(1, 10, 0.7)
    assert tune.exchanged() == (10, [("trial-001", "trial-000")])


PBT = {
    "scheduler": {"name": "pbt", "every": 5, "resample": 0.3},
    "space": SPACE
    | {
        "inner.lr": {"loguniform": [1e-3, 1e-2]},
        "truncation.window_length": {"uniform": [0.2, 1.0], "fraction_of": "truncation.unroll_length"},
    },
}


def test_a_thousand_changes_stay_in_the_space() -> None:
    """Explored values are a valid configuration with its window within its unroll, and every key moves both ways."""
    search = tiny_search(**PBT)
    values, moved = search.search_space.base_values(), set()
    for step in range(1000):
        new = explore(search, values, step, 1)
        search.search_space.config(new)
        assert new["truncation.window_length"] >= 0.2 * new["truncation.unroll_length"]
        moved |= {(key, new[key] > values[key]) for key in new if new[key] != values[key]}
        values = new
    assert moved == {(key, up) for key in values for up in (True, False)}


def test_without_resampling_a_value_moves_by_a_quarter() -> None:
    """A step size is multiplied or divided by 1.25, a length of 3 moves by one, a choice moves to its neighbour."""
    space = SPACE | {"outer.lr": {"choice": [0.001, 0.01, 0.1]}, "inner.lr": {"loguniform": [1e-4, 1e-2]}}
    search = tiny_search(scheduler={"name": "pbt", "every": 5, "resample": 0.0}, space=space)
    base = search.search_space.base_values()
    seen: dict[str, set[Any]] = {key: set() for key in base}
    for number in range(40):
        for key, value in explore(search, base, 5, number).items():
            seen[key].add(value)
    assert seen["inner.lr"] == {0.0008, 0.00125}
    assert seen["outer.lr"] == {0.001, 0.1}
    assert seen["truncation.unroll_length"] == {5, 8}
    assert seen["truncation.window_length"] == {2, 4}


def test_a_lineage_as_schedules() -> None:
    """Values that changed are piecewise schedules from those steps, the others numbers; the configuration is valid."""
    search = tiny_search(**PBT)
    first = search.search_space.base_values()
    second = first | {"outer.lr": 0.02}
    third = second | {"outer.lr": 0.03, "truncation.window_length": 2}
    values = as_schedules(search, [(0, first), (5, second), (10, third)])
    assert values == {
        "truncation.unroll_length": 6,
        "truncation.window_length": {"schedule": "piecewise", "values": [3, 2], "from_steps": [0, 10]},
        "outer.lr": {"schedule": "piecewise", "values": [0.01, 0.02, 0.03], "from_steps": [0, 5, 10]},
        "inner.lr": 0.001,
    }
    config = search.search_space.full_config(values)
    assert config.outer.lr.from_steps == (0, 5, 10)  # type: ignore[union-attr]
