"""The command line: demo, distill, evaluate, show; and plan, bench and data, in modules of their own.

A mistake of the user's is one message on stderr and exit code 2; a run that failed is one message and
exit code 1. Heavy imports happen inside the verbs, so that `--help` answers at once.
"""

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ray_distill import config as configuration
from ray_distill.cli_bench import app as bench
from ray_distill.cli_data import app as data
from ray_distill.cli_plan import plan
from ray_distill.config import Config, ConfigError
from ray_distill.submitted import check_kept
from ray_distill.terminal import Set, bar, check_target, errors, stderr, stdout

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from ray_distill.data.splits import DevelopmentData
    from ray_distill.evaluate import Row
    from ray_distill.run import Outcome

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
app.add_typer(bench, name="bench")
app.add_typer(data, name="data")
app.command()(plan)

Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder for all results, MLflow's store included. Default: runs/NAME, with one store for all in runs/.",
    ),
]


def _errors() -> "AbstractContextManager[None]":
    return errors("`ray-distill distill CONFIG.yaml --out DIR --resume` goes on from the last checkpoint")


def _place(config: Config, out: Path | None) -> tuple[Path, str]:
    """The run's folder and the tracking URI. Raises: MistakeError for a folder that would be thrown away."""
    from ray_distill.tracking import store_uri

    folder = out or RUNS / config.name
    check_kept(folder, "--out")
    return folder, store_uri(config.tracking.uri, out or RUNS)


def _say_plan(config: Config, folder: Path) -> None:
    t = config.truncation
    window = getattr(t, "window_length", None)
    stdout.print(
        f"{config.name}: {config.data.source} to {config.distilled.ipc} image(s) per class"
        f"{' with learnt labels' if config.distilled.learn_labels else ''} through "
        f"{config.network.name}{f', width {config.network.width}' if config.network.width else ''}; {t.rule}"
        f"{f', window {window}' if window else ''}, unroll {t.unroll_length}; {config.outer.steps} outer steps x "
        f"{config.replicas} replica(s) on {config.cluster.num_workers} worker(s); results in {folder}",
        markup=False,
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


def _say_outcome(outcome: "Outcome", files: dict[str, Path]) -> None:
    from ray_distill.tracking import ui_command

    stdout.print(_table(outcome.rows))
    for warning in outcome.warnings:
        stderr.print(f"warning: {warning}", markup=False, highlight=False)
    lines = [f"took {outcome.wall_s:.0f} s", *(f"  {what:<14}{path}" for what, path in files.items())]
    lines.append(f"  {'MLflow':<14}{ui_command(outcome.tracker.uri)}")
    stdout.print("\n".join(lines), markup=False, highlight=False)


@contextmanager
def _beside_ray(prepare: "Callable[[], DevelopmentData]") -> "Iterator[DevelopmentData]":
    """What `prepare` returns, and a connection to Ray: both take long, so they come about side by side."""
    with ThreadPoolExecutor(1) as side:
        preparing = side.submit(prepare)
        from ray_distill.cluster import cluster

        with cluster():
            yield preparing.result()


def _run(config: Config, folder: Path, uri: str, *, resume: bool, advice: str) -> None:
    """A whole run in the folder."""
    from ray_distill.run_folder import RunFolder

    place = RunFolder(folder)
    if resume:
        place.reopen(config)
    else:
        place.check_free(advice)
    _say_plan(config, folder)

    def prepare() -> "DevelopmentData":
        from ray_distill.run import prepare

        return prepare(config, uri, bar)

    with _beside_ray(prepare) as real:
        from ray_distill.run import carry_out

        outcome = carry_out(config, real, place, uri, bar, resume=resume, began=BEGAN)
        files = {
            "distilled set": place.artifact,
            "its picture": place.contact_sheet,
            "all numbers": place.evaluation,
            "summary": place.summary,
        }
        _say_outcome(outcome, files)


def _free_folder(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, .. that does not exist."""
    count = 1
    candidate = folder
    while candidate.exists():
        count += 1
        candidate = folder.with_name(f"{folder.name}-{count}")
    return candidate


def demo_config(overrides: list[str]) -> Config:
    """The demo's configuration, with no more workers than this machine has cores unless told so."""
    with as_file(files("ray_distill") / "demo.yaml") as path:
        workers = min(configuration.load(path).cluster.num_workers, os.cpu_count() or 1)
        return configuration.load(path, [f"cluster.num_workers={workers}", *overrides])


@app.command()
def demo(out: Out = None, set_: Set = None) -> None:
    """Distil handwritten digits to one image per class, end to end, in about two minutes on two cores.

    Needs no download: the digits come with scikit-learn. Shows what every other run does too: Ray Train
    workers distil, a pool of Ray actors evaluates next to baselines, MLflow keeps the record.
    """
    with _errors():
        config = demo_config(set_ or [])
        folder, uri = _place(config, out)
        advice = "Use another --out."
        _run(config, folder if out else _free_folder(folder), uri, resume=False, advice=advice)


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
        advice = "Use --resume to go on with the run in it, or another --out."
        _run(config, folder, uri, resume=resume, advice=advice)


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
    with _errors():
        from ray_distill.artifact import DistilledDataset

        dataset = DistilledDataset.load(artifact)
        config = _judging(dataset.config, set_ or [])
        target = out or artifact.with_name(f"{artifact.stem}.evaluation.json")
        check_target(target)
        uri = _store_of(config, artifact)

        def prepare() -> "DevelopmentData":
            from ray_distill.run import prepare

            return prepare(config, uri, bar, dataset.preprocessing)

        with _beside_ray(prepare) as real:
            from ray_distill.run import evaluate_artifact

            outcome = evaluate_artifact(config, dataset, artifact, target, uri, real, bar)
            _say_outcome(outcome, {"all numbers": target})


JUDGING = ("evaluation", "tracking", "data.source", "data.test_source", "data.root", "data.cache")
"""What `evaluate` can change; the rest is the set's own."""


def _judging(values: dict[str, Any], overrides: list[str]) -> Config:
    """The configuration in an artefact, with its evaluation changed. Raises: ConfigError for another key."""
    for override in overrides:
        key = override.partition("=")[0]
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in JUDGING):
            raise ConfigError(
                f"--set {override}: evaluate can change {', '.join(JUDGING)}; the rest is the set's own"
            )
    return configuration.parse(configuration.apply_overrides(values, overrides))


def _store_of(config: Config, artifact: Path) -> str:
    """The store that an evaluation is recorded in: the one that its run's folder names, if there is one."""
    from ray_distill.tracking import store_uri

    try:
        own = json.loads((artifact.parent / "run.json").read_text())["uri"]
    except (OSError, ValueError, KeyError, TypeError):
        own = None
    return store_uri(config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or own, artifact.parent)


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
        from ray_distill.artifact import DistilledDataset
        from ray_distill.run import sheet_of

        dataset = DistilledDataset.load(artifact)
        target = out or artifact.with_suffix(".sheet.png")
        if target.suffix != ".png":
            raise ConfigError(f"--out {target}: a picture's name ends in .png")
        check_target(target)
        stdout.print(dataset.describe(), markup=False, highlight=False)
        sheet_of(dataset).save(target)
        stdout.print(f"picture: {target}", markup=False, highlight=False)


def main() -> None:
    """The entry point."""
    app()
