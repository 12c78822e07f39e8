"""A run in a real MLflow store: nothing lost, nothing duplicated, errors of our own types."""

import json
import pickle
from contextlib import nullcontext
from pathlib import Path

import pytest
from PIL import Image

from ray_distill.core.metrics import StepMetrics
from ray_distill.tracking.store import StoreUnavailableError, TrackingError, open_store
from ray_distill.tracking.tracker import Tracker, create_run, flatten, tracked_run
from ray_distill.tracking.uri import StoreError, store_uri, ui_command


@pytest.fixture
def tracker(uri: str) -> Tracker:
    return create_run(uri, "tests", "run", {"a": {"b": 1}}, {"kind": "test"})


def measured(first: int, last: int) -> list[StepMetrics]:
    """One step a second, each with its loss."""
    return [
        StepMetrics(s, {"seconds_per_outer_step": 0.1 * s, "loss": 1.0 / s}, 1e9 + s)
        for s in range(first, last + 1)
    ]


def logged_steps(tracker: Tracker, name: str = "loss") -> list[int]:
    return [m.step for m in tracker.client.get_metric_history(tracker.run_id, name)]


def test_each_step_is_logged_once_by_any_tracker(tracker: Tracker) -> None:
    """A second tracker (a restarted driver) logs steps that overlap: each step is stored once; the last step in the store
    is returned."""
    assert tracker.log_steps(measured(1, 10)) == 10
    assert tracker.log_steps(measured(6, 12)) == 12
    again: Tracker = pickle.loads(pickle.dumps(tracker))
    assert again.log_steps(measured(1, 9)) == 12
    assert again.log_steps(measured(8, 15)) == 15
    assert logged_steps(tracker) == list(range(1, 16))


def test_of_two_measurements_of_a_step_in_one_call_the_last_is_logged(tracker: Tracker) -> None:
    """While the store was away, a restarted worker computed steps 4 to 6 again: the later ones are logged."""
    again = [p._replace(unix_s=p.unix_s + 100) for p in measured(4, 8)]
    tracker.log_steps(measured(1, 6) + again)
    assert logged_steps(tracker) == list(range(1, 9))
    assert [p.unix_s - 1e9 for p in tracker.steps(["loss"])] == [1, 2, 3, 104, 105, 106, 107, 108]


def test_steps_are_read_back_with_their_times(tracker: Tracker) -> None:
    """Whenever they were logged; a step without one of the metrics has the others."""
    logged = measured(1, 3)
    logged[1].values["extra"] = 5.0
    tracker.log_steps(logged)
    assert tracker.steps(["seconds_per_outer_step", "loss", "extra"]) == logged
    assert tracker.steps(["extra"]) == [StepMetrics(2, {"extra": 5.0}, 1e9 + 2)]


def test_more_steps_than_one_call_takes(tracker: Tracker) -> None:
    """1,300 steps with two metrics each: 2,600 metrics, where one call takes 1,000."""
    tracker.log_steps(measured(1, 1300))
    assert logged_steps(tracker) == list(range(1, 1301))


def test_parameters_tags_tables_files_and_pictures(tracker: Tracker, tmp_path: Path) -> None:
    """What a resumed run logs again is stored once."""
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
        "the last table replaces the first"
    )
    assert {a.path for a in tracker.client.list_artifacts(tracker.run_id)} == {
        "table.json",
        "note.txt",
        "images",
    }


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_the_status_of_the_run_follows_the_block(
    tracker: Tracker, error: type[BaseException] | None, status: str
) -> None:
    with nullcontext() if error is None else pytest.raises(error), tracked_run(tracker):
        if error is not None:
            raise error
    assert tracker.client.get_run(tracker.run_id).info.status == status


def test_an_unreachable_store_does_not_hide_the_error(tmp_path: Path) -> None:
    """The run fails for its own reason although its status cannot be set."""
    gone = Tracker("http://127.0.0.1:9", "abc")
    with pytest.raises(ValueError, match="the real one"), tracked_run(gone):
        raise ValueError("the real one")
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:9"):
        gone.log_steps(measured(1, 1))
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9"):
        gone.exists_in_store()


@pytest.mark.parametrize("uri", ["ftp://there", "file:/somewhere", "http://127.0.0.1:9"])
def test_a_store_that_cannot_be_opened_is_a_user_error(uri: str) -> None:
    with pytest.raises(StoreError):
        open_store(uri, "tests")


def test_a_run_that_is_not_in_the_store(tracker: Tracker) -> None:
    assert tracker.exists_in_store()
    unknown = Tracker(tracker.uri, "0" * 32)
    assert not unknown.exists_in_store()
    with pytest.raises(TrackingError, match="not found") as rejected:
        unknown.log_steps(measured(1, 1))
    assert not isinstance(rejected.value, StoreUnavailableError), "a retry would not help"


def test_the_uri_is_configured_or_from_the_environment_or_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this order; relative sqlite paths become absolute."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store_uri(None, Path("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    assert store_uri(None, Path("runs")) == f"sqlite:///{tmp_path}/mine.db"
    assert store_uri("http://host:5000", Path("runs")) == "http://host:5000"


def test_the_command_to_view_the_store_shows_no_password() -> None:
    assert "secret" not in ui_command("postgresql://me:secret@host/db")
    assert ui_command("http://host:5000") == "open http://host:5000 in a browser"


def test_flatten_writes_paths() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, 2]}) == {"a.b.c": "1", "d": "[1, 2]"}
