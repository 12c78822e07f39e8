"""The verb `evaluate`: the accuracy of networks trained on distilled sets, in one table."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_distill.cli.console import bar, exit_codes, fields, print_lines, warn
from ray_distill.cli.options import (
    ImagesKey,
    LabelsKey,
    LayoutOption,
    Like,
    Set,
    SpaceOption,
    external_spec,
)
from ray_distill.cli.tables import print_evaluation
from ray_distill.config.config import ConfigError
from ray_distill.storage.job_scratch import refuse_job_scratch

if TYPE_CHECKING:
    from ray_distill.artifacts.dataset import DistilledDataset
    from ray_distill.artifacts.importer import ExternalSpec
    from ray_distill.evaluation.run import Evaluation
    from ray_distill.evaluation.subjects import EvaluationSet

RERUN = "run the same command again for what is missing"

Sets = Annotated[
    list[Path],
    typer.Argument(
        metavar="SET...", help="Distilled sets (distilled.parquet); with --like, also those of other methods."
    ),
]
Networks = Annotated[
    str | None,
    typer.Option("--networks", metavar="A,B", help="Networks to train, e.g. convnet3,resnet18-bn."),
]
Seeds = Annotated[int | None, typer.Option("--seeds", help="Initialisations of each network.")]
Horizons = Annotated[
    str | None,
    typer.Option(
        "--horizons",
        metavar="N,M",
        help="Training steps after which to test, e.g. 300,1000; one training covers all of them.",
    ),
]
Baselines = Annotated[
    str | None,
    typer.Option(
        "--baselines",
        metavar="A,B",
        help="What to compare with: random_real, herding, k_means, whole_train; or none.",
    ),
]
TuneLr = Annotated[
    bool,
    typer.Option("--tune-lr", help="Tune the learning rate of each network on the validation split."),
]
RobustnessOption = Annotated[
    bool,
    typer.Option(
        "--robustness",
        help="Also train with hard labels, without augmentation and with DSA's, for DD-Ranking's two robustness scores.",
    ),
]
Subsets = Annotated[
    str | None,
    typer.Option("--subsets", metavar="N,M", help="Also evaluate random subsets of N images per class."),
]
EvaluationOut = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", help="Folder for the results. Default: SET.evaluation, beside the first set."
    ),
]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The parsed command line."""

    sets: dict[str, Path]
    folder: Path
    external: "ExternalSpec | None"
    evaluation: dict[str, Any]
    """Values of the section `evaluation`."""
    overrides: list[str]


def evaluate(
    sets: Sets,
    networks: Networks = None,
    seeds: Seeds = None,
    horizons: Horizons = None,
    baselines: Baselines = None,
    tune_lr: TuneLr = False,
    robustness: RobustnessOption = False,
    subsets: Subsets = None,
    out: EvaluationOut = None,
    like: Like = None,
    space: SpaceOption = None,
    layout: LayoutOption = None,
    images: ImagesKey = None,
    labels: LabelsKey = None,
    set_: Set = None,
) -> None:
    """Train networks on distilled sets and on baselines, and test them: mean, standard deviation and 95% interval.

    Each set comes with its training protocol and its data source. What to evaluate is taken from the first set's
    configuration, unless an option says otherwise. Results are saved as they arrive: the same command continues, and more
    networks, seeds or horizons add to the table.

    Sets of other methods (.npz, .npy, .pt, .h5, a folder of images, Hugging Face's Parquet) need `--like` and `--space`;
    `--set` then overrides the configuration of `--like`.
    """
    with exit_codes(RERUN):
        from ray_distill.evaluation.journal import check_folder
        from ray_distill.storage.run_dir import evaluation_folder

        overrides = set_ or []
        folder = out or evaluation_folder(sets[0])
        refuse_job_scratch(folder, "--out")
        check_folder(folder)
        section = {
            "networks": None if networks is None else networks.split(","),
            "seeds": seeds,
            "horizons": _integers("--horizons", horizons),
            "baselines": [] if baselines == "none" else None if baselines is None else baselines.split(","),
            "tune_lr": tune_lr or None,
            "robustness": robustness or None,
            "subsets": _integers("--subsets", subsets),
        }
        options = EvaluateOptions(
            sets=set_names(sets),
            folder=folder,
            external=external_spec(like, space, layout, images, labels, overrides if like else []),
            evaluation={key: value for key, value in section.items() if value is not None},
            overrides=overrides,
        )
        evaluation = _run(options)
        _print_outcome(evaluation)
    if evaluation.failures:
        raise typer.Exit(1)


def _integers(option: str, text: str | None) -> list[int] | None:
    """Raises: ConfigError."""
    try:
        return None if text is None else [int(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option}: must be integers such as 1,2,5; got {text!r}") from None


def set_names(paths: list[Path]) -> dict[str, Path]:
    """The sets by distinct names: their file's, else their folder's, else both. Raises: ConfigError for duplicates."""
    for name_of in (
        lambda p: p.stem,
        lambda p: p.absolute().parent.name,
        lambda p: f"{p.absolute().parent.name}/{p.stem}",
        str,
    ):
        names = [name_of(path) for path in paths]
        if len(set(names)) == len(names):
            return dict(zip(names, paths, strict=True))
    raise ConfigError(f"{', '.join(map(str, paths))}: duplicate set; name each one once")


def _run(options: EvaluateOptions) -> "Evaluation":
    from ray_distill.evaluation.overrides import evaluation_configs

    datasets = _load_sets(options.sets, options.external)
    overrides = options.overrides if options.external is None else _external_overrides(options)
    configs = evaluation_configs(
        [dataset.config for dataset in datasets.values()], options.evaluation, overrides
    )
    uri = _mlflow_uri(configs[0].tracking.uri, next(iter(options.sets.values())).parent)

    def prepare() -> "list[EvaluationSet]":
        from ray_distill.evaluation.run import prepare_sets
        from ray_distill.tracking.store import open_store

        prepared = prepare_sets(datasets, configs, bar)
        open_store(uri, configs[0].tracking.experiment)
        return prepared

    from ray_distill.cluster.connection import ray_while_preparing

    with ray_while_preparing(prepare) as prepared:
        from ray_distill.evaluation.run import evaluate, parent_run

        return evaluate(prepared, bar, options.folder, (uri, parent_run(datasets.values(), uri)))


def _load_sets(paths: dict[str, Path], external: "ExternalSpec | None") -> "dict[str, DistilledDataset]":
    """Raises: ConfigError for an `external` that applies to none of the files; what `load_set` raises."""
    from ray_distill.artifacts.dataset import DistilledDataset
    from ray_distill.artifacts.importer import is_artifact, load_set
    from ray_distill.utils.progress import percent, silent

    if external is None and all(path.suffix == ".parquet" for path in paths.values()):
        return {name: DistilledDataset.load(path) for name, path in paths.items()}
    if external is not None and all(is_artifact(path) for path in paths.values()):
        raise ConfigError(
            "--like: has no effect, since every set comes with its own configuration; remove it"
        )
    sets = {}
    for name, path in paths.items():
        with (silent if is_artifact(path) else bar)("real images", 100) as update:
            sets[name] = load_set(path, external, percent(update))
    return sets


def _external_overrides(options: EvaluateOptions) -> list[str]:
    """What `--like` says about this machine and its stores, which no set carries, and the `--set` about the evaluation;
    the other `--set` are in the set's own configuration already."""
    from ray_distill.evaluation.overrides import is_evaluation_option

    assert options.external is not None
    config = options.external.config
    local = {
        "data.root": config.data.root,
        "data.cache": config.data.cache,
        "tracking.uri": config.tracking.uri,
        "tracking.experiment": config.tracking.experiment,
        "cluster.use_gpu": config.cluster.use_gpu,
    }
    of_like = [f"{key}={json.dumps(value)}" for key, value in local.items() if value is not None]
    return [*of_like, *(override for override in options.overrides if is_evaluation_option(override))]


def _mlflow_uri(configured: str | None, folder: Path) -> str:
    """The configured store, else the environment's, else that of the run in the set's folder, else a new one there."""
    from ray_distill.storage.run_dir import RunDir
    from ray_distill.tracking.uri import store_uri

    of_run = RunDir(folder).mlflow_uri()
    return store_uri(configured or os.environ.get("MLFLOW_TRACKING_URI") or of_run, folder)


def _print_outcome(evaluation: "Evaluation") -> None:
    from ray_distill.tracking.uri import ui_command

    print_evaluation(evaluation)
    for warning in evaluation.warnings:
        warn(warning)
    results: dict[str, object] = {"results": evaluation.folder}
    if evaluation.tracker is not None:
        results["MLflow"] = ui_command(evaluation.tracker.uri)
    if evaluation.failures:
        print_lines(*fields(results), f"{len(evaluation.failures)} training(s) failed; {RERUN}")
    else:
        print_lines(*fields(results), "to extend the table, add --networks, --seeds or --horizons")
