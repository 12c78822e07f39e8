"""A run in MLflow.

Everything goes through `MlflowClient` with an explicit tracking URI and run id, never through MLflow's global state, so
that any process can log to a run. Logging is idempotent, since a resumed run computes the same numbers again.
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
    create_client,
    get_or_create_experiment,
    import_mlflow,
    mlflow_errors,
    open_store,
)
from ray_distill.tracking.uri import StoreError

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from PIL import Image

EVERY_STEP_METRIC = "seconds_per_outer_step"
"""A metric of every outer step; its last step tells what is already logged."""

MAX_METRICS_PER_CALL = 900
"""MLflow takes 1000; the metrics of one step stay together."""

DAMAGED_TAG = "damaged_checkpoints"
"""Why a run resumed from an older checkpoint than its last."""

TRIAL_TAG = "ray_distill.trial"
"""A trial's name, by which a search finds its run."""

PARENT_TAG = "mlflow.parentRunId"
"""MLflow's tag for nested runs."""


@dataclass(frozen=True)
class Tracker:
    """A run in a store; can be pickled and sent to other processes."""

    uri: str = field(repr=False)
    """May contain a password."""
    run_id: str

    @cached_property
    def client(self) -> "MlflowClient":
        """Created on first use in each process. Raises: whatever MLflow does."""
        client: MlflowClient = import_mlflow().MlflowClient(self.uri)
        return client

    def __reduce__(self) -> tuple[type["Tracker"], tuple[str, str]]:
        return Tracker, (self.uri, self.run_id)

    @cached_property
    def _last_step(self) -> list[int]:
        """The last outer step in the store, in a list of one that `log_steps` updates."""
        history = self.client.get_metric_history(self.run_id, EVERY_STEP_METRIC)
        return [max((m.step for m in history), default=0)]

    def log_steps(self, steps: Sequence[StepMetrics]) -> int:
        """Log the metrics of outer steps that are not in the store yet, with the times at which the steps ended.

        Of several for one step, the last is logged. Returns: the last outer step in the store. Raises: TrackingError.
        """
        try:
            with mlflow_errors(self.uri):
                by_step = {s.outer_step: s for s in steps if s.outer_step > self._last_step[0]}
                new = [by_step[step] for step in sorted(by_step)]
                while new:
                    count, size = 0, 0
                    while count < len(new) and (
                        count == 0 or size + len(new[count].values) <= MAX_METRICS_PER_CALL
                    ):
                        size += len(new[count].values)
                        count += 1
                    batch, new = new[:count], new[count:]
                    self.client.log_batch(self.run_id, metrics=_metrics(batch))
                    self._last_step[0] = batch[-1].outer_step
                return self._last_step[0]
        except TrackingError:
            # A call that failed may have been applied all the same: ask the store again next time.
            self.__dict__.pop("_last_step", None)
            raise

    def log_batch(self, metrics: StepMetrics) -> None:
        """Metrics at a step that is no outer step, such as a number of trials, even if they are in the store already.

        Raises: TrackingError.
        """
        with mlflow_errors(self.uri):
            self.client.log_batch(self.run_id, metrics=_metrics([metrics]))

    def steps(self, names: Sequence[str]) -> list[StepMetrics]:
        """The metrics of these names that `log_steps` has logged, in order. Raises: TrackingError."""
        values: dict[int, dict[str, float]] = {}
        ended: dict[int, float] = {}
        with mlflow_errors(self.uri):
            for name in names:
                for m in self.client.get_metric_history(self.run_id, name):
                    values.setdefault(m.step, {})[name] = m.value
                    ended[m.step] = m.timestamp / 1000
        return [StepMetrics(step, values[step], ended[step]) for step in sorted(values)]

    def to_pandas(self) -> "pd.DataFrame":
        """All metrics of outer steps, a row for each step and a column for each metric. Raises: TrackingError."""
        import pandas as pd

        with mlflow_errors(self.uri):
            logged = self.client.get_run(self.run_id).data.metrics
        # Those of an evaluation, which are by inner step, have a slash.
        steps = self.steps(sorted(name for name in logged if "/" not in name and name != "wall_s"))
        rows = [{"outer_step": s.outer_step, **s.values} for s in steps]
        return pd.DataFrame(rows).set_index("outer_step") if rows else pd.DataFrame()

    def log_metrics(self, values: Iterable[tuple[str, int, float]]) -> None:
        """Log (name, step, value) with steps that are no outer steps, such as a test accuracy after some inner steps.

        What is in the store already is skipped. Raises: TrackingError.
        """
        from mlflow.entities import Metric

        client = self.client
        now, metrics, logged = int(time.time() * 1000), [], dict[str, set[tuple[int, float]]]()
        with mlflow_errors(self.uri):
            for name, step, value in values:
                if name not in logged:
                    history = client.get_metric_history(self.run_id, name)
                    logged[name] = {(m.step, m.value) for m in history}
                if (step, value) not in logged[name]:
                    metrics.append(Metric(name, value, now, step))
            client.log_batch(self.run_id, metrics=metrics)

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag of the run. Raises: TrackingError."""
        with mlflow_errors(self.uri):
            self.client.set_tag(self.run_id, key, value)

    def log_image(self, image: "Image.Image", key: str, outer_step: int) -> None:
        """Log an image of a series over outer steps. Raises: TrackingError."""
        with mlflow_errors(self.uri):
            self.client.log_image(self.run_id, image, key=key, step=outer_step)

    def log_file(self, path: Path) -> None:
        """Log a file as an artefact, in place of one with the same name. Raises: TrackingError."""
        if not path.is_file():
            raise TrackingError(f"{path}: no such file, so it cannot be logged")
        with mlflow_errors(self.uri):
            self.client.log_artifact(self.run_id, str(path))

    def log_table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Log rows with the same keys as a table that the UI can compare across runs, in place of one with that name.

        Raises: TrackingError.
        """
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        with mlflow_errors(self.uri):
            if name in {artifact.path for artifact in self.client.list_artifacts(self.run_id)}:
                # `log_table` would append to it.
                table = {"columns": list(columns), "data": [list(row.values()) for row in rows]}
                self.client.log_dict(self.run_id, table, name)
            else:
                self.client.log_table(self.run_id, columns, name)

    def exists_in_store(self) -> bool:
        """Whether the run is in the store. Raises: StoreError if the store cannot be reached."""
        with mlflow_errors(self.uri, StoreError):
            from mlflow.exceptions import MlflowException

            try:
                self.client.get_run(self.run_id)
            except MlflowException as e:
                if e.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return False
                raise
            return True

    def reopen(self) -> None:
        """Set the run's status to RUNNING again. Raises: TrackingError."""
        with mlflow_errors(self.uri):
            self.client.update_run(self.run_id, status="RUNNING")

    def finish(self, status: str, ended_unix_s: float | None = None) -> None:
        """End the run (FINISHED, FAILED or KILLED) now or at the given time. Raises: TrackingError."""
        ended_ms = None if ended_unix_s is None else int(ended_unix_s * 1000)
        with mlflow_errors(self.uri):
            self.client.set_terminated(self.run_id, status, ended_ms)

    def open_trial_run(self, name: str, values: Mapping[str, Any], began_unix_s: float) -> "Tracker":
        """The nested run of a search's trial, with status RUNNING; created if it does not exist.

        Values become parameters if the run has none of that name. Raises: TrackingError.
        """
        with mlflow_errors(self.uri):
            from mlflow.entities import Param

            experiment = self.client.get_run(self.run_id).info.experiment_id
            query = f"tags.`{PARENT_TAG}` = '{self.run_id}' and tags.`{TRIAL_TAG}` = '{name}'"
            runs = self.client.search_runs([experiment], query)
            tags = {PARENT_TAG: self.run_id, TRIAL_TAG: name, "kind": "trial"}
            began_ms = int(began_unix_s * 1000)
            run = runs[0] if runs else self.client.create_run(experiment, began_ms, tags, run_name=name)
            new = [Param(k, v) for k, v in flatten(values).items() if k not in run.data.params]
            self.client.log_batch(run.info.run_id, params=new)
            if run.info.status != "RUNNING":
                self.client.update_run(run.info.run_id, status="RUNNING")
            return Tracker(self.uri, run.info.run_id)


def _metrics(steps: Sequence[StepMetrics]) -> "list[Metric]":
    from mlflow.entities import Metric

    return [Metric(n, v, int(s.unix_s * 1000), s.outer_step) for s in steps for n, v in s.values.items()]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested plain data as `a.b` -> text, the form of MLflow's parameters."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = str(value)
    return flat


def probe_store(uri: str) -> None:
    """Write a run to the store and delete it. Raises: StoreError, TrackingError."""
    open_store(uri, "ray_distill-doctor")
    tracker = create_run(uri, "ray_distill-doctor", "doctor", {"written": True}, {})
    tracker.log_metrics([("written", 0, 1.0)])
    tracker.finish("FINISHED")
    with mlflow_errors(uri):
        tracker.client.delete_run(tracker.run_id)


def create_run(
    uri: str, experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]
) -> Tracker:
    """A new run with its parameters, in a store that `open_store` has prepared. Raises: StoreError."""
    client = create_client(uri)
    from mlflow.entities import Param

    with mlflow_errors(uri, StoreError):
        run = client.create_run(
            get_or_create_experiment(client, uri, experiment), run_name=name, tags=dict(tags)
        )
        client.log_batch(run.info.run_id, params=[Param(k, v) for k, v in flatten(params).items()])
    return Tracker(uri, run.info.run_id)


def final_status(error: BaseException | None) -> str:
    """MLflow's status of a run that ended with this error; KILLED for an interrupt."""
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"


@contextmanager
def tracked_run(tracker: Tracker) -> Iterator[None]:
    """End the MLflow run with the block: FINISHED, KILLED by an interrupt, or FAILED. Never hides an error."""
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
            logging.getLogger(__name__).warning("could not set the run's status to %s: %s", status, e)
