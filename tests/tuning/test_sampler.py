"""Where trials' values come from: functions of the search file, and with Optuna of the trials before."""

import math
from pathlib import Path
from typing import Any

import pytest

from ray_distill.tuning.config import SearchConfig
from ray_distill.tuning.journal import SearchJournal
from ray_distill.tuning.sampler import OptunaSampler, planned_values, trial_name, trial_number, uniform
from tests.helpers.tiny import TINY
from tests.helpers.tiny_search import tiny_search

optuna = pytest.importorskip("optuna")
LR = "outer.lr"


def test_trials_are_a_function_of_the_file() -> None:
    """A longer search begins with the same trials; another seed has others; trial 0 is the base; names give numbers."""
    few, many = planned_values(tiny_search()), planned_values(tiny_search(budget={"trials": 9}))
    assert many[:4] == few == planned_values(tiny_search(name="again"))
    assert few[0] == tiny_search().search_space.base_values()
    assert planned_values(tiny_search(seed=1))[1] != few[1]
    assert len({repr(values) for values in many}) == 9
    assert trial_number(trial_name(1234)) == 1234


def test_random_numbers_of_a_search_differ() -> None:
    """Between purposes, steps and trials."""
    search = tiny_search(base=TINY)
    numbers = {uniform(search, purpose, step, n) for purpose in "ab" for step in (0, 5) for n in (0, 1)}
    assert len(numbers) == 8
    assert all(0 <= number < 1 for number in numbers)


def run_optuna(search: SearchConfig, path: Path, count: int) -> list[dict[str, Any]]:
    """The values of trials by Optuna with the best accuracy at outer.lr 0.1, each drawn by a new sampler."""
    trials = []
    for number in range(count):
        journal = SearchJournal(path)
        sampled = OptunaSampler(search, journal).sample(number)
        trials.append(sampled.values)
        name = trial_name(number)
        journal.write("trial", trial=name, values=sampled.values, numbers=sampled.numbers)
        accuracy = float(str(sampled.values["outer.lr"])) * 5
        report = {"outer_step": 5, "seconds": 1.0, "validation_accuracy": accuracy, "checkpoint": None}
        journal.write("report", trial=name, **report)
        journal.write("end", trial=name, status="finished", reason=None)
    return trials


def test_optuna_learns_and_a_resumed_search_continues_as_it_would_have(tmp_path: Path) -> None:
    """A trial's values do not depend on when it is drawn; later trials are nearer to the best step size than random ones."""
    search = tiny_search(algorithm="optuna", budget={"trials": 30})
    trials = run_optuna(search, tmp_path / "a", 30)
    assert run_optuna(search, tmp_path / "b", 15) == trials[:15]
    assert trials[0] == search.search_space.base_values()
    for values in trials:
        search.search_space.config(values)
    random = planned_values(tiny_search(budget={"trials": 30}))
    median, random_median = (sorted(values[LR] for values in part[15:])[7] for part in (trials, random))
    assert median > 2 * random_median


def proposals(path: Path, status_of_early: str, seeds: range = range(1)) -> list[float]:
    """The next outer.lr with each seed after 18 trials: 12 full ones, the better the nearer to 0.1, and 6 with the lowest
    outer.lr that ended at step 5 with an accuracy above all others'."""
    learning_rates = []
    for seed in seeds:
        search = tiny_search(
            algorithm="optuna", seed=seed, budget={"trials": 40}, space={LR: {"loguniform": [1e-4, 1e-1]}}
        )
        journal = SearchJournal(path / f"{status_of_early}-{seed}")
        for number in range(18):
            early = number >= 12
            at = 0.01 * (number - 12) if early else 0.3 + 0.05 * number
            name = trial_name(number)
            journal.write("trial", trial=name, values={LR: 1e-4 * 1000**at}, numbers={LR: at})
            for step in (5,) if early else (5, 10, 15, 20):
                accuracy = 0.9 if early else 0.5 * at * step / 20
                report = {"outer_step": step, "seconds": 1.0, "validation_accuracy": accuracy}
                journal.write("report", trial=name, checkpoint=None, **report)
            journal.write("end", trial=name, status=status_of_early if early else "finished", reason=None)
        learning_rates.append(float(str(OptunaSampler(search, journal).sample(18).values[LR])))
    return learning_rates


def test_a_stopped_trial_is_not_compared_with_full_ones(tmp_path: Path) -> None:
    """Counted as full, six early accuracies of 0.9 lead TPE to the lowest outer.lr; pruned, they rank behind all full
    trials, which lead it to the highest."""
    stopped = proposals(tmp_path, "stopped", range(10))
    finished = proposals(tmp_path, "finished", range(10))
    assert all(one != other for one, other in zip(stopped, finished, strict=True))
    middle = math.sqrt(1e-4 * 1e-1)
    assert sum(lr > middle for lr in stopped) >= 9
    assert sum(lr < middle for lr in finished) >= 9


def test_a_stopped_trial_is_pruned_at_its_step(tmp_path: Path) -> None:
    """With the best accuracy until each validation, by which trials are compared when one is stopped; a running trial has no
    result yet."""
    search = tiny_search(algorithm="optuna", budget={"trials": 40})
    journal = SearchJournal(tmp_path / "j")
    for number, status in enumerate(("stopped", "finished", "failed", "running")):
        name = trial_name(number)
        journal.write("trial", trial=name, values={LR: 0.1}, numbers={LR: 0.5})
        for step, accuracy in ((5, 0.2), (10, 0.4), (15, 0.3)):
            report = {"outer_step": step, "seconds": 1.0, "validation_accuracy": accuracy}
            journal.write("report", trial=name, checkpoint=None, **report)
        if status != "running":
            journal.write("end", trial=name, status=status, reason=None)
    sampler = OptunaSampler(search, SearchJournal(tmp_path / "j"))
    stopped, finished, failed, running = (sampler._frozen(log) for log in sampler._journal.trials.values())
    states = optuna.trial.TrialState
    assert (stopped.state, stopped.value) == (states.PRUNED, None)
    assert stopped.intermediate_values == {5: 0.2, 10: 0.4, 15: 0.4}
    assert (finished.state, finished.value) == (states.COMPLETE, 0.4)
    assert (failed.state, failed.value) == (states.FAIL, None)
    assert (running.state, running.value) == (states.RUNNING, None)
