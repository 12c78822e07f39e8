"""What all verbs share: output, exit codes, checks of files to be written."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from ray_distill.cli.signals import Terminated, sigterm_as_interrupt
from ray_distill.errors import RunError, UserError, disk_free_message, is_disk_full, is_user_error
from ray_distill.storage.job_scratch import refuse_job_scratch
from ray_distill.utils.secrets import redact

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ray_distill.utils.progress import Update

STARTED = time.monotonic()
"""Approximately when the command was started."""

NOTHING_WRITTEN = "nothing was written"

stdout = Console(soft_wrap=not sys.stdout.isatty())
stderr = Console(stderr=True, soft_wrap=True)


def bar(description: str, total: int) -> "AbstractContextManager[Update]":
    """A progress bar on stdout."""
    from ray_distill.utils.progress import progress_bar

    return progress_bar(stdout, description, total)


def print_lines(*lines: str) -> None:
    """Print text as it is, without markup."""
    stdout.print("\n".join(lines), markup=False, highlight=False)


def fields(values: Mapping[str, object]) -> list[str]:
    """Indented lines `name  value`, for the summary after a command."""
    return [f"  {name:<14}{value}" for name, value in values.items()]


def warn(message: str, kind: str = "warning") -> None:
    """Print a warning to stderr."""
    stderr.print(f"{kind}: {message}", markup=False, highlight=False)


@contextmanager
def exit_codes(on_interrupt: str) -> Iterator[None]:
    """Turn expected exceptions into one message on stderr and an exit code.

    UserError, and system errors about a path: 2. RunError and other system errors, such as a full disk: 1. Ctrl-C: 130.
    SIGTERM: 143.

    Args:
        on_interrupt: what is left behind, or how to resume: printed after an interrupt or when the disk is full.
    """
    try:
        with sigterm_as_interrupt():
            yield
    except UserError as e:
        _print_error("error", e)
        raise typer.Exit(2) from None
    except RunError as e:
        _print_error("failed", e)
        raise typer.Exit(1) from None
    except KeyboardInterrupt as e:
        stderr.print(f"interrupted; {on_interrupt}", markup=False, highlight=False)
        raise typer.Exit(143 if isinstance(e, Terminated) else 130) from None
    except OSError as e:
        if is_user_error(e):
            _print_error("error", e)
            raise typer.Exit(2) from None
        _print_error("failed", _disk_full_message(e, on_interrupt) if is_disk_full(e) else e)
        raise typer.Exit(1) from None


def _disk_full_message(error: OSError, on_interrupt: str) -> str:
    free = f" ({disk_free_message(Path(error.filename))})" if isinstance(error.filename, str) else ""
    return f"{error}{free}; files written before are intact. Free disk space; {on_interrupt}"


def _print_error(kind: str, error: Exception | str) -> None:
    stderr.print(f"[red]{kind}:[/red] ", end="")
    stderr.print(redact(str(error)), markup=False, highlight=False)


def check_new_file(target: Path | None, option: str = "--out") -> None:
    """Raises: UserError unless the file can be created: it does not exist, its folder does and outlives a Ray job."""
    if target is None:
        return
    refuse_job_scratch(target, option)
    if target.exists():
        raise UserError(f"{target}: already exists; nothing was written. Use another {option}, or remove it.")
    if not target.parent.is_dir():
        raise UserError(
            f"{target}: folder {target.parent} does not exist; create it, or use another {option}"
        )


def check_new_png(target: Path, option: str = "--out") -> None:
    """Raises: UserError as `check_new_file`, or for a name that does not end in .png."""
    if target.suffix != ".png":
        raise UserError(f"{option} {target}: must end in .png")
    check_new_file(target, option)
