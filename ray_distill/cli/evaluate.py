"""The verb `evaluate`: how good distilled sets are, in one table."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ray_distill.cli.console import Set, bar, exit_codes, stderr, stdout
from ray_distill.cli.options import (
    ImagesKey,
    LabelsKey,
    LayoutOption,
    Like,
    SpaceOption,
    external_set_options,
)
from ray_distill.config.config import ConfigError
from ray_distill.storage.job_scratch import refuse_job_scratch

if TYPE_CHECKING:
    from ray_distill.artifacts.dataset import DistilledDataset
    from ray_distill.artifacts.importer import ExternalSpec
    from ray_distill.cluster.actor_pool import PoolStats
    from ray_distill.evaluation.results import ResultRow, Retraining
    from ray_distill.evaluation.run import Evaluation
    from ray_distill.evaluation.subjects import EvaluationSet

AGAIN = "the same command again does only what is missing"


def evaluate(
    sets: Annotated[
        list[Path],
        typer.Argument(
            metavar="SET...", help="Each a distilled.parquet, or with --like a set of another method."
        ),
    ],
    networks: Annotated[
        str | None,
        typer.Option("--networks", metavar="A,B", help="Networks to retrain, as in convnet3,resnet18-bn."),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Fresh networks of each.")] = None,
    horizons: Annotated[
        str | None,
        typer.Option(
            "--horizons",
            metavar="N,M",
            help="Inner steps after which each is tested; one training for all of them.",
        ),
    ] = None,
    baselines: Annotated[
        str | None,
        typer.Option(
            "--baselines",
            metavar="A,B",
            help="What else is judged: random_real, herding, k_means, whole_train; or none.",
        ),
    ] = None,
    tune_lr: Annotated[
        bool,
        typer.Option(
            "--tune-lr",
            help="Choose each network's lr on the validation split: the set's own may not fit it.",
        ),
    ] = False,
    robustness: Annotated[
        bool,
        typer.Option(
            "--robustness",
            help="Train with hard labels, without augmentation and with DD-Ranking's too, and give its two scores.",
        ),
    ] = False,
    subsets: Annotated[
        str | None,
        typer.Option(
            "--subsets", metavar="N,M", help="Judge random subsets of the sets, of so many images per class."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder for the results. Default: SET.evaluation, beside the first."
        ),
    ] = None,
    like: Like = None,
    space: SpaceOption = None,
    layout: LayoutOption = None,
    images: ImagesKey = None,
    labels: LabelsKey = None,
    set_: Set = None,
) -> None:
    """Retrain networks on distilled sets and on baselines, and test them: mean, deviation and interval.

    Each set brings its own protocol and data source; all are judged as the first one's configuration says, with the
    options laid over it. Results are kept as they arrive: the same command again does only what is missing, and with
    more networks, seeds or horizons it adds to what is there.

    Sets of other methods (.npz, .npy, .pt, .h5, a folder of images, the hubs' Parquet) are judged as `--like` and
    `--space` state, `--set` laid over that configuration.
    """
    with exit_codes(AGAIN):
        from ray_distill.evaluation.journal import check_claimable
        from ray_distill.storage.run_dir import evaluation_folder

        folder, overrides = out or evaluation_folder(sets[0]), set_ or []
        refuse_job_scratch(folder, "--out")
        check_claimable(folder)
        statement = external_set_options(like, space, layout, images, labels, overrides if like else [])
        datasets = _read(_named(sets), statement)
        options = {
            "networks": None if networks is None else networks.split(","),
            "seeds": seeds,
            "horizons": _numbers("--horizons", horizons),
            "baselines": [] if baselines == "none" else None if baselines is None else baselines.split(","),
            "tune_lr": tune_lr or None,
            "robustness": robustness or None,
            "subsets": _numbers("--subsets", subsets),
        }
        options = {key: value for key, value in options.items() if value is not None}
        overrides = overrides if statement is None else _judging_part(statement, overrides)
        evaluation = _evaluate(datasets, options, overrides, folder, sets[0].parent)
        _say(evaluation)
    if evaluation.failures:
        raise typer.Exit(1)


def _numbers(option: str, text: str | None) -> list[int] | None:
    """Raises: ConfigError."""
    try:
        return None if text is None else [int(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text}: write it as 1,2,5") from None


def _named(paths: list[Path]) -> dict[str, Path]:
    """The sets by names that tell them apart: those of their files, or of their folders too. Raises: ConfigError."""
    for name_of in (
        lambda p: p.stem,
        lambda p: p.absolute().parent.name,
        lambda p: f"{p.absolute().parent.name}/{p.stem}",
        str,
    ):
        names = [name_of(path) for path in paths]
        if len(set(names)) == len(names):
            return dict(zip(names, paths, strict=True))
    raise ConfigError(f"{', '.join(map(str, paths))}: names a file twice; name each once")


def _read(paths: dict[str, Path], statement: "ExternalSpec | None") -> "dict[str, DistilledDataset]":
    """The sets in the files. Raises: MistakeError for a statement about none of them, or what `load_set` raises."""
    from ray_distill.artifacts.dataset import DistilledDataset
    from ray_distill.artifacts.importer import is_ours, load_set
    from ray_distill.utils.progress import percent, silent

    if statement is None and all(path.suffix == ".parquet" for path in paths.values()):
        return {name: DistilledDataset.load(path) for name, path in paths.items()}
    if statement is not None and all(is_ours(path) for path in paths.values()):
        raise ConfigError("--like: has no effect, since each set says itself how it is used; remove it")
    sets = {}
    for name, path in paths.items():
        with (silent if is_ours(path) else bar)("real images", 100) as update:
            sets[name] = load_set(path, statement, percent(update))
    return sets


def _judging_part(statement: "ExternalSpec", overrides: list[str]) -> list[str]:
    """What a configuration says of this machine and its stores, which no set carries with it, and the overrides that
    are about judging; the others are in the set by now."""
    from ray_distill.evaluation.overrides import is_evaluation_option

    config = statement.config
    here = {
        "data.root": config.data.root,
        "data.cache": config.data.cache,
        "tracking.uri": config.tracking.uri,
        "tracking.experiment": config.tracking.experiment,
        "cluster.use_gpu": config.cluster.use_gpu,
    }
    said = [f"{key}={json.dumps(value)}" for key, value in here.items() if value is not None]
    return [*said, *(override for override in overrides if is_evaluation_option(override))]


def _evaluate(
    datasets: "dict[str, DistilledDataset]",
    options: dict[str, Any],
    overrides: list[str],
    folder: Path,
    beside: Path,
) -> "Evaluation":
    from ray_distill.evaluation.overrides import evaluation_configs

    configs = evaluation_configs([dataset.config for dataset in datasets.values()], options, overrides)
    uri = _store(configs[0].tracking.uri, beside)

    def prepare() -> "list[EvaluationSet]":
        from ray_distill.evaluation.run import prepare_sets
        from ray_distill.tracking.store import open_store

        prepared = prepare_sets(datasets, configs, bar)
        open_store(uri, configs[0].tracking.experiment)
        return prepared

    from ray_distill.cluster.connection import ray_while_preparing

    with ray_while_preparing(prepare) as prepared:
        from ray_distill.evaluation.run import evaluate, parent_of

        return evaluate(prepared, bar, folder, (uri, parent_of(datasets.values(), uri)))


def _store(configured: str | None, beside: Path) -> str:
    """The store that an evaluation is recorded in: the one that its run's folder names, if there is one."""
    from ray_distill.storage.run_dir import RunDir
    from ray_distill.tracking.uri import store_uri

    own = RunDir(beside).mlflow_uri()
    return store_uri(configured or os.environ.get("MLFLOW_TRACKING_URI") or own, beside)


def say_table(evaluation: "Evaluation") -> None:
    """The rows of the last horizon, what failed, the robustness scores, and how the pool's time was used."""
    from ray_distill.evaluation.results import at_last_horizon

    rows = at_last_horizon(evaluation.rows)
    chosen = {_place(line.retraining(0)): (line, lr) for line, lr in evaluation.lrs.items() if line.grid}
    heads = ("trained on", "network", "steps", "accuracy", "95% interval", "n", *(("lr",) if chosen else ()))
    table = Table(*heads, box=None, padding=(0, 1, 0, 0))
    at_an_end = False
    for row in rows:
        line, lr = chosen.get(_place(row), (None, 0.0))
        end = line is not None and len(line.grid) > 1 and lr in (line.grid[0], line.grid[-1])
        at_an_end |= end
        cells = [f"{lr:g}{' *' if end else ''}" if line else ""] if chosen else []
        table.add_row(*_cells(row), *cells)
    stdout.print(table)
    if at_an_end:
        stdout.print("* at an end of evaluation.lr_grid: a better lr may lie beyond it")
    for row in rows:
        if row.reason is not None:
            said = f"{row.network} on {row.label}: {row.num_failed} failed: {row.reason}"
            stderr.print(said, markup=False, highlight=False)
    for scores in evaluation.robustness:
        stdout.print(scores.describe(), markup=False, highlight=False)
    if evaluation.report is not None:
        stdout.print(_pool(evaluation.report), markup=False, highlight=False)


def _place(of: "Retraining | ResultRow") -> tuple[str, str, str, int]:
    """What line of the table it is about."""
    return of.subject, of.network, of.treatment, of.num_images


def _cells(row: "ResultRow") -> tuple[str, ...]:
    steps = "" if row.inner_steps is None else f"{row.inner_steps:,}"
    if row.mean is None:
        return row.label, row.network, steps, "failed", "", "0"
    std = "" if row.std is None else f" ± {100 * row.std:.1f}"
    within = row.interval
    interval = "" if within is None else f"{100 * within[0]:.1f} to {100 * within[1]:.1f}%"
    return row.label, row.network, steps, f"{100 * row.mean:.1f}{std}%", interval, str(row.n)


def _pool(report: "PoolStats") -> str:
    lost = f", {report.num_retries} begun again after a loss" if report.num_retries else ""
    return (
        f"{report.num_jobs} jobs by {report.num_actors} actor(s) in {report.wall_s:.0f} s{lost}: "
        f"{100 * report.efficiency:.0f}% busy, {report.idle_tail_s:.1f} s idle at the end, the longest job "
        f"{report.longest_job_s:.1f} s"
    )


def _say(evaluation: "Evaluation") -> None:
    from ray_distill.tracking.uri import ui_command

    say_table(evaluation)
    for warning in evaluation.warnings:
        stderr.print(f"warning: {warning}", markup=False, highlight=False)
    lines = [f"  {'results':<14}{evaluation.folder}"]
    if evaluation.tracker is not None:
        lines.append(f"  {'MLflow':<14}{ui_command(evaluation.tracker.uri)}")
    if evaluation.failures:
        lines.append(f"{len(evaluation.failures)} retraining(s) failed; {AGAIN}")
    else:
        lines.append("more --networks, --seeds or --horizons on the same sets add to these results")
    stdout.print("\n".join(lines), markup=False, highlight=False)
