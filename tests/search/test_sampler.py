"""Optuna's TPE sampler: what it is told of finished and of stopped trials, and what it proposes then."""

import math
from pathlib import Path

import pytest

from ray_distill.search.journal import SearchJournal
from ray_distill.search.sampler import OptunaSampler, trial_name
from tests.helpers.tiny_search import tiny_search

optuna = pytest.importorskip("optuna")
LR = "outer.lr"


def proposals(path: Path, status_of_early: str, seeds: range = range(1)) -> list[float]:
    """The next outer.lr with each seed after 18 trials: 12 full ones, the better the nearer to 0.1, and 6 with the lowest
    outer.lr that ended at step 5 with an accuracy above all others'."""
    found = []
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
        found.append(float(str(OptunaSampler(search, journal).sample(18).values[LR])))
    return found


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
    """With the best accuracy until each validation, by which trials were compared when it was stopped; a trial that is under
    way has no result yet."""
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
