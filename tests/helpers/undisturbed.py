"""The run that nothing disturbs, to hold others against: the bare loop and the bare jobs, in this process."""

import json
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient

from ray_distill.artifacts.dataset import DistilledDataset
from ray_distill.config.config import Config
from ray_distill.core.distributed import SingleProcess
from ray_distill.core.outer_loop import outer_loop
from ray_distill.core.state import RunState
from ray_distill.distillation.outputs import to_dataset
from ray_distill.evaluation.report import read_results
from ray_distill.evaluation.results import result_rows
from ray_distill.evaluation.run import metric_name
from ray_distill.evaluation.worker import load_evaluation_set
from ray_distill.pipeline import DISTILLED
from tests.helpers.evaluated_sets import evaluate_here, numbers
from tests.helpers.tiny import Bench

Query = Callable[[str], list[tuple[Any, ...]]]
"""SQL -> rows."""


def _ask_sqlite(store: Path, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(store) as connection:
        return connection.execute(sql).fetchall()


class Undisturbed:
    """What a run of this configuration must come to, wherever and however often it was interrupted."""

    def __init__(self, config: Config) -> None:
        # Also where this is made by a fixture that comes before the one for each test.
        torch.set_num_threads(1)
        b = self._bench = Bench(config)
        self.points: list[tuple[str, int, float]] = []
        """(name, outer step, value) of all measurements, without seconds."""

        self.end = outer_loop(
            b.experiment,
            b.train,
            b.validation,
            RunState.start(b.initial, b.experiment.outer),
            SingleProcess(),
            lambda report: self.points.extend(
                (name, point.outer_step, value)
                for point in report.points
                for name, value in point.values.items()
                if not name.startswith("seconds_")
            ),
        )

    def check(self, folder: Path, store: Path | Query) -> None:
        """Asserts that the finished run in the folder has this D and validation accuracy, bit for bit, and that the
        store, sqlite's file or a database that holds nothing else, has one distillation, FINISHED, with each measurement
        once and of this value."""
        best = self.end.best
        assert best is not None
        dataset = DistilledDataset.load(folder / "distilled.parquet")
        assert torch.equal(dataset.images_NCHW, best.data.images_NCHW.float())
        assert dataset.provenance["validation_accuracy"] == best.accuracy
        assert dataset.provenance["outer_step"] == best.outer_step
        ask = partial(_ask_sqlite, store) if isinstance(store, Path) else store
        runs = ask(
            "select runs.run_uuid, status from runs join tags on tags.run_uuid = runs.run_uuid "
            "where tags.key = 'kind' and tags.value = 'distill'"
        )
        rows = ask("select key, step, value from metrics")
        names = {name for name, _, _ in self.points}
        assert runs == [(json.loads((folder / "run.json").read_text())["run_id"], "FINISHED")]
        assert sorted(row for row in rows if row[0] in names) == sorted(self.points)

    def check_evaluation(self, folder: Path, store: Path | Query, config: Config) -> None:
        """Asserts that the finished run in the folder has the table that this configuration gives for this D, bit for bit,
        and that the store has one evaluation, FINISHED, below the run, with each mean once in both.

        The configuration may differ from the run's own in how D is judged, at one horizon.
        """
        run_id = json.loads((folder / "run.json").read_text())["run_id"]
        dataset = to_dataset(config, self._bench.data, self.end, run_id)
        records = evaluate_here([load_evaluation_set(DISTILLED, dataset, config, self._bench.data)])
        found = read_results(folder / "distilled.evaluation" / "evaluation.json")
        assert found.failures == []
        assert numbers(found.records) == numbers(records)
        ask = partial(_ask_sqlite, store) if isinstance(store, Path) else store
        (judged,) = ask(
            "select runs.run_uuid, status from runs join tags on tags.run_uuid = runs.run_uuid "
            f"where tags.key = 'mlflow.parentRunId' and tags.value = '{run_id}'"
        )
        assert judged[1] == "FINISHED"
        means = [(metric_name(row), row.inner_steps, row.mean) for row in result_rows(records)]
        rows = ask("select run_uuid, key, step, value from metrics where key like 'test_accuracy/%'")
        assert sorted(rows) == sorted((run, *mean) for run in (run_id, judged[0]) for mean in means)


def status(folder: Path) -> str:
    """What MLflow says of the run in the folder."""
    identity = json.loads((folder / "run.json").read_text())
    return str(MlflowClient(identity["uri"]).get_run(identity["run_id"]).info.status)
