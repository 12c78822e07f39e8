"""What all verbs share: where they print, how an error becomes a message and an exit code, what they check."""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console

from ray_distill.cli.signals import Terminated, refuse_job_scratch, sigterm_as_interrupt
from ray_distill.errors import RunError, UserError, disk_free_message, is_disk_full, is_user_error
from ray_distill.utils.secrets import redact

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from ray_distill.config.config import Config
    from ray_distill.storage.remote import Storage
    from ray_distill.utils.progress import Update

BEGAN = time.monotonic()
"""About when the command did."""

stdout = Console(soft_wrap=not sys.stdout.isatty())
stderr = Console(stderr=True, soft_wrap=True)

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Lay a value over the configuration, e.g. `outer.lr=0.01`. Repeatable.",
    ),
]

RUNS = Path("runs")
"""Where runs go that were given no folder."""

Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder for all results, MLflow's store included. Default: runs/NAME, with one store for all in runs/.",
    ),
]


def bar(what: str, total: int) -> "AbstractContextManager[Update]":
    """A progress bar on stdout."""
    from ray_distill.utils.progress import progress_bar

    return progress_bar(stdout, what, total)


PreparedT = TypeVar("PreparedT")


@contextmanager
def ray_while_preparing(
    prepare: "Callable[[], PreparedT]", *, dashboard: bool = False
) -> Iterator[PreparedT]:
    """What `prepare` returns, and a connection to Ray: both take long, so they come about side by side."""
    # Two threads that import Ray at a time may each find what the other has half done.
    from ray_distill.cluster.connection import cluster

    with ThreadPoolExecutor(1) as side:
        preparing = side.submit(prepare)
        with cluster(dashboard=dashboard):
            yield preparing.result()


@contextmanager
def exit_codes(on_interrupt: str) -> Iterator[None]:
    """Exceptions that a person can do something about, as one message and an exit code.

    A mistake of the user's, such as a path that cannot be used: exit code 2. Work that failed, or a world that did, such
    as a full disk: 1. Ctrl-C: 130, SIGTERM: 143. Of what was interrupted or found no room it says what it leaves.
    """
    try:
        with sigterm_as_interrupt():
            yield
    except UserError as e:
        _say_error("error", e)
        raise typer.Exit(2) from None
    except RunError as e:
        _say_error("failed", e)
        raise typer.Exit(1) from None
    except KeyboardInterrupt as e:
        stderr.print(f"stopped; {on_interrupt}", highlight=False)
        raise typer.Exit(143 if isinstance(e, Terminated) else 130) from None
    except OSError as e:
        if is_user_error(e):
            _say_error("error", e)
            raise typer.Exit(2) from None
        _say_error("failed", _with_advice(e, on_interrupt) if is_disk_full(e) else e)
        raise typer.Exit(1) from None


def _with_advice(error: OSError, on_interrupt: str) -> str:
    room = f" ({disk_free_message(Path(error.filename))})" if isinstance(error.filename, str) else ""
    return f"{error}{room}; what was written before is whole. Make room there; {on_interrupt}"


def _say_error(kind: str, error: Exception | str) -> None:
    stderr.print(f"[red]{kind}:[/red] ", end="")
    stderr.print(redact(str(error)), markup=False, highlight=False)


def storage_of(config: "Config") -> "Storage | None":
    """The `cluster.storage`, tried out. Raises: UserError for one that cannot be used, or would be thrown away."""
    if config.cluster.storage is None:
        return None
    from ray_distill.storage.remote import Storage

    storage = Storage.at(config.cluster.storage)
    if storage.is_local:
        refuse_job_scratch(storage.folder, "cluster.storage")
    return storage


def note_mlflow_file(storage: "Storage | None", uri: str, what: str) -> None:
    """Say that a run, or a search, that is kept elsewhere is recorded on this machine alone."""
    from ray_distill.tracking.uri import sqlite_file

    if storage and not storage.is_local and (file := sqlite_file(uri)):
        stderr.print(
            f"note: MLflow's store is a file, {file}; without it the {what} cannot go on on another machine. Set "
            "MLFLOW_TRACKING_URI to a server that both reach",
            markup=False,
            highlight=False,
        )


def check_target(target: Path, option: str = "--out") -> None:
    """Raises: UserError if a file could not be written there, or would be written over or thrown away."""
    refuse_job_scratch(target, option)
    if target.exists():
        raise UserError(f"{target}: exists; nothing was written. Use another {option}, or remove it.")
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}")


def check_picture(target: Path, option: str = "--out") -> None:
    """Raises: UserError as `check_target`, or for a name that is not that of a PNG."""
    if target.suffix != ".png":
        raise UserError(f"{option} {target}: a picture's name ends in .png")
    check_target(target, option)
