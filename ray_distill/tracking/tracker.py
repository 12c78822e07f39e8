"""The record of a run in MLflow.

Everything goes through `MlflowClient` with an explicit tracking URI and run id, never through MLflow's
process-wide state, so that any process may add to a run: the driver, Ray Train's controller, evaluation.
What is logged twice is kept once: a run that was resumed computes the very same numbers again.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_distill.core.metrics import StepMetrics
from ray_distill.tracking.store import (
    TrackingError,
    client_of,
    experiment_id,
    import_mlflow,
    open_store,
    store,
)
from ray_distill.tracking.uri import StoreError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from PIL import Image

WITNESS = "seconds_per_outer_step"
"""A metric that every point has; its last step tells what is already logged."""

MAX_METRICS = 900
"""Metrics in one call; MLflow takes 1000, and a point's metrics stay together."""

DAMAGED_TAG = "damaged_checkpoints"
"""Of a run that went on from an older checkpoint than its last: why."""

TRIAL_TAG = "ray_distill.trial"
"""The tag by which a search finds a trial's run again."""

PARENT_TAG = "mlflow.parentRunId"
"""MLflow's own, which nests one run under another."""


@dataclass(frozen=True)
class Tracker:
    """A run in a store, by its address; safe to send to other processes."""

    uri: str = field(repr=False)
    """It may hold a password."""
    run_id: str

    @cached_property
    def client(self) -> "MlflowClient":
        """MLflow's client, made in the process that first needs it. Raises: whatever MLflow does."""
        client: MlflowClient = import_mlflow().MlflowClient(self.uri)
        return client

    def __reduce__(self) -> tuple[type["Tracker"], tuple[str, str]]:
        return Tracker, (self.uri, self.run_id)

    @cached_property
    def _logged(self) -> list[int]:
        """The last outer step that the store has points of, in a cell that `log_points` moves on."""
        history = self.client.get_metric_history(self.run_id, WITNESS)
        return [max((m.step for m in history), default=0)]

    def log_points(self, points: Sequence[StepMetrics]) -> int:
        """Add measurements of outer steps, those that the store does not have yet, each at the time when its
        step ended. Of several points of one step, the last.

        Returns: the last outer step that the store has. Raises: TrackingError.
        """
        try:
            with store(self.uri):
                by_step = {p.outer_step: p for p in points if p.outer_step > self._logged[0]}
                new = [by_step[step] for step in sorted(by_step)]
                while new:
                    count, size = 0, 0
                    while count < len(new) and (count == 0 or size + len(new[count].values) <= MAX_METRICS):
                        size += len(new[count].values)
                        count += 1
                    part, new = new[:count], new[count:]
                    self.client.log_batch(self.run_id, metrics=_metrics(part))
                    self._logged[0] = part[-1].outer_step
                return self._logged[0]
        except TrackingError:
            # A store that did not answer may have taken them all the same: it is asked before the next time.
            self.__dict__.pop("_logged", None)
            raise

    def log_values(self, point: StepMetrics) -> None:
        """Metrics at a step of their own kind, such as the number of trials; the very same may be added again.

        Raises: TrackingError.
        """
        with store(self.uri):
            self.client.log_batch(self.run_id, metrics=_metrics([point]))

    def points(self, names: Sequence[str]) -> list[StepMetrics]:
        """What `log_points` has added, as far as it has these names, in order. Raises: TrackingError."""
        values: dict[int, dict[str, float]] = {}
        ended: dict[int, float] = {}
        with store(self.uri):
            for name in names:
                for m in self.client.get_metric_history(self.run_id, name):
                    values.setdefault(m.step, {})[name] = m.value
                    ended[m.step] = m.timestamp / 1000
        return [StepMetrics(step, values[step], ended[step]) for step in sorted(values)]

    def log_metrics(self, values: Iterable[tuple[str, int, float]]) -> None:
        """(name, step, value) that are no measurement of an outer step, such as a test accuracy after so many inner
        steps; what the store has already is passed over.

        Raises: TrackingError.
        """
        from mlflow.entities import Metric

        client = self.client
        now, metrics, there = int(time.time() * 1000), [], dict[str, set[tuple[int, float]]]()
        with store(self.uri):
            for name, step, value in values:
                if name not in there:
                    history = client.get_metric_history(self.run_id, name)
                    there[name] = {(m.step, m.value) for m in history}
                if (step, value) not in there[name]:
                    metrics.append(Metric(name, value, now, step))
            client.log_batch(self.run_id, metrics=metrics)

    def set_tag(self, key: str, value: str) -> None:
        """A word about the run. Raises: TrackingError."""
        with store(self.uri):
            self.client.set_tag(self.run_id, key, value)

    def log_image(self, image: "Image.Image", key: str, outer_step: int) -> None:
        """A picture in a series over outer steps. Raises: TrackingError."""
        with store(self.uri):
            self.client.log_image(self.run_id, image, key=key, step=outer_step)

    def log_file(self, path: Path) -> None:
        """A file as an artefact of the run; one of its name is replaced. Raises: TrackingError."""
        if not path.is_file():
            raise TrackingError(f"{path}: is not there any more, and cannot be logged")
        with store(self.uri):
            self.client.log_artifact(self.run_id, str(path))

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Rows with the same keys as a table that the UI can compare across runs; one of its name is replaced.

        Raises: TrackingError.
        """
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        with store(self.uri):
            if name in {artifact.path for artifact in self.client.list_artifacts(self.run_id)}:
                # MLflow would append to a table that is there.
                whole = {"columns": list(columns), "data": [list(row.values()) for row in rows]}
                self.client.log_dict(self.run_id, whole, name)
            else:
                self.client.log_table(self.run_id, columns, name)

    def has_run(self) -> bool:
        """Whether the store knows the run. Raises: StoreError if it cannot be asked."""
        with store(self.uri, StoreError):
            from mlflow.exceptions import MlflowException

            try:
                self.client.get_run(self.run_id)
            except MlflowException as e:
                if e.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return False
                raise
            return True

    def reopen(self) -> None:
        """Mark the run as going on again. Raises: TrackingError."""
        with store(self.uri):
            self.client.update_run(self.run_id, status="RUNNING")

    def finish(self, status: str, ended_unix_s: float | None = None) -> None:
        """End the run: FINISHED, FAILED or KILLED; now, or when it is said to have ended. Raises: TrackingError."""
        ended_ms = None if ended_unix_s is None else int(ended_unix_s * 1000)
        with store(self.uri):
            self.client.set_terminated(self.run_id, status, ended_ms)

    def open_trial(self, name: str, values: Mapping[str, Any], began_unix_s: float) -> "Tracker":
        """The run below this one of a search's trial, running: the one with this name, or a new one.

        Values that it has no parameter for become parameters. Raises: TrackingError.
        """
        with store(self.uri):
            from mlflow.entities import Param

            experiment = self.client.get_run(self.run_id).info.experiment_id
            ours = f"tags.`{PARENT_TAG}` = '{self.run_id}' and tags.`{TRIAL_TAG}` = '{name}'"
            found = self.client.search_runs([experiment], ours)
            tags = {PARENT_TAG: self.run_id, TRIAL_TAG: name, "kind": "trial"}
            began_ms = int(began_unix_s * 1000)
            run = found[0] if found else self.client.create_run(experiment, began_ms, tags, run_name=name)
            new = [Param(k, v) for k, v in flatten(values).items() if k not in run.data.params]
            self.client.log_batch(run.info.run_id, params=new)
            if run.info.status != "RUNNING":
                self.client.update_run(run.info.run_id, status="RUNNING")
            return Tracker(self.uri, run.info.run_id)


def _metrics(points: Sequence[StepMetrics]) -> "list[Metric]":
    from mlflow.entities import Metric

    return [Metric(n, v, int(p.unix_s * 1000), p.outer_step) for p in points for n, v in p.values.items()]


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


def try_store(uri: str) -> None:
    """Write a run into the store and delete it again. Raises: StoreError, TrackingError."""
    open_store(uri, "ray_distill-doctor")
    tracker = open_run(uri, "ray_distill-doctor", "doctor", {"written": True}, {})
    tracker.log_metrics([("written", 0, 1.0)])
    tracker.finish("FINISHED")
    with store(uri):
        tracker.client.delete_run(tracker.run_id)


def open_run(
    uri: str, experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
) -> Tracker:
    """A new run with its parameters in a store that is open (`open_store`). Raises: StoreError."""
    client = client_of(uri)
    from mlflow.entities import Param

    with store(uri, StoreError):
        run = client.create_run(experiment_id(client, uri, experiment), run_name=name, tags=dict(tags))
        client.log_batch(run.info.run_id, params=[Param(k, v) for k, v in flatten(params).items()])
    return Tracker(uri, run.info.run_id)


def final_status(error: BaseException | None) -> str:
    """MLflow's word for a run that ended with this error: stopped from outside is KILLED."""
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"


@contextmanager
def tracked_run(tracker: Tracker) -> Iterator[None]:
    """The MLflow run ends with the block: FINISHED, KILLED from outside, or FAILED. Never hides an error."""
    error: BaseException | None = None
    try:
        yield
    except BaseException as e:
        error = e
        raise
    finally:
        status = final_status(error)
        try:
            tracker.finish(status)
        except TrackingError as e:
            logging.getLogger(__name__).warning("the run could not be marked %s: %s", status, e)
