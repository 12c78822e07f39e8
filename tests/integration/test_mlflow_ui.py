"""A search as MLflow's UI shows it, in a real browser."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from ray_distill.core.metrics import StepMetrics
from ray_distill.tracking.store import open_store
from ray_distill.tracking.tracker import create_run
from ray_distill.tuning.domains import Value
from ray_distill.tuning.figures import save_figures
from ray_distill.tuning.journal import TrialLog, ValidationResult
from ray_distill.tuning.results import leaderboard
from ray_distill.tuning.tracking import SearchTracking, tracked_search
from tests.helpers.browser import Browser, browser, eventually, missing
from tests.helpers.mlflow_server import MlflowServer, mlflow_server

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]

TRIALS = {
    "trial-000": (5, 20, "finished", 30),
    "trial-001": (10, 20, "stopped", 10),
    "trial-002": (20, 40, "finished", 30),
    "trial-003": (3, 40, "failed", 15),
}
"""Name -> window, unroll, status, outer steps."""


class Recorded(NamedTuple):
    """A search in a store."""

    server: MlflowServer
    experiment: str
    parent: str
    children: list[str]


def record_trial(tracking: SearchTracking, name: str) -> TrialLog:
    """A trial that is validated every 5 outer steps, the better the shorter its window."""
    window, unroll, status, steps = TRIALS[name]
    values: dict[str, Value] = {"truncation.window_length": window, "truncation.unroll_length": unroll}
    tracking.begin_trial(name, values)
    curve = []
    for step in range(1, steps + 1):
        measured = {"seconds_per_outer_step": 0.1, "outer_loss": 2.3 * math.exp(-step / 20)}
        if step % 5 == 0:
            accuracy = 0.9 - 0.01 * window - 0.5 * math.exp(-step / 10)
            measured |= {"validation_accuracy": accuracy}
            curve.append(ValidationResult(step, 0.2 * step, accuracy))
        tracking.log_steps(name, [StepMetrics(step, measured, 1.7e9 + step)])
    tracking.end_trial(name, status)  # type: ignore[arg-type]
    return TrialLog(name, values, status=status, curve=curve)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """A search of four trials, and a server that shows it."""
    folder = tmp_path_factory.mktemp("search")
    with mlflow_server(folder) as server:
        open_store(server.uri, "searches")
        parent = create_run(
            server.uri, "searches", "window_digits", {"scheduler": "asha"}, {"kind": "search"}
        )
        warnings: list[str] = []
        with tracked_search(parent, folder, warnings) as tracking:
            trials = [record_trial(tracking, name) for name in TRIALS]
            tracking.log_leaderboard(leaderboard(trials), save_figures(trials, folder))
        assert warnings == []
        experiment = parent.client.get_run(parent.run_id).info.experiment_id
        nested = parent.client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.run_id}'")
        yield Recorded(server, experiment, parent.run_id, [run.info.run_id for run in nested])


@pytest.fixture
def window(tmp_path: Path) -> Iterator[Browser]:
    with browser(tmp_path / "profile") as window:
        yield window


def page(recorded: Recorded, path: str) -> str:
    return f"{recorded.server.uri}/#/{path}"


def test_the_list_shows_the_search_with_its_trials_below(
    recorded: Recorded, window: Browser, tmp_path: Path
) -> None:
    """One row, which a click opens to five."""
    window.open(page(recorded, f"experiments/{recorded.experiment}/runs"))
    window.wait_for("window_digits", "5 matching runs")
    assert "trial-000" not in window.text()
    window.run("document.querySelector(`.ag-row[row-id='${arguments[0]}'] button`).click()", recorded.parent)
    window.wait_for("window_digits", *TRIALS)
    below = "return [...document.querySelectorAll('.ag-pinned-left-cols-container .ag-row')].map(r => r.innerText)"
    rows: list[Any] = eventually(lambda: [row for row in window.run(below) if row.strip()], "rows")
    assert len(rows) == 5
    window.screenshot(tmp_path / "list.png")


def test_the_searchs_page_has_its_leaderboard_and_pictures(
    recorded: Recorded, window: Browser, tmp_path: Path
) -> None:
    """The description is the leaderboard, as a table; a picture among the artefacts is drawn in its own size."""
    run = f"experiments/{recorded.experiment}/runs/{recorded.parent}"
    window.open(page(recorded, run))
    window.wait_for("window_digits", "best_validation_accuracy", "scheduler", "trial-000")
    cells = window.run("return [...document.querySelectorAll('table td')].map(cell => cell.innerText)")
    assert [cell for cell in cells if cell in TRIALS][:4] == [
        "trial-000",
        "trial-002",
        "trial-001",
        "trial-003",
    ]
    window.screenshot(tmp_path / "parent.png")
    window.open(page(recorded, f"{run}/artifacts/parallel_coordinates.png"))
    window.wait_for("leaderboard.json", "window_unroll.png", "accuracy_over_seconds.png")
    widths = "return [...document.images].filter(i => i.src.startsWith('blob:')).map(i => i.naturalWidth)"
    assert eventually(lambda: [width for width in window.run(widths) if width > 0], "the picture")[0] > 700
    window.screenshot(tmp_path / "picture.png")


def test_trials_can_be_compared(recorded: Recorded, window: Browser, tmp_path: Path) -> None:
    ids, experiments = quote(json.dumps(recorded.children)), quote(json.dumps([recorded.experiment]))
    window.open(page(recorded, f"compare-runs?runs={ids}&experiments={experiments}"))
    window.wait_for(
        "Comparing 4 Runs", *TRIALS, "truncation.window_length", "validation_accuracy", "outer_loss"
    )
    window.screenshot(tmp_path / "compare.png")
