"""The journal of a search is read back as it was written, even if its last line was cut off."""

import json
from pathlib import Path
from typing import Any

import pytest

from ray_distill.config.config import ConfigError
from ray_distill.tracking.tracker import Tracker
from ray_distill.tuning.journal import SearchJournal, ValidationResult
from ray_distill.tuning.search_dir import SearchDir
from tests.helpers.tiny_search import tiny_search


def report(name: str, step: int, accuracy: float) -> dict[str, Any]:
    checkpoint = f"tune/attempt-1/{name}/checkpoint_{step:06d}"
    return {
        "trial": name,
        "outer_step": step,
        "seconds": 2.0 * step,
        "validation_accuracy": accuracy,
        "checkpoint": checkpoint,
    }


def written(path: Path) -> SearchJournal:
    journal = SearchJournal(path)
    for name, lr in (("trial-000", 0.1), ("trial-001", 0.2)):
        journal.write("trial", trial=name, values={"outer.lr": lr})
        journal.write("report", **report(name, 5, lr))
    journal.write("report", **report("trial-001", 10, 0.4))
    return journal


def test_a_journal_is_read_back(tmp_path: Path) -> None:
    """Values, curve, last checkpoint and end; a line that was cut off is ignored."""
    journal = written(tmp_path / "j")
    journal.write("end", trial="trial-000", status="stopped", reason=None)
    whole = (tmp_path / "j").read_bytes()
    for cut in (0, 1, 30):
        (tmp_path / "j").write_bytes(whole[: len(whole) - cut])
        trials = SearchJournal(tmp_path / "j").trials
        assert trials["trial-001"] == journal.trials["trial-001"]
        assert trials["trial-000"].status == ("running" if cut else "stopped")
    log = trials["trial-001"]
    assert log.curve == [ValidationResult(5, 10.0, 0.2), ValidationResult(10, 20.0, 0.4)]
    assert (log.outer_steps, log.seconds) == (10, 20.0)
    assert log.checkpoint == "tune/attempt-1/trial-001/checkpoint_000010"


def test_a_resumed_trial_forgets_what_it_will_report_again(tmp_path: Path) -> None:
    """Resumed at step 5, it reports step 10 again, and has it once."""
    journal = written(tmp_path / "j")
    journal.write("goes_on", trial="trial-001", outer_step=5)
    assert [m.outer_step for m in journal.trials["trial-001"].curve] == [5]
    journal.write("report", **report("trial-001", 10, 0.4))
    journal.write("report", **report("trial-001", 10, 0.4))
    assert [m.outer_step for m in journal.trials["trial-001"].curve] == [5, 10]


def test_a_trial_that_restarts_from_an_older_state_reports_again(tmp_path: Path) -> None:
    """Its process was restarted from an older state than its last report: the curve ends with the new report."""
    journal = written(tmp_path / "j")
    journal.write("report", **report("trial-001", 15, 0.5))
    journal.write("report", **report("trial-001", 10, 0.4))
    log = journal.trials["trial-001"]
    assert [m.outer_step for m in log.curve] == [5, 10]
    assert (log.checkpoint_step, [kept.outer_step for kept in log.checkpoints]) == (10, [5, 10])


def test_a_clone_has_its_parents_lineage(tmp_path: Path) -> None:
    """After an exchange its lineage, curve and checkpoint are the parent's; with another inner step size, with which
    accuracies cannot be compared, the curve is empty."""
    journal = written(tmp_path / "j")
    kept = "tune/attempt-1/trial-001/checkpoint_000010"
    clone = {"trial": "trial-000", "parent": "trial-001", "values": {"outer.lr": 0.3}, "checkpoint": kept}
    journal.write("barrier", outer_step=10, clones=[clone])
    again = SearchJournal(tmp_path / "j")
    log = again.trials["trial-000"]
    assert again.last_exchange == 10
    assert log.values == {"outer.lr": 0.1}
    assert log.lineage == [(0, {"outer.lr": 0.2}), (10, {"outer.lr": 0.3})]
    assert (log.current_values, log.checkpoint, log.checkpoint_step) == ({"outer.lr": 0.3}, kept, 10)
    assert [m.validation_accuracy for m in log.curve] == [0.2, 0.4]
    other = {**clone, "values": {"outer.lr": 0.3, "inner.lr": 0.1}}
    again.write("barrier", outer_step=15, clones=[other])
    assert again.trials["trial-000"].curve == []


def test_a_folder_belongs_to_one_search(tmp_path: Path) -> None:
    """More trials and more hours are the same search; another seed is not; an empty folder has none."""
    folder, tracker = SearchDir(tmp_path / "s"), Tracker("sqlite:////there/mlflow.db", "abc")
    with pytest.raises(ConfigError, match="holds no search"):
        folder.tracker_to_resume(tiny_search())
    folder.claim(tiny_search(), tracker)
    assert folder.tracker_to_resume(tiny_search(budget={"trials": 9, "hours": 2.0})) == tracker
    with pytest.raises(ConfigError, match="holds a search of another configuration"):
        folder.tracker_to_resume(tiny_search(seed=1))
    assert json.loads(folder.identity.read_text())["search_hash"] == tiny_search().hash
