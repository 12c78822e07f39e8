"""The record in a real MLflow store: nothing lost, nothing twice, and errors that are ours."""

import json
import pickle
from contextlib import nullcontext
from pathlib import Path

import pytest
from PIL import Image

from ray_distill.core.metrics import StepMetrics
from ray_distill.tracking.store import StoreUnavailableError, TrackingError, open_store
from ray_distill.tracking.tracker import Tracker, flatten, open_run, tracked_run
from ray_distill.tracking.uri import StoreError, store_uri, ui_command


@pytest.fixture
def tracker(uri: str) -> Tracker:
    return open_run(uri, "tests", "run", {"a": {"b": 1}}, {"kind": "test"})


def points(first: int, last: int) -> list[StepMetrics]:
    """One step a second, each with its loss."""
    return [
        StepMetrics(s, {"seconds_per_outer_step": 0.1 * s, "loss": 1.0 / s}, 1e9 + s)
        for s in range(first, last + 1)
    ]


def steps(tracker: Tracker, name: str = "loss") -> list[int]:
    return [m.step for m in tracker.client.get_metric_history(tracker.run_id, name)]


def test_points_are_logged_once_whoever_logs_them(tracker: Tracker) -> None:
    """A second tracker (a restarted controller) is given steps that overlap: each step stands once; and the
    last one that the store has is told."""
    assert tracker.log_points(points(1, 10)) == 10
    assert tracker.log_points(points(6, 12)) == 12
    again: Tracker = pickle.loads(pickle.dumps(tracker))
    assert again.log_points(points(1, 9)) == 12
    assert again.log_points(points(8, 15)) == 15
    assert steps(tracker) == list(range(1, 16))


def test_points_of_one_step_that_waited_together_are_logged_once(tracker: Tracker) -> None:
    """While the store was away, a restarted worker computed steps 4 to 6 again: the later points count."""
    again = [p._replace(unix_s=p.unix_s + 100) for p in points(4, 8)]
    tracker.log_points(points(1, 6) + again)
    assert steps(tracker) == list(range(1, 9))
    assert [p.unix_s - 1e9 for p in tracker.points(["loss"])] == [1, 2, 3, 104, 105, 106, 107, 108]


def test_points_come_back_at_the_times_of_their_steps(tracker: Tracker) -> None:
    """Whenever they were logged; a point that lacks one of the names has the others."""
    logged = points(1, 3)
    logged[1].values["extra"] = 5.0
    tracker.log_points(logged)
    assert tracker.points(["seconds_per_outer_step", "loss", "extra"]) == logged
    assert tracker.points(["extra"]) == [StepMetrics(2, {"extra": 5.0}, 1e9 + 2)]


def test_more_points_than_one_call_takes(tracker: Tracker) -> None:
    """1,300 points with two metrics each: 2,600 metrics, where one call takes 1,000."""
    tracker.log_points(points(1, 1300))
    assert steps(tracker) == list(range(1, 1301))


def test_parameters_tags_tables_files_and_pictures(tracker: Tracker, tmp_path: Path) -> None:
    """What is logged twice, as a resumed run does, is there once."""
    (tmp_path / "note.txt").write_text("x")
    for _ in range(2):
        tracker.log_metrics([("accuracy", 60, 0.5)])
        tracker.log_table([{"network": "a", "mean": 0.5}], "table.json")
        tracker.log_file(tmp_path / "note.txt")
    tracker.log_image(Image.new("RGB", (8, 8)), "distilled", 3)
    tracker.log_table([{"network": "a", "mean": 0.5}, {"network": "b", "mean": None}], "table.json")
    run = tracker.client.get_run(tracker.run_id)
    assert run.data.params == {"a.b": "1"}
    assert run.data.tags["kind"] == "test"
    assert len(tracker.client.get_metric_history(tracker.run_id, "accuracy")) == 1
    store = Path(tracker.uri.removeprefix("sqlite:///")).parent
    table = store / "mlartifacts" / "tests" / tracker.run_id / "artifacts" / "table.json"
    assert table.read_text().count("0.5") == 1
    assert json.loads(table.read_text())["data"] == [["a", 0.5], ["b", None]], (
        "the last table in place of the first"
    )
    assert {a.path for a in tracker.client.list_artifacts(tracker.run_id)} == {
        "table.json",
        "note.txt",
        "images",
    }


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_the_run_ends_as_the_block_did(
    tracker: Tracker, error: type[BaseException] | None, status: str
) -> None:
    with nullcontext() if error is None else pytest.raises(error), tracked_run(tracker):
        if error is not None:
            raise error
    assert tracker.client.get_run(tracker.run_id).info.status == status


def test_a_store_that_is_gone_does_not_hide_the_error(tmp_path: Path) -> None:
    """The run fails for its own reason, although its end cannot be recorded."""
    gone = Tracker("http://127.0.0.1:9", "abc")
    with pytest.raises(ValueError, match="the real one"), tracked_run(gone):
        raise ValueError("the real one")
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:9"):
        gone.log_points(points(1, 1))
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9"):
        gone.has_run()


@pytest.mark.parametrize("uri", ["ftp://there", "file:/somewhere", "http://127.0.0.1:9"])
def test_a_store_that_cannot_be_opened_is_the_users_to_mend(uri: str) -> None:
    with pytest.raises(StoreError):
        open_store(uri, "tests")


def test_a_run_that_the_store_does_not_know(tracker: Tracker) -> None:
    assert tracker.has_run()
    unknown = Tracker(tracker.uri, "0" * 32)
    assert not unknown.has_run()
    with pytest.raises(TrackingError, match="not found") as refused:
        unknown.log_points(points(1, 1))
    assert not isinstance(refused.value, StoreUnavailableError), "nobody would gain by saying it again"


def test_where_the_record_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configured before environment before the folder; relative sqlite paths become absolute."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_uri(None, Path("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    assert store_uri(None, Path("runs")) == f"sqlite:///{tmp_path}/mine.db"
    assert store_uri("http://host:5000", Path("runs")) == "http://host:5000"


def test_what_to_do_to_look_at_the_store() -> None:
    assert "secret" not in ui_command("postgresql://me:secret@host/db")
    assert ui_command("http://host:5000") == "open http://host:5000 in a browser"


def test_flatten_writes_paths() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, 2]}) == {"a.b.c": "1", "d": "[1, 2]"}
