"""MLflow's stores: the library imported without its noise, what it raises as errors of ours, a store opened.

Beside `tracking` the only module that imports mlflow.
"""

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
    """The store does not take what a run has to say. The results on disk do not depend on it."""


class StoreUnavailableError(TrackingError, UnavailableError):
    """For now: the store is locked, or not there."""


REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE")
"""MLflow's error codes of a store that has understood, and would answer the same again."""


def import_mlflow() -> Any:
    """MLflow, without usage reports, migration logs, and minutes of retries when a server is away."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # It prints the server's URI with the password in it.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
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
def store(uri: str, error: type[Exception] = TrackingError) -> Iterator[None]:
    """What MLflow and its database raise becomes one error of ours: StoreUnavailableError for a TrackingError that
    may be none later."""
    import_mlflow()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    # A database whose driver is not installed is an ImportError.
    except (MlflowException, SQLAlchemyError, ImportError, OSError) as e:
        if error is TrackingError and getattr(e, "error_code", None) not in REFUSALS:
            error = StoreUnavailableError
        raise error(redact(f"MLflow at {uri}: {first_line(e)}")) from e


def client_of(uri: str) -> "MlflowClient":
    """MLflow's client. Raises: StoreError."""
    mlflow = import_mlflow()
    with store(uri, StoreError):
        client: MlflowClient = mlflow.MlflowClient(uri)
        return client


def experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    """The experiment's id; made if there is none, with its artefacts beside a sqlite store."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        file = sqlite_file(uri)
        location = str(file.parent / "mlartifacts" / name) if file is not None else None
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:
            # Another process may have made it in between; if not, the error is real.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def open_store(uri: str, experiment: str) -> None:
    """Open the store, or make it, with the experiment in it: what takes seconds. Raises: StoreError."""
    if (file := sqlite_file(uri)) is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise StoreError(f"MLflow at {uri}: the folder cannot be made ({e})") from e
    client = client_of(uri)
    with store(uri, StoreError):
        experiment_id(client, uri, experiment)
