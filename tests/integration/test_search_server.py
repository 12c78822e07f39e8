"""A search logged to a real MLflow server that crashes during the search and is restarted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_distill.core.metrics import StepMetrics
from ray_distill.tracking.store import open_store
from ray_distill.tracking.tracker import Tracker, create_run
from ray_distill.tuning.tracking import SearchTracking
from tests.helpers.browser import eventually
from tests.helpers.mlflow_server import MlflowServer, mlflow_server

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path) as server:
        yield server


def steps(first: int, last: int) -> list[StepMetrics]:
    return [
        StepMetrics(s, {"seconds_per_outer_step": 0.1, "outer_loss": 1.0 / s}, 1e9 + s)
        for s in range(first, last + 1)
    ]


def children(parent: Tracker) -> dict[str, Any]:
    experiment = parent.client.get_run(parent.run_id).info.experiment_id
    runs = parent.client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.run_id}'")
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def test_a_server_that_crashes_loses_and_duplicates_nothing(server: MlflowServer, tmp_path: Path) -> None:
    """SIGKILL for the server while steps are being sent; meanwhile trials continue, one starts and one ends. After its restart
    it has every step of every trial once, and each trial once, with its own end."""
    open_store(server.uri, "tests")
    parent = create_run(server.uri, "tests", "search", {}, {})
    tracking = SearchTracking(parent, tmp_path)
    for name in ("a", "b"):
        tracking.begin_trial(name, {"inner.lr": 0.1})
    for step in range(1, 31):
        for name in ("a", "b"):
            tracking.log_steps(name, steps(step, step))
    eventually(lambda: tracking.queue.num_pending < 30, "the first steps")
    assert tracking.queue.num_pending > 0, "the server was not killed during the search"
    server.stop()
    tracking.log_steps("a", steps(31, 40))
    tracking.end_trial("a", "stopped")
    tracking.begin_trial("c", {"inner.lr": 0.3})
    tracking.log_steps("c", steps(1, 5))
    eventually(lambda: tracking.queue.last_error, "an error, as the server is down")
    server.start()
    tracking.log_steps("b", steps(31, 35))
    for name in ("b", "c"):
        tracking.end_trial(name, "finished")
    assert tracking.close("FINISHED") == []
    runs = children(parent)
    assert {name: run.info.status for name, run in runs.items()} == {
        "a": "KILLED",
        "b": "FINISHED",
        "c": "FINISHED",
    }
    for name, last in {"a": 40, "b": 35, "c": 5}.items():
        history = parent.client.get_metric_history(runs[name].info.run_id, "outer_loss")
        assert [m.step for m in history] == list(range(1, last + 1)), name
    assert parent.client.get_run(parent.run_id).info.status == "FINISHED"
