"""An undisturbed run to compare others with: the plain outer loop and the plain jobs, in this process."""

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


def _query_sqlite(store: Path, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(store) as connection:
        return connection.execute(sql).fetchall()


class Undisturbed:
    """The result of a run with this configuration, wherever it runs and however often it is interrupted."""

    def __init__(self, config: Config) -> None:
        # Again here, since a fixture may construct this before the one that runs for each test.
        torch.set_num_threads(1)
        b = self._bench = Bench(config)
        self.metrics: list[tuple[str, int, float]] = []
        """(name, outer step, value) of all metrics but seconds."""

        self.end = outer_loop(
            b.experiment,
            b.train,
            b.validation,
            RunState.start(b.initial, b.experiment.outer),
            SingleProcess(),
            lambda report: self.metrics.extend(
                (name, step.outer_step, value)
                for step in report.points
                for name, value in step.values.items()
                if not name.startswith("seconds_")
            ),
        )

    def check(self, folder: Path, store: Path | Query) -> None:
        """Asserts that the finished run in the folder has this D and validation accuracy, bit for bit, and that the
        store, sqlite's file or a database that holds nothing else, has one distillation, FINISHED, with each metric
        once and with this value."""
        best = self.end.best
        assert best is not None
        dataset = DistilledDataset.load(folder / "distilled.parquet")
        assert torch.equal(dataset.images_NCHW, best.data.images_NCHW.float())
        assert dataset.provenance["validation_accuracy"] == best.accuracy
        assert dataset.provenance["outer_step"] == best.outer_step
        query = partial(_query_sqlite, store) if isinstance(store, Path) else store
        runs = query(
            "select runs.run_uuid, status from runs join tags on tags.run_uuid = runs.run_uuid "
            "where tags.key = 'kind' and tags.value = 'distill'"
        )
        rows = query("select key, step, value from metrics")
        names = {name for name, _, _ in self.metrics}
        assert runs == [(json.loads((folder / "run.json").read_text())["run_id"], "FINISHED")]
        assert sorted(row for row in rows if row[0] in names) == sorted(self.metrics)

    def check_evaluation(self, folder: Path, store: Path | Query, config: Config) -> None:
        """Asserts that the finished run in the folder has the table that this configuration gives for this D, bit for bit,
        and that the store has one evaluation, FINISHED, below the run, with each mean once in both.

        The configuration may differ from the run's in how D is evaluated, at one horizon.
        """
        run_id = json.loads((folder / "run.json").read_text())["run_id"]
        dataset = to_dataset(config, self._bench.data, self.end, run_id)
        records = evaluate_here([load_evaluation_set(DISTILLED, dataset, config, self._bench.data)])
        results = read_results(folder / "distilled.evaluation" / "evaluation.json")
        assert results.failures == []
        assert numbers(results.records) == numbers(records)
        query = partial(_query_sqlite, store) if isinstance(store, Path) else store
        (evaluation,) = query(
            "select runs.run_uuid, status from runs join tags on tags.run_uuid = runs.run_uuid "
            f"where tags.key = 'mlflow.parentRunId' and tags.value = '{run_id}'"
        )
        assert evaluation[1] == "FINISHED"
        means = [(metric_name(row), row.inner_steps, row.mean) for row in result_rows(records)]
        rows = query("select run_uuid, key, step, value from metrics where key like 'test_accuracy/%'")
        assert sorted(rows) == sorted((run, *mean) for run in (run_id, evaluation[0]) for mean in means)


def status(folder: Path) -> str:
    """The status in MLflow of the run in the folder."""
    identity = json.loads((folder / "run.json").read_text())
    return str(MlflowClient(identity["uri"]).get_run(identity["run_id"]).info.status)
