"""From distilled sets to a table: their real data, the evaluation, its folder, and its record in MLflow.

The command `retrain_on_pool`, the last stage of `distill` and `evaluate_sets`, for those who call from Python, all end here.
Results go to disk first and then to MLflow: a store that is away costs a warning, never a result.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_distill.artifacts.dataset import DistilledDataset
from ray_distill.builders.checks import check_evaluation_networks
from ray_distill.builders.experiment import load_development_data
from ray_distill.cluster.actor_pool import PoolStats
from ray_distill.config.config import Config
from ray_distill.data.labelled_images import DataError
from ray_distill.data.splits import DevelopmentData
from ray_distill.evaluation.baselines import check_budget
from ray_distill.evaluation.figures import write_pictures
from ray_distill.evaluation.jobs import TableRowSpec, baselines_beside, lines_of
from ray_distill.evaluation.journal import (
    RECORDS,
    ResultsLog,
    cache_whole_train,
    claim,
    identity,
    restore_whole_train,
    save_mlflow_run,
)
from ray_distill.evaluation.overrides import evaluation_configs
from ray_distill.evaluation.report import write_results
from ray_distill.evaluation.results import Failure, Record, ResultRow, rows_of
from ray_distill.evaluation.robustness import Robustness, robustness_of
from ray_distill.evaluation.subjects import EvaluationSet
from ray_distill.evaluation.worker import check_gpus, check_test_source, evaluation_set, retrain_on_pool
from ray_distill.tracking.store import TrackingError, open_store
from ray_distill.tracking.tracker import PARENT_TAG, Tracker, create_run, tracked_run
from ray_distill.tracking.uri import StoreError
from ray_distill.utils.progress import Bar, percent, silent
from ray_distill.utils.secrets import redact

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation came to."""

    records: list[Record]
    failures: list[Failure]
    lrs: dict[TableRowSpec, float]
    """The lr of each line of this evaluation, chosen or its own."""
    report: PoolStats | None
    """How the pool has used its time; None if nothing was missing."""
    folder: Path | None
    tracker: Tracker | None
    warnings: list[str] = field(default_factory=list)
    """What MLflow did not take, or the cache."""

    robustness: list[Robustness] = field(default_factory=list)
    """DD-Ranking's scores, if they were asked for."""

    @property
    def rows(self) -> list[ResultRow]:
        """Mean, deviation and interval of each line at each horizon."""
        return rows_of(self.records, self.failures)

    def to_pandas(self) -> "pd.DataFrame":
        """The rows as a table, a column for each of their fields."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])


def check_evaluation(config: Config, data: DevelopmentData) -> None:
    """Raises: ConfigError, DataError for what does not fit the data, and would only be noticed later."""
    check_evaluation_networks(config, data)
    if {"random_real", "herding", "k_means"} & set(config.evaluation.baselines):
        check_budget(data.train, config.distilled.ipc)


def with_test_images(
    name: str, dataset: DistilledDataset, config: Config, data: DevelopmentData, bar: Bar
) -> EvaluationSet:
    """A set to judge, and its test images. Raises: DataError."""
    with bar("test images", 100) as update:
        return evaluation_set(name, dataset, config, data, percent(update))


def prepare_sets(
    sets: Mapping[str, DistilledDataset], configs: Sequence[Config], bar: Bar
) -> list[EvaluationSet]:
    """Sets with the real images that they are judged with.

    Raises: ConfigError, DataError for all that can be known before anything is trained.
    """
    prepared = []
    for (name, dataset), config in zip(sets.items(), configs, strict=True):
        check_test_source(config)
        with bar("real images", 100) as update:
            data = load_development_data(config, dataset.preprocessing, percent(update))
        shape = tuple(dataset.images_NCHW.shape[1:])
        if data.image_shape != shape or data.class_names != dataset.class_names:
            raise DataError(
                f"{config.data.source} has {data.image_shape} images of {data.num_classes} classes; the set {name} "
                f"has {shape} images of {len(dataset.class_names)} classes, or they have other names"
            )
        check_evaluation(config, data)
        prepared.append(with_test_images(name, dataset, config, data, bar))
    if len({judged.tickets.test.pixels_digest for judged in prepared}) > 1:
        raise DataError(
            f"{', '.join(sets)} have other test images each, so their accuracies cannot be compared; evaluate "
            "them one by one"
        )
    return prepared


def evaluate(
    sets: Sequence[EvaluationSet],
    bar: Bar,
    folder: Path | None = None,
    store: tuple[str, str | None] | None = None,
) -> Evaluation:
    """Evaluate sets on the connected Ray cluster, or go on with what the folder has of it.

    Args:
        folder: where results are kept as they arrive; None keeps them in memory.
        store: MLflow's URI, and the run that the evaluation's run is a child of.

    Raises: ConfigError for a folder that holds something else, or GPUs that are not there; PoolError.
    """
    check_gpus(sets[0].config)
    lines, of, cache = lines_of(sets), identity(sets), sets[0].tickets.train.spec.cache
    known = claim(folder, of) if folder else {}
    journal = ResultsLog(folder / RECORDS if folder else None)
    tracker, warnings = None, list[str]()
    if store is not None:
        try:
            tracker = _tracker(sets, known, *store)
        except StoreError as e:
            warnings.append(str(e))
    if folder and tracker:
        save_mlflow_run(folder, of, {"uri": redact(tracker.uri), "run_id": tracker.run_id})
    with tracked_run(tracker) if tracker else nullcontext():
        restore_whole_train(cache, lines, journal)
        with bar("evaluating", sum(line.num_trainings for line in lines)) as update:
            course, report = retrain_on_pool(sets, lines, journal, update)
        try:
            cache_whole_train(cache, lines, journal)
        except OSError as e:
            warnings.append(f"what the whole training set gives is not kept for other evaluations: {e}")
        found = (course.records(), course.failures)
        robustness = _robustness(sets, lines, *found)
        done = Evaluation(*found, course.lrs, report, folder, tracker, warnings, robustness)
        files = _write(folder, done) if folder else []
        if tracker:
            warn_on_failure(warnings, lambda: _log(tracker, done, files))
    return done


def _robustness(
    sets: Sequence[EvaluationSet],
    lines: Sequence[TableRowSpec],
    records: Sequence[Record],
    failures: Sequence[Failure],
) -> list[Robustness]:
    if not sets[0].config.evaluation.robustness:
        return []
    return robustness_of(rows_of(records, failures), baselines_beside(sets, lines))


def _write(folder: Path, done: Evaluation) -> list[Path]:
    """All files but the journal, made anew of all that there is."""
    return [
        *write_results(folder, done.records, done.failures, done.robustness),
        *write_pictures(folder, done.rows),
    ]


def _tracker(
    sets: Sequence[EvaluationSet], known: Mapping[str, str], uri: str, parent: str | None
) -> Tracker:
    """The MLflow run of an evaluation: the one that its folder knows, or a new one."""
    if known.get("uri") == redact(uri) and (tracker := Tracker(uri, known["run_id"])).exists_in_store():
        tracker.reopen()
        return tracker
    config = sets[0].config
    tags = {"config_hash": sets[0].dataset.config_hash, "kind": "evaluate"}
    if parent is not None:
        tags[PARENT_TAG] = parent
    params = config.experiment() | {"sets": ", ".join(judged.name for judged in sets)}
    return create_run(uri, config.tracking.experiment, f"{config.name}-evaluation", params, tags)


def metric_name(row: ResultRow) -> str:
    """Of a row's accuracy in MLflow, which takes few characters in names."""
    label = row.subject if row.treatment == "own" else f"{row.subject} {row.treatment}"
    if row.kind == "subset":
        label = f"{label} {row.num_images}"
    return metric_of("test_accuracy", label, row.network)


def metric_of(what: str, subject: str, network: str) -> str:
    """A metric of a subject and a network in MLflow."""
    return re.sub(r"[^\w\-./ :]", "_", f"{what}/{subject}/{network}")


def _log(tracker: Tracker, done: Evaluation, files: Iterable[Path]) -> None:
    """The steps of an accuracy in MLflow are the inner steps: its charts show accuracy against steps."""
    rows = done.rows
    tracker.log_metrics(
        (metric_name(row), row.inner_steps or 0, row.mean) for row in rows if row.mean is not None
    )
    tracker.log_metrics(
        (metric_of(name, of.subject, of.network), of.inner_steps, value)
        for of in done.robustness
        for name, value in of.to_dict().items()
        if isinstance(value, float)
    )
    tracker.log_table([asdict(row) for row in rows], "evaluation_table.json")
    for path in files:
        tracker.log_file(path)


def warn_on_failure(warnings: list[str], log: Callable[[], object]) -> None:
    """Try to log; what the store does not take becomes a warning."""
    try:
        log()
    except TrackingError as e:
        warnings.append(str(e))


def parent_of(sets: Iterable[DistilledDataset], uri: str) -> str | None:
    """The run that made the sets, if it was one and the store knows it."""
    runs = {dataset.provenance.get("mlflow_run_id") for dataset in sets}
    run_id = runs.pop()
    return run_id if isinstance(run_id, str) and not runs and Tracker(uri, run_id).exists_in_store() else None


def evaluate_sets(
    sets: Mapping[str, DistilledDataset],
    *,
    folder: Path | None = None,
    uri: str | None = None,
    overrides: Iterable[str] = (),
    bar: Bar = silent,
    **options: Any,
) -> Evaluation:
    """Retrain networks on distilled sets and on baselines, test them, and compare: for use from Python.

        evaluation = evaluate_sets({"mine": DistilledDataset.load("distilled.parquet")}, networks=["mlp2"], seeds=4)
        for row in evaluation.rows: print(row.label, row.network, row.mean, row.half_width)

    Takes the Ray cluster that is connected, or this machine.

    Args:
        folder: where results are kept as they arrive: called again, only what is missing is done.
        uri: an MLflow store to record the evaluation in.
        overrides: `key=value` as the command's `--set`.
        options: of the section `evaluation`: networks, seeds, horizons, baselines, tune_lr, ...

    Raises: ConfigError, DataError, StoreError for what the caller can mend; ClusterError, PoolError.
    """
    from ray_distill.cluster.connection import cluster

    configs = evaluation_configs([dataset.config for dataset in sets.values()], options, overrides)
    prepared = prepare_sets(sets, configs, bar)
    store = None
    if uri is not None:
        open_store(uri, configs[0].tracking.experiment)
        store = (uri, parent_of(sets.values(), uri))
    with cluster():
        return evaluate(prepared, bar, folder, store)
