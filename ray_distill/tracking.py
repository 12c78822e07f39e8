"""The record of a run in MLflow. The only module that imports mlflow.

Everything goes through `MlflowClient` with an explicit tracking URI and run id, never through MLflow's
process-wide state, so that any process may add to a run: the driver, Ray Train's controller, evaluation.
What is logged twice is kept once: a run that was resumed computes the very same numbers again.
"""

import json
import logging
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from ray_distill.errors import FailedError, MistakeError
from ray_distill.points import Point

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from PIL import Image

WITNESS = "seconds_per_outer_step"
"""A metric that every point has; its last step tells what is already logged."""

MAX_METRICS = 900
"""Metrics in one call; MLflow takes 1000, and a point's metrics stay together."""


class StoreError(MistakeError):
    """The store that the user named cannot be opened."""


class TrackingError(FailedError):
    """The store does not take what a run has to say. The results on disk do not depend on it."""


def store_uri(configured: str | None, folder: Path) -> str:
    """The tracking URI: the configured one, else $MLFLOW_TRACKING_URI, else a sqlite file in the folder.

    A relative sqlite path is made absolute: Ray's processes work in other folders.
    """
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri else f"sqlite:///{Path(path).absolute()}"


def shown(uri: str) -> str:
    """The URI without its password."""
    parts = urlsplit(uri)
    if not parts.password:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":***@")))


def ui_command(uri: str) -> str:
    """What to do to look at the store."""
    if uri.startswith("http"):
        return f"open {shown(uri)} in a browser"
    return f"uv run mlflow ui --backend-store-uri {shlex.quote(shown(uri))}"


def _import_mlflow() -> Any:
    """MLflow, without usage reports, migration logs, and minutes of retries when a server is away."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    import mlflow

    # After the import, which sets levels of its own.
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It prints the whole trace of what it raises, and we say it in a line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return mlflow


@contextmanager
def _store(uri: str, error: type[Exception] = TrackingError) -> Iterator[None]:
    """What MLflow raises becomes one error of ours."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise error(f"MLflow at {shown(uri)}: {reason}") from e


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

    def log_points(self, points: Sequence[Point]) -> int:
        """Add measurements of outer steps, those that the store does not have yet, each at the time when its
        step ended. Of several points of one step, the last.

        Returns: the last outer step that the store has. Raises: TrackingError.
        """
        client = self.client
        from mlflow.entities import Metric

        with _store(self.uri):
            by_step = {p.outer_step: p for p in points if p.outer_step > self._logged[0]}
            new = [by_step[step] for step in sorted(by_step)]
            while new:
                count, size = 0, 0
                while count < len(new) and (count == 0 or size + len(new[count].values) <= MAX_METRICS):
                    size += len(new[count].values)
                    count += 1
                part, new = new[:count], new[count:]
                metrics = [
                    Metric(n, v, int(p.unix_s * 1000), p.outer_step)
                    for p in part
                    for n, v in p.values.items()
                ]
                client.log_batch(self.run_id, metrics=metrics)
                self._logged[0] = part[-1].outer_step
            return self._logged[0]

    def points(self, names: Sequence[str]) -> list[Point]:
        """What `log_points` has added, as far as it has these names, in order. Raises: TrackingError."""
        client = self.client
        values: dict[int, dict[str, float]] = {}
        ended: dict[int, float] = {}
        with _store(self.uri):
            for name in names:
                for m in client.get_metric_history(self.run_id, name):
                    values.setdefault(m.step, {})[name] = m.value
                    ended[m.step] = m.timestamp / 1000
        return [Point(step, values[step], ended[step]) for step in sorted(values)]

    def log_metrics(self, values: Iterable[tuple[str, int, float]]) -> None:
        """(name, step, value) of what belongs to no outer step, such as a test accuracy after so many inner steps.

        Raises: TrackingError.
        """
        client = self.client
        from mlflow.entities import Metric

        now, metrics, there = int(time.time() * 1000), [], dict[str, set[tuple[int, float]]]()
        with _store(self.uri):
            for name, step, value in values:
                if name not in there:
                    history = client.get_metric_history(self.run_id, name)
                    there[name] = {(m.step, m.value) for m in history}
                if (step, value) not in there[name]:
                    metrics.append(Metric(name, value, now, step))
            client.log_batch(self.run_id, metrics=metrics)

    def set_tag(self, key: str, value: str) -> None:
        """A word about the run. Raises: TrackingError."""
        client = self.client
        with _store(self.uri):
            client.set_tag(self.run_id, key, value)

    def log_image(self, image: "Image.Image", key: str, outer_step: int) -> None:
        """A picture in a series over outer steps. Raises: TrackingError."""
        client = self.client
        with _store(self.uri):
            client.log_image(self.run_id, image, key=key, step=outer_step)

    def log_file(self, path: Path) -> None:
        """A file as an artefact of the run. Raises: TrackingError."""
        client = self.client
        with _store(self.uri):
            client.log_artifact(self.run_id, str(path))

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Rows with the same keys as a table that the UI can compare across runs, in the place of one of that name.

        Raises: TrackingError.
        """
        client = self.client
        with _store(self.uri):
            if name not in {artifact.path for artifact in client.list_artifacts(self.run_id)}:
                client.log_table(self.run_id, {key: [row[key] for row in rows] for key in rows[0]}, name)
            else:
                # `log_table` would append.
                table = {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
                client.log_text(self.run_id, json.dumps(table), name)

    def has_run(self) -> bool:
        """Whether the store knows the run. Raises: StoreError if it cannot be asked."""
        client = self.client
        from mlflow.exceptions import MlflowException

        with _store(self.uri, StoreError):
            try:
                client.get_run(self.run_id)
            except MlflowException as e:
                if e.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return False
                raise
            return True

    def reopen(self) -> None:
        """Mark the run as going on again. Raises: StoreError."""
        client = self.client
        with _store(self.uri, StoreError):
            client.update_run(self.run_id, status="RUNNING")

    def finish(self, status: str) -> None:
        """End the run: FINISHED, FAILED or KILLED. Raises: TrackingError."""
        client = self.client
        with _store(self.uri):
            client.set_terminated(self.run_id, status)


def _client(uri: str) -> "MlflowClient":
    mlflow = _import_mlflow()
    with _store(uri, StoreError):
        client: MlflowClient = mlflow.MlflowClient(uri)
        return client


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


def open_store(uri: str, experiment: str) -> None:
    """Open the store, or make it, with the experiment in it: what takes seconds. Raises: StoreError."""
    path = uri.removeprefix("sqlite:///")
    if path != uri:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    client = _client(uri)
    with _store(uri, StoreError):
        _experiment_id(client, uri, experiment)


def open_run(
    uri: str, experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
) -> Tracker:
    """A new run with its parameters in a store that is open (`open_store`). Raises: StoreError."""
    client = _client(uri)
    from mlflow.entities import Param

    with _store(uri, StoreError):
        run = client.create_run(_experiment_id(client, uri, experiment), run_name=name, tags=dict(tags))
        client.log_batch(run.info.run_id, params=[Param(k, v) for k, v in flatten(params).items()])
    return Tracker(uri, run.info.run_id)


@contextmanager
def recorded(tracker: Tracker) -> Iterator[None]:
    """The MLflow run ends with the block: FINISHED, KILLED from outside, or FAILED. Never hides an error."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        try:
            tracker.finish(status)
        except TrackingError as e:
            logging.getLogger(__name__).warning("the run could not be marked %s: %s", status, e)
