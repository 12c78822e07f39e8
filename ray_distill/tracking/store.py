"""Opening an MLflow store: a quiet import of the library, its errors as ours."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ray_distill.errors import RunError, first_line
from ray_distill.tracking.retry_queue import UnavailableError
from ray_distill.tracking.uri import StoreError, sqlite_file
from ray_distill.utils.secrets import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient


class TrackingError(RunError):
    """The store rejects a call. Results on disk do not depend on it."""


class StoreUnavailableError(TrackingError, UnavailableError):
    """The store is locked or cannot be reached; a retry may succeed."""


PERMANENT_ERRORS = (
    "INVALID_PARAMETER_VALUE",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_STATE",
)
"""MLflow's error codes that a retry would not change."""


def import_mlflow() -> Any:
    """MLflow, without usage reports, migration logs, and minutes of retries when a server is away."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # MLflow prints the server's URI, password included.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    import mlflow

    # After the import, which sets its own levels.
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It logs the full traceback of what it raises; we report one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return mlflow


@contextmanager
def mlflow_errors(uri: str, error: type[Exception] = TrackingError) -> Iterator[None]:
    """Turns the errors of MLflow and its database into `error`; a TrackingError that a retry may fix into
    StoreUnavailableError."""
    import_mlflow()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    # A missing database driver is an ImportError.
    except (MlflowException, SQLAlchemyError, ImportError, OSError) as e:
        if error is TrackingError and getattr(e, "error_code", None) not in PERMANENT_ERRORS:
            error = StoreUnavailableError
        raise error(redact(f"MLflow at {uri}: {first_line(e)}")) from e


def create_client(uri: str) -> "MlflowClient":
    """A client for the store. Raises: StoreError."""
    mlflow = import_mlflow()
    with mlflow_errors(uri, StoreError):
        client: MlflowClient = mlflow.MlflowClient(uri)
        return client


def get_or_create_experiment(client: "MlflowClient", uri: str, name: str) -> str:
    """The experiment's id; a new experiment keeps its artefacts beside a sqlite store."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        file = sqlite_file(uri)
        location = str(file.parent / "mlartifacts" / name) if file is not None else None
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:
            # Another process may have created it in between; if not, the error is real.
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    return str(experiment.experiment_id)


def open_store(uri: str, experiment: str) -> None:
    """Open or create the store and the experiment, which takes seconds. Raises: StoreError."""
    if (file := sqlite_file(uri)) is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise StoreError(f"MLflow at {uri}: its folder cannot be created ({e})") from e
    client = create_client(uri)
    with mlflow_errors(uri, StoreError):
        get_or_create_experiment(client, uri, experiment)
