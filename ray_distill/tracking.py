"""The record of a run in MLflow. The only module that imports mlflow.

Everything goes through `MlflowClient` with an explicit tracking URI and run id, never through MLflow's
process-wide state, so that any process may add to a run: the driver, Ray Train's controller, evaluation.
Points are logged once: a tracker that takes up an existing run skips the steps that are already there,
since a resumed run computes the very same numbers again.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_distill.points import Point

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from PIL import Image

WITNESS = "seconds_per_outer_step"
"""A metric that every point has; its last step tells what is already logged."""


def _quiet() -> None:
    """No usage reports from a research tool, and no migration log when a store is made."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)


def store_uri(configured: str | None, folder: Path) -> str:
    """The tracking URI: the configured one, else $MLFLOW_TRACKING_URI, else a sqlite file in the folder."""
    return (
        configured or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve() / 'mlflow.db'}"
    )


def ui_command(uri: str) -> str:
    """What to type to look at the store."""
    if uri.startswith("sqlite:"):
        return f"uv run mlflow ui --backend-store-uri {uri}"
    return f"open {uri} in a browser"


@dataclass(frozen=True)
class Tracker:
    """A run in a store, by its address; safe to send to other processes."""

    uri: str
    run_id: str

    @cached_property
    def client(self) -> "MlflowClient":
        """MLflow's client, made in the process that first needs it."""
        return _client(self.uri)

    def __reduce__(self) -> tuple[type["Tracker"], tuple[str, str]]:
        return Tracker, (self.uri, self.run_id)

    @cached_property
    def _logged(self) -> list[int]:
        """The last outer step that the store has points of, in a cell that `log_points` moves on."""
        history = self.client.get_metric_history(self.run_id, WITNESS)
        return [max((m.step for m in history), default=0)]

    def log_points(self, points: Sequence[Point]) -> None:
        """Add measurements of outer steps, those that the store does not have yet."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = [p for p in points if p.outer_step > self._logged[0]]
        metrics = [Metric(name, value, now, p.outer_step) for p in new for name, value in p.values.items()]
        # 1000 metrics is the most that one call may carry.
        for first in range(0, len(metrics), 1000):
            self.client.log_batch(self.run_id, metrics=metrics[first : first + 1000])
        if new:
            self._logged[0] = new[-1].outer_step

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Metrics that belong to no outer step, such as a test accuracy."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, metrics=[Metric(k, v, now, 0) for k, v in values.items()])

    def log_image(self, image: "Image.Image", key: str, outer_step: int) -> None:
        """A picture in a series over outer steps."""
        self.client.log_image(self.run_id, image, key=key, step=outer_step)

    def log_file(self, path: Path) -> None:
        """A file as an artefact of the run."""
        self.client.log_artifact(self.run_id, str(path))

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Rows with the same keys as a table that the UI can compare across runs."""
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        self.client.log_table(self.run_id, columns, name)

    def has_run(self) -> bool:
        """Whether the store knows the run."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.get_run(self.run_id)
        except MlflowException:
            return False
        return True

    def reopen(self) -> None:
        """Mark the run as going on again."""
        self.client.update_run(self.run_id, status="RUNNING")

    def finish(self, status: str) -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        self.client.set_terminated(self.run_id, status)


def _client(uri: str) -> "MlflowClient":
    _quiet()
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    """The experiment's id; made if there is none, with its artefacts beside a sqlite store."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        beside = uri.removeprefix("sqlite:///")
        location = str(Path(beside).parent / "mlartifacts" / name) if beside != uri else None
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:
            # Another process may have made it in between; if not, the error is real.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested plain data as `a.b` -> text, as MLflow's parameters want it."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = str(value)
    return flat


def open_run(
    uri: str, experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
) -> Tracker:
    """A new run with its parameters. The folder of a sqlite store must exist."""
    from mlflow.entities import Param

    client = _client(uri)
    run = client.create_run(_experiment_id(client, uri, experiment), run_name=name, tags=dict(tags))
    client.log_batch(run.info.run_id, params=[Param(k, v) for k, v in flatten(params).items()])
    return Tracker(uri, run.info.run_id)
