"""The command line: demo, distill, show; and search, evaluate, plan, doctor, bench, data, import and export, in modules of
their own.

A mistake of the user's is one message on stderr and exit code 2; a run that failed is one message and
exit code 1. Heavy imports happen inside the verbs, so that `--help` answers at once.
"""

import logging
import os
import sys
import threading
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_distill import __version__
from ray_distill.cli.bench import app as bench
from ray_distill.cli.console import (
    BEGAN,
    Out,
    Set,
    bar,
    check_picture,
    exit_codes,
    stderr,
    stdout,
)
from ray_distill.cli.data import app as data
from ray_distill.cli.doctor import doctor
from ray_distill.cli.evaluate import evaluate, say_table
from ray_distill.cli.exchange import export, import_
from ray_distill.cli.plan import plan
from ray_distill.cli.search import search
from ray_distill.config.config import Config, ConfigError
from ray_distill.config.load import load_config

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ray_distill.data.splits import DevelopmentData
    from ray_distill.pipeline import Outcome
    from ray_distill.storage.remote import Storage

app = typer.Typer(
    name="ray-distill",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ray-distill {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Distil a dataset into a few synthetic images per class with RaT-BPTT on Ray, and judge the result."""


def _errors() -> "AbstractContextManager[None]":
    return exit_codes("`ray-distill distill CONFIG.yaml --out DIR --resume` goes on from the last checkpoint")


def _say_plan(config: Config, folder: Path) -> None:
    t = config.truncation
    window, fewest = getattr(t, "window_length", None), config.cluster.min_workers
    stdout.print(
        f"{config.name}: {config.data.source} to {config.distilled.ipc} image(s) per class"
        f"{' with learnt labels' if config.distilled.learn_labels else ''} through "
        f"{config.network.name}{f', width {config.network.width}' if config.network.width else ''}; {t.rule}"
        f"{f', window {window}' if window else ''}, unroll {t.unroll_length}; {config.outer.steps} outer steps x "
        f"{config.replicas} replica(s) on {f'{fewest} to ' if fewest else ''}{config.cluster.num_workers} worker(s); "
        f"results in {folder}"
        f"{f', kept in {config.cluster.storage}' if config.cluster.storage else ''}",
        markup=False,
        highlight=False,
    )


def _say_outcome(outcome: "Outcome", files: "dict[str, Path | Storage]") -> None:
    from ray_distill.tracking.uri import ui_command

    say_table(outcome.evaluation)
    for warning in outcome.warnings:
        stderr.print(f"warning: {warning}", markup=False, highlight=False)
    lines = [f"took {outcome.wall_s:.0f} s", *(f"  {what:<14}{path}" for what, path in files.items())]
    lines.append(f"  {'MLflow':<14}{ui_command(outcome.tracker.uri)}")
    stdout.print("\n".join(lines), markup=False, highlight=False)


def _run(
    config: Config,
    out: Path | None,
    advice: str,
    *,
    resume: bool = False,
    replace: bool = False,
    unique: bool = False,
) -> None:
    """A whole run in its folder."""
    from ray_distill.pipeline import local_store_warning, open_run_folder

    place, uri = open_run_folder(config, out, resume=resume, replace=replace, unique=unique, advice=advice)
    storage = place.storage
    _say_plan(config, place.path)
    if note := local_store_warning(storage, uri, "run"):
        stderr.print(f"note: {note}", markup=False, highlight=False)

    def prepare() -> "DevelopmentData":
        from ray_distill.pipeline import prepare

        return prepare(config, uri, bar)

    from ray_distill.cluster.connection import ray_while_preparing

    with ray_while_preparing(prepare) as real:
        from ray_distill.pipeline import run_experiment

        outcome = run_experiment(config, real, place, uri, bar, resume=resume, replace=replace, began=BEGAN)
        files: dict[str, Path | Storage] = {
            "distilled set": place.artifact,
            "its picture": place.contact_sheet,
            "evaluation": place.evaluation,
            "summary": place.summary,
        }
        if storage:
            files["kept in"] = storage
        _say_outcome(outcome, files)


def demo_config(overrides: list[str]) -> Config:
    """The demo's configuration, with no more workers than this machine has cores unless told so."""
    with as_file(files("ray_distill") / "demo.yaml") as path:
        workers = min(load_config(path).cluster.num_workers, os.cpu_count() or 1)
        return load_config(path, [f"cluster.num_workers={workers}", *overrides])


@app.command()
def demo(out: Out = None, set_: Set = None) -> None:
    """Distil handwritten digits to one image per class, end to end, in about two minutes on two cores.

    Needs no download: the digits come with scikit-learn. Shows what every other run does too: Ray Train
    workers distil, a pool of Ray actors evaluates next to baselines, MLflow keeps the record.
    """
    with _errors():
        config = demo_config(set_ or [])
        _run(config, out, "Use another --out.", unique=True)


@app.command()
def distill(
    config_file: Annotated[
        Path, typer.Argument(metavar="CONFIG.yaml", help="The experiment: see experiments/.")
    ],
    out: Out = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the unfinished run in the folder, from its last checkpoint."
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Delete the run that is in the folder, its checkpoints and results, and start anew.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and stop; nothing is written.")
    ] = False,
    set_: Set = None,
) -> None:
    """Distil a dataset, evaluate the result, and record both.

    Same configuration, same numbers: whatever the number of workers, stopped and resumed or not.
    """
    with _errors():
        if resume and force:
            raise ConfigError("--force: would delete the run that --resume goes on with; give one of the two")
        config = load_config(config_file, set_ or [])
        if dry_run:
            print(config.to_yaml(), end="")
            print(f"# hash {config.hash}")
            return
        advice = "Use --resume to go on with the run in it, --force to delete that and start anew, or another --out."
        _run(config, out, advice, resume=resume, replace=force)


@app.command()
def show(
    artifact: Annotated[Path, typer.Argument(metavar="ARTEFACT", help="A distilled.parquet.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE.png", help="Where the picture goes. Default: beside the artefact."
        ),
    ] = None,
) -> None:
    """Say what a distilled set is and how to use it, and draw its contact sheet."""
    with _errors():
        from ray_distill.artifacts.dataset import DistilledDataset
        from ray_distill.distillation.outputs import contact_sheet_of

        dataset = DistilledDataset.load(artifact)
        target = out or artifact.with_suffix(".sheet.png")
        check_picture(target)
        stdout.print(dataset.describe(), markup=False, highlight=False)
        contact_sheet_of(dataset).save(target)
        stdout.print(f"picture: {target}", markup=False, highlight=False)


# Help shows the verbs in this order, after those above: from what comes first to what is rarely needed.
for verb in (evaluate, search, plan, export):
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
        _leave_at_once(e.code)
        raise


def _leave_at_once(code: object) -> None:
    """End the process, if a thread was left waiting in a library: it would be taken down under that thread.

    An interrupted run leaves one in Ray, and every other time that ended in a segmentation fault instead of the exit code,
    where the cluster was not of our own.
    """
    if any(thread.daemon for thread in threading.enumerate()):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))
