"""Where MLflow's store is: its URI, checked and understood without MLflow, whose import takes seconds."""

import os
import re
import shlex
from pathlib import Path

from ray_distill.errors import UserError
from ray_distill.utils.secrets import redact

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
"""Of stores."""


class StoreError(UserError):
    """The store that the user named cannot be opened."""


def store_uri(configured: str | None, folder: Path) -> str:
    """The tracking URI: the configured one, else $MLFLOW_TRACKING_URI, else a sqlite file in the folder.

    A relative sqlite path is made absolute: Ray's processes work in other folders. Raises: StoreError for a URI that is
    of no store.
    """
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
    if not re.match(rf"({'|'.join(SCHEMES)})(\+\w+)?://|databricks$", uri):
        raise StoreError(
            f"MLflow at {redact(uri)}: is no store; allowed: sqlite:///FILE, or what begins with one of "
            f"{', '.join(f'{scheme}://' for scheme in SCHEMES)}; in tracking.uri or $MLFLOW_TRACKING_URI"
        )
    file = sqlite_file(uri)
    return uri if file is None else f"sqlite:///{file.absolute()}"


def sqlite_file(uri: str) -> Path | None:
    """The file of a store that is one."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def check_there(uri: str) -> None:
    """Raises: StoreError for a store that is a file, and not on this machine: opening it would make an empty one."""
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise StoreError(
            f"MLflow at {uri}: there is no such file on this machine, and the run is recorded in it; bring it there, or "
            "start anew"
        )


def ui_command(uri: str) -> str:
    """What to do to look at the store."""
    if uri.startswith("http"):
        return f"open {redact(uri)} in a browser"
    return f"uv run mlflow ui --backend-store-uri {shlex.quote(redact(uri))}"
