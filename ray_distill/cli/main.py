"""The command line's entry point: the verbs, `--version`, and how the process exits.

A user's error is one message on stderr and exit code 2; a run that failed is one message and exit code 1. Heavy imports
happen inside the verbs, so that `--help` is fast.
"""

import logging
import os
import sys
import threading
from typing import Annotated

import typer

from ray_distill import __version__
from ray_distill.cli.bench import app as bench
from ray_distill.cli.data import app as data
from ray_distill.cli.distill import demo, distill
from ray_distill.cli.doctor import doctor
from ray_distill.cli.evaluate import evaluate
from ray_distill.cli.exchange import export, import_, show
from ray_distill.cli.plan import plan
from ray_distill.cli.search import search

app = typer.Typer(
    name="ray-distill",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ray-distill {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Distil a dataset into a few synthetic images per class with RaT-BPTT on Ray, and evaluate the result."""


# In the order of `--help`: the most used first.
for verb in (demo, distill, show, evaluate, search, plan, export):
    app.command()(verb)
app.command("import")(import_)
app.command()(doctor)
app.add_typer(data, name="data")
app.add_typer(bench, name="bench")


def main() -> None:
    """The entry point."""
    try:
        app()
    except SystemExit as e:
        _exit_now_if_threads_remain(e.code)
        raise


def _exit_now_if_threads_remain(code: object) -> None:
    """End the process without Python's shutdown if a daemon thread is still waiting inside a library.

    An interrupted run leaves one in Ray. On a cluster that this process had not started, every other shutdown under it was
    a segmentation fault instead of the exit code.
    """
    if any(thread.daemon for thread in threading.enumerate()):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))
