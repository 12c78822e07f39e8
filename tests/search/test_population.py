"""Exchanges of a population without Tune's processes: who is waited for."""

from types import SimpleNamespace
from typing import Any

import pytest

from ray_distill.search.population import Population
from ray_distill.search.sampler import planned_values, trial_name
from tests.helpers.tiny_search import tiny_search

SEARCH = tiny_search(scheduler={"name": "pbt", "every": 5, "replaced": 0.5}, budget={"trials": 3})


class Member:
    """What Tune's scheduler wants of a trial that waits at a checkpoint."""

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
    """A population of three, and its members."""

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
        # Tune keeps what died among its live trials.
        self.members[number].status = "ERROR"

    def exchanged(self) -> tuple[int, list[tuple[str, str]]] | None:
        exchange = self.population.pop_exchange()
        return exchange and (exchange.outer_step, [(clone.trial, clone.parent) for clone in exchange.clones])

    def next_one(self) -> Member | None:
        return self.population.choose_trial_to_run(self._controller)


def test_the_last_to_report_completes_an_exchange() -> None:
    """Of three the worst goes on from the best, with values that are not its own; it is told once."""
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
    """It fails when the other two wait for it, or before they do: they exchange without it, go on, and do so again at the
    next step."""
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
