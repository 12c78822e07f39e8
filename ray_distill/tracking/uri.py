"""The tracking URI, checked without importing MLflow, which takes seconds."""

import os
import re
import shlex
from pathlib import Path

from ray_distill.errors import UserError
from ray_distill.utils.secrets import redact

STORE_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
"""URI schemes of tracking stores."""


class StoreError(UserError):
    """The tracking store cannot be opened."""


def store_uri(configured: str | None, folder: Path) -> str:
    """The tracking URI: the configured one, else $MLFLOW_TRACKING_URI, else a sqlite file in the folder.

    A relative sqlite path becomes absolute, since Ray's processes run in other folders. Raises: StoreError for another
    scheme.
    """
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
    if not re.match(rf"({'|'.join(STORE_SCHEMES)})(\+\w+)?://|databricks$", uri):
        raise StoreError(
            f"MLflow at {redact(uri)}: not a tracking store; set tracking.uri or $MLFLOW_TRACKING_URI to "
            f"sqlite:///FILE, or to a URI with one of {', '.join(f'{scheme}://' for scheme in STORE_SCHEMES)}"
        )
    file = sqlite_file(uri)
    return uri if file is None else f"sqlite:///{file.absolute()}"


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite store; None for other stores."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def check_exists(uri: str) -> None:
    """Raises: StoreError for a sqlite store whose file does not exist: opening it would create an empty one."""
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise StoreError(
            f"MLflow at {uri}: no such file on this machine, but the run is recorded in it; copy it here, or start a "
            "new run"
        )


def ui_command(uri: str) -> str:
    """How to view the store."""
    if uri.startswith("http"):
        return f"open {redact(uri)} in a browser"
    return f"uv run mlflow ui --backend-store-uri {shlex.quote(redact(uri))}"
