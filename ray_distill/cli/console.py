"""What all verbs share: where they print, how an error becomes a message and an exit code, what they check."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ray_distill.cli.signals import Terminated, sigterm_as_interrupt
from ray_distill.errors import RunError, UserError, disk_free_message, is_disk_full, is_user_error
from ray_distill.storage.job_scratch import refuse_job_scratch
from ray_distill.utils.secrets import redact

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

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
