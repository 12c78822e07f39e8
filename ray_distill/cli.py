"""The command line: demo, distill, evaluate, show.

A mistake of the user's is one message on stderr and exit code 2; a run that failed is one message and
exit code 1. Heavy imports happen inside the verbs, so that `--help` answers at once.
"""

import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ray_distill import config as configuration
from ray_distill.config import Config, ConfigError
from ray_distill.errors import FailedError, MistakeError

if TYPE_CHECKING:
    from ray_distill.evaluate import Row
    from ray_distill.run import Bar, Outcome, Prepared

BEGAN = time.monotonic()
RUNS = Path("runs")
"""Where runs go that were given no folder."""

app = typer.Typer(
    name="ray-distill",
    help="Distil a dataset into a few synthetic images per class with RaT-BPTT on Ray, and judge the result.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
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
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder for all results, MLflow's store included. Default: runs/NAME, with one store for all in runs/.",
    ),
]


@contextmanager
def _errors() -> Iterator[None]:
    """Exceptions that a person can do something about, as one message and an exit code."""
    try:
        yield
    except MistakeError as e:
        _say_error("error", e)
        raise typer.Exit(2) from None
    except FailedError as e:
        _say_error("failed", e)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        stderr.print("stopped; the same command with --resume goes on from the last checkpoint", markup=False)
        raise typer.Exit(130) from None


def _say_error(kind: str, error: Exception) -> None:
    stderr.print(f"[red]{kind}:[/red] ", end="")
    stderr.print(str(error), markup=False, highlight=False)


def _bar() -> "Bar":
    from ray_distill.progress import progress_bar

    return lambda what, total: progress_bar(stdout, what, total)


def _place(config: Config, out: Path | None) -> tuple[Path, str]:
    """The run's folder and the tracking URI."""
    from ray_distill.tracking import store_uri

    folder = out or RUNS / config.name
    return folder, store_uri(config.tracking.uri, out or RUNS)


def _say_plan(config: Config, folder: Path) -> None:
    t = config.truncation
    window = getattr(t, "window_length", None)
    stdout.print(
        f"[bold]{config.name}[/bold]: {config.data.source} to {config.distilled.ipc} image(s) per class through "
        f"{config.network.name}, width {config.network.width}; {t.rule}"
        f"{f', window {window}' if window else ''}, unroll {t.unroll_length}; {config.outer.steps} outer steps x "
        f"{config.replicas} replica(s) on {config.cluster.num_workers} worker(s); results in {folder}",
        highlight=False,
    )


def _table(rows: "list[Row]") -> Table:
    """Accuracies in percent."""
    table = Table("trained on", "network", "test accuracy", "std", "n")
    for row in rows:
        std = "" if row.std is None else f"{100 * row.std:.1f}"
        name = row.trained_on.replace("_", " ")
        table.add_row(name, row.network, f"{100 * row.mean:.1f}%", std, str(row.n))
    return table


def _say_outcome(outcome: "Outcome") -> None:
    from ray_distill.tracking import ui_command

    folder = outcome.folder
    stdout.print(_table(outcome.rows))
    stdout.print(f"took {outcome.wall_s:.0f} s", highlight=False)
    for what, path in (
        ("distilled set", folder.artifact),
        ("its picture", folder.contact_sheet),
        ("all numbers", folder.evaluation),
        ("summary", folder.summary),
    ):
        stdout.print(f"  {what:<14}{path}", highlight=False)
    stdout.print(f"  {'MLflow':<14}{ui_command(outcome.tracker.uri)}", highlight=False)


def _run(config: Config, folder: Path, uri: str, *, resume: bool) -> None:
    """Prepare the run and start Ray side by side, since both take long; then carry it out."""
    from ray_distill.run_folder import RunFolder

    place, bar = RunFolder(folder), _bar()
    if resume:
        place.reopen(config)
    else:
        place.check_free("Use --resume to go on with the run in it, or another --out.")
    _say_plan(config, folder)

    def prepare() -> "Prepared":
        from ray_distill.run import prepare

        return prepare(config, place, uri, bar, resume=resume, began=BEGAN)

    with ThreadPoolExecutor(1) as side:
        preparing = side.submit(prepare)
        from ray_distill.cluster import cluster

        with cluster():
            prepared = preparing.result()
            from ray_distill.run import carry_out

            outcome = carry_out(config, prepared, bar)
            _say_outcome(outcome)


def _free_folder(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, .. that does not exist."""
    count = 1
    candidate = folder
    while candidate.exists():
        count += 1
        candidate = folder.with_name(f"{folder.name}-{count}")
    return candidate


def demo_config(overrides: list[str]) -> Config:
    """The demo's configuration, with no more workers than this machine has cores."""
    with as_file(files("ray_distill") / "demo.yaml") as path:
        config = configuration.load(path, overrides)
        workers = min(config.cluster.num_workers, os.cpu_count() or 1)
        return configuration.load(path, [*overrides, f"cluster.num_workers={workers}"])


@app.command()
def demo(out: Out = None, set_: Set = None) -> None:
    """Distil handwritten digits to one image per class, end to end, in about two minutes on two cores.

    Needs no download: the digits come with scikit-learn. Shows what every other run does too: Ray Train
    workers distil, a pool of Ray actors evaluates next to baselines, MLflow keeps the record.
    """
    with _errors():
        config = demo_config(set_ or [])
        folder, uri = _place(config, out)
        _run(config, folder if out else _free_folder(folder), uri, resume=False)


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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and stop; nothing is written.")
    ] = False,
    set_: Set = None,
) -> None:
    """Distil a dataset, evaluate the result, and record both.

    Same configuration, same numbers: whatever the number of workers, stopped and resumed or not.
    """
    with _errors():
        config = configuration.load(config_file, set_ or [])
        if dry_run:
            print(config.to_yaml(), end="")
            print(f"# hash {config.hash}")
            return
        folder, uri = _place(config, out)
        _run(config, folder, uri, resume=resume)


@app.command()
def evaluate(
    artifact: Annotated[Path, typer.Argument(metavar="ARTEFACT", help="A distilled.parquet.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where the numbers go. Default: beside the artefact."),
    ] = None,
    set_: Set = None,
) -> None:
    """Retrain networks on a distilled set and on baselines, and test them.

    The set brings its own protocol and data source; `--set evaluation.networks=[convnet3,mlp2]` and the
    like change how it is judged.
    """
    from ray_distill.artifact import DistilledDataset

    with _errors():
        dataset = DistilledDataset.load(artifact)
        config = configuration.parse(configuration.apply_overrides(dataset.config, set_ or []))
        target = out or artifact.with_name(f"{artifact.stem}.evaluation.json")
        if target.exists():
            raise ConfigError(f"{target}: exists; nothing was written. Use another --out, or remove it.")
        from ray_distill.run import evaluate_artifact
        from ray_distill.tracking import store_uri, ui_command

        uri = store_uri(config.tracking.uri, artifact.parent)
        rows = evaluate_artifact(config, dataset, artifact, target, uri, _bar())
        stdout.print(_table(rows))
        stdout.print(f"  {'all numbers':<14}{target}", highlight=False)
        stdout.print(f"  {'MLflow':<14}{ui_command(uri)}", highlight=False)


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
    from ray_distill import pictures
    from ray_distill.artifact import DistilledDataset

    with _errors():
        dataset = DistilledDataset.load(artifact)
        target = out or artifact.with_suffix(".png")
        stdout.print(dataset.describe(), markup=False, highlight=False)
        classes = dataset.labels_NK.argmax(dim=1).tolist()
        pictures.contact_sheet(dataset.to_pixels(), classes, dataset.class_names).save(target)
        stdout.print(f"picture: {target}", highlight=False)


def main() -> None:
    """The entry point."""
    app()
