"""A search in a real MLflow store: nested runs, found by name, and nothing lost while the store is away."""

import json
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from ray_distill.core.metrics import StepMetrics
from ray_distill.tracking import retry_queue
from ray_distill.tracking.tracker import Tracker, create_run
from ray_distill.tuning.accounting import SearchTime
from ray_distill.tuning.journal import TrialLog, ValidationResult
from ray_distill.tuning.results import leaderboard
from ray_distill.tuning.tracking import SearchTracking, tracked_search

LR = "inner.lr"


@pytest.fixture
def parent(uri: str, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    monkeypatch.setattr(retry_queue, "MAX_BACKOFF_S", 0.2)
    return create_run(uri, "tests", "search", {"scheduler": "asha"}, {"kind": "search"})


def point(step: int, accuracy: float = 0.5) -> StepMetrics:
    return StepMetrics(step, {"seconds_per_outer_step": 0.1, "validation_accuracy": accuracy}, 1e9 + step)


def children(parent: Tracker) -> dict[str, Any]:
    """The search's trials in the store, by name; each must be there exactly once."""
    client = parent.client
    experiment = client.get_run(parent.run_id).info.experiment_id
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.run_id}'")
    names = [run.info.run_name for run in found]
    assert len(set(names)) == len(names)
    return {run.info.run_name: run for run in found}


def steps(parent: Tracker, run: Any, name: str = "validation_accuracy") -> list[int]:
    return [m.step for m in parent.client.get_metric_history(run.info.run_id, name)]


def record(name: str, accuracy: float, status: str = "finished") -> TrialLog:
    return TrialLog(name, {LR: 0.1}, status=status, curve=[ValidationResult(2, 2.0, accuracy)])  # type: ignore[arg-type]


def test_a_search_is_one_run_with_a_run_for_each_trial(parent: Tracker, tmp_path: Path) -> None:
    """Four concurrent trials: each has its own parameters, steps and end; the search has its leaderboard."""
    (tmp_path / "picture.png").write_bytes(b"png")
    warnings: list[str] = []
    with tracked_search(parent, tmp_path, warnings) as tracking:
        names = ["a", "b", "c", "d"]
        for i, name in enumerate(names):
            tracking.begin_trial(name, {LR: 0.1 * (i + 1), "truncation.rule": "bptt"})
        for step in (1, 2, 3):
            for i, name in enumerate(names):
                tracking.log_steps(name, [point(step, 0.1 * i + 0.01 * step)])
        tracking.end_trial("a", "finished")
        tracking.end_trial("b", "stopped")
        tracking.end_trial("c", "failed", "outer step 3: not finite")
        tracking.log_leaderboard(leaderboard([record("a", 0.1), record("d", 0.4)]))
        tracking.log_leaderboard(
            leaderboard([record("a", 0.1), record("b", 0.2), record("d", 0.4)]),
            [tmp_path / "picture.png"],
            SearchTime(1, 50, 100, 75, 20, 5),
        )
    assert warnings == []
    runs = children(parent)
    assert {n: (r.info.status, r.data.params[LR], steps(parent, r)) for n, r in runs.items()} == {
        "a": ("FINISHED", "0.1", [1, 2, 3]),
        "b": ("KILLED", "0.2", [1, 2, 3]),
        "c": ("FAILED", "0.30000000000000004", [1, 2, 3]),
        "d": ("KILLED", "0.4", [1, 2, 3]),
    }
    assert runs["c"].data.tags["reason"] == "outer step 3: not finite"
    outcomes = {name: run.data.tags["outcome"] for name, run in runs.items()}
    assert outcomes == {"a": "finished", "b": "stopped", "c": "failed", "d": "interrupted"}
    assert runs["d"].data.metrics["validation_accuracy"] == pytest.approx(0.33)
    above = parent.client.get_run(parent.run_id)
    assert above.info.status == "FINISHED"
    assert above.data.tags["best_trial"] == "d"
    note = above.data.tags["mlflow.note.content"]
    assert "| 1 | d |" in note
    assert note.rstrip().endswith("(20% before the first outer step, 0% between trials, 5% idle at the end)")
    assert (above.data.metrics["wall_s"], above.data.metrics["orchestration"]) == (50, 0.25)
    history = parent.client.get_metric_history(parent.run_id, "best_validation_accuracy")
    assert [(m.step, m.value) for m in history] == [(2, 0.4), (3, 0.4)]
    files = {a.path for a in parent.client.list_artifacts(parent.run_id)}
    assert files == {"leaderboard.json", "picture.png"}
    table = json.loads(Path(parent.client.download_artifacts(parent.run_id, "leaderboard.json")).read_text())
    assert [row[table["columns"].index("trial")] for row in table["data"]] == ["d", "b", "a"]


def test_a_resumed_search_continues_in_the_same_runs(parent: Tracker, tmp_path: Path) -> None:
    """The search was stopped, and a trial in it: both runs continue. Repeated steps are there once; a value that has changed
    since does not change the parameter and is a metric over steps."""
    first = SearchTracking(parent, tmp_path)
    first.begin_trial("a", {LR: 0.1})
    first.log_steps("a", [point(1), point(2)])
    assert first.close("KILLED") == []
    ids = {name: run.info.run_id for name, run in children(parent).items()}
    second = SearchTracking(parent, tmp_path)
    assert second.num_recovered == 0
    assert parent.client.get_run(parent.run_id).info.status == "KILLED"
    second.resume()
    second.begin_trial("a", {LR: 0.3})
    assert second.queue.flush(60)
    assert parent.client.get_run(parent.run_id).info.status == "RUNNING"
    assert children(parent)["a"].info.status == "RUNNING"
    second.begin_trial("b", {LR: 0.2})
    again = point(2)._replace(unix_s=2e9)
    second.log_steps("a", [again, point(3)], values={LR: 0.3, "truncation.rule": "bptt"})
    second.end_trial("a", "finished")
    assert second.close("FINISHED") == []
    runs = children(parent)
    assert runs["a"].info.run_id == ids["a"]
    assert steps(parent, runs["a"]) == [1, 2, 3]
    assert steps(parent, runs["a"], f"searched/{LR}") == [3]
    assert "searched/truncation.rule" not in runs["a"].data.metrics
    assert runs["a"].data.params[LR] == "0.1"
    assert {name: run.info.status for name, run in runs.items()} == {"a": "FINISHED", "b": "KILLED"}


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_the_search_ends_as_its_block_did(
    parent: Tracker, tmp_path: Path, error: type[BaseException], status: str
) -> None:
    def search() -> None:
        with tracked_search(parent, tmp_path, []) as tracking:
            tracking.begin_trial("a", {LR: 0.1})
            raise error

    with pytest.raises(error):
        search()
    assert parent.client.get_run(parent.run_id).info.status == status
    assert children(parent)["a"].info.status == "KILLED"


def locked(parent: Tracker) -> sqlite3.Connection:
    """Lock the store until this is closed: nobody can read or write it."""
    store = sqlite3.connect(parent.uri.removeprefix("sqlite:///"), isolation_level=None, timeout=30)
    store.execute("begin exclusive")
    return store


def test_a_locked_store_gets_everything_from_the_next_process(parent: Tracker, tmp_path: Path) -> None:
    """The store is locked from a trial's start until the search has ended: a warning says what is missing and how to send it;
    the resumed search sends it, with the original times."""
    first = SearchTracking(parent, tmp_path)
    first.begin_trial("a", {LR: 0.1})
    assert first.queue.flush(60)
    lock = locked(parent)
    first.log_steps("a", [point(1), point(2)])
    first.begin_trial("b", {LR: 0.2})
    first.log_steps("b", [point(1, 0.25)])
    first.end_trial("b", "stopped")
    (warning,) = first.close("FINISHED", timeout_s=0.1)
    assert "6 entries of " in warning
    assert "--resume sends them" in warning
    second = SearchTracking(parent, tmp_path)
    assert second.num_recovered == 6
    lock.close()
    assert second.close("FINISHED") == []
    runs = children(parent)
    assert {n: (r.info.status, steps(parent, r)) for n, r in runs.items()} == {
        "a": ("KILLED", [1, 2]),
        "b": ("KILLED", [1]),
    }
    history = parent.client.get_metric_history(runs["b"].info.run_id, "validation_accuracy")
    assert [(m.value, m.timestamp) for m in history] == [(0.25, 1_000_000_001_000)]
    assert SearchTracking(parent, tmp_path).num_recovered == 0


def test_sending_everything_twice_changes_nothing(parent: Tracker, tmp_path: Path) -> None:
    """The process was killed between MLflow's answer and the acknowledgement."""
    first = SearchTracking(parent, tmp_path)
    first.begin_trial("a", {LR: 0.1})
    first.log_steps("a", [point(1), point(2)])
    first.log_clone("a", 3, 2)
    first.end_trial("a", "failed", "why")
    first.log_leaderboard(leaderboard([record("a", 0.4)]))
    assert first.close("FINISHED") == []
    before = parent.client.get_run(parent.run_id).data.to_dictionary()
    (tmp_path / "mlflow_journal.jsonl.said").unlink()
    second = SearchTracking(parent, tmp_path)
    assert second.num_recovered == 6
    second.log_clone("a", 3, 2)
    assert second.close("FINISHED") == []
    (run,) = children(parent).values()
    assert run.info.status == "FAILED"
    assert steps(parent, run) == [1, 2]
    assert len(parent.client.get_metric_history(parent.run_id, "best_validation_accuracy")) == 1
    cloned = parent.client.get_metric_history(run.info.run_id, "cloned_from")
    assert [(m.step, m.value) for m in cloned] == [(2, 3.0)]
    assert parent.client.get_run(parent.run_id).data.to_dictionary() == before


def test_a_deleted_run_does_not_stop_the_others(parent: Tracker, tmp_path: Path) -> None:
    tracking = SearchTracking(parent, tmp_path)
    tracking.begin_trial("a", {LR: 0.1})
    tracking.begin_trial("b", {LR: 0.2})
    assert tracking.queue.flush(60)
    parent.client.delete_run(children(parent)["a"].info.run_id)
    tracking.log_steps("a", [point(1)])
    tracking.log_steps("b", [point(1)])
    tracking.end_trial("b", "finished")
    assert any("active" in warning for warning in tracking.close("FINISHED"))
    (run,) = children(parent).values()
    assert (run.info.run_name, run.info.status, steps(parent, run)) == ("b", "FINISHED", [1])


def test_the_driver_never_waits_for_the_store(parent: Tracker, tmp_path: Path) -> None:
    """While the thread is blocked in a call, the driver logs a hundred steps."""
    held, free = threading.Event(), threading.Event()
    tracking = SearchTracking(parent, tmp_path)

    def open_trial_run(*_: Any) -> Tracker:
        held.set()
        assert free.wait(60)
        return Tracker.open_trial_run(parent, "a", {}, 0.0)

    object.__setattr__(parent, "open_trial_run", open_trial_run)
    tracking.begin_trial("a", {LR: 0.1})
    assert held.wait(60)
    for step in range(1, 101):
        tracking.log_steps("a", [point(step)])
    assert tracking.queue.num_pending == 101
    free.set()
    assert tracking.close("FINISHED") == []
    assert steps(parent, children(parent)["a"]) == list(range(1, 101))
