"""From distilled sets to a table: their real data, the evaluation, its folder and its MLflow run.

The command `evaluate`, the last stage of `distill` and `evaluate_sets`, for use from Python, share this. Results go to disk
first and then to MLflow: if the tracking server is down there is a warning, and no result is lost.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from ray_distill.artifacts.dataset import DistilledDataset
from ray_distill.builders.checks import check_evaluation_networks
from ray_distill.builders.experiment import load_development_data
from ray_distill.cluster.actor_pool import PoolStats
from ray_distill.config.config import Config, ConfigError
from ray_distill.data.labelled_images import DataError
from ray_distill.data.splits import DevelopmentData
from ray_distill.evaluation.baselines import check_budget
from ray_distill.evaluation.figures import write_figures
from ray_distill.evaluation.jobs import RetrainingSpec, baseline_names, specs_for
from ray_distill.evaluation.journal import (
    RECORDS,
    ResultsLog,
    cache_whole_train,
    identity,
    open_folder,
    restore_whole_train,
    save_mlflow_run,
)
from ray_distill.evaluation.overrides import EvaluationOptions, evaluation_configs
from ray_distill.evaluation.report import overview, write_results
from ray_distill.evaluation.results import Failure, Record, ResultRow, result_rows
from ray_distill.evaluation.robustness import Robustness, robustness_scores
from ray_distill.evaluation.subjects import EvaluationSet
from ray_distill.evaluation.worker import (
    check_gpus,
    check_test_source,
    load_evaluation_set,
    retrain_on_pool,
)
from ray_distill.tracking.store import TrackingError, open_store
from ray_distill.tracking.tracker import PARENT_TAG, Tracker, create_run, tracked_run
from ray_distill.tracking.uri import StoreError
from ray_distill.utils.progress import Bar, percent, silent
from ray_distill.utils.secrets import redact

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation. A notebook shows it as a table."""

    records: list[Record]
    """An accuracy for each retrained network and horizon."""
    failures: list[Failure]
    """Retrainings that failed; the same evaluation again, in the same folder, tries only them."""
    robustness: list[Robustness]
    """DD-Ranking's scores, if they were asked for."""
    lrs: dict[RetrainingSpec, float]
    """Of each row of this evaluation, tuned or the protocol's."""
    pool_stats: PoolStats | None
    """None if nothing had to be computed."""
    folder: Path | None
    """With the results and figures; None if they are only in memory."""
    tracker: Tracker | None
    """The MLflow run."""
    warnings: list[str] = field(default_factory=list)
    """Of MLflow and the cache."""

    @property
    def rows(self) -> list[ResultRow]:
        """Mean, standard deviation and 95% interval of each row of the table, at each horizon."""
        return result_rows(self.records, self.failures)

    @property
    def files(self) -> dict[str, Path]:
        """The files in the folder, by name: `table.md`, `evaluation.json`, `records.parquet`, figures."""
        return {path.name: path for path in sorted(self.folder.iterdir())} if self.folder else {}

    def to_pandas(self) -> "pd.DataFrame":
        """The rows; `ci` is half of the 95% interval. Accuracies are fractions, NaN where all retrainings failed."""
        import pandas as pd

        names = {"subject": "set", "inner_steps": "horizon", "half_width": "ci"}
        columns = ["set", "kind", "num_images", "network", "treatment", "horizon", "mean", "std", "n", "ci"]
        frame = pd.DataFrame([asdict(row) for row in self.rows], columns=list(ResultRow.__annotations__))
        frame = frame.rename(columns=names)[[*columns, "num_failed", "reason"]]
        measured = dict.fromkeys(("mean", "std", "ci"), "float64")
        return frame.astype(measured | {"horizon": "Int64"})

    def _repr_html_(self) -> str:
        """The last horizon, in percent: a row for each thing trained on, a column for each network."""
        import pandas as pd

        heads, *lines = overview(self.rows)
        return str(pd.DataFrame(lines, columns=heads).to_html(index=False))


def check_evaluation(config: Config, data: DevelopmentData) -> None:
    """Raises: ConfigError, DataError for networks or baselines that do not fit the data."""
    check_evaluation_networks(config, data)
    if {"random_real", "herding", "k_means"} & set(config.evaluation.baselines):
        check_budget(data.train, config.distilled.ipc)


def prepare_sets(
    sets: Mapping[str, DistilledDataset], configs: Sequence[Config], bar: Bar
) -> list[EvaluationSet]:
    """Sets with their real images.

    Raises: ConfigError, DataError for everything that can be checked before training.
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
                f"has {shape} images of {len(dataset.class_names)} classes, or the classes have other names"
            )
        check_evaluation(config, data)
        prepared.append(load_evaluation_set(name, dataset, config, data, bar))
    if len({each.test.pixels_digest for each in prepared}) > 1:
        raise DataError(
            f"{', '.join(sets)} have different test images, so their accuracies cannot be compared; evaluate them one "
            "by one"
        )
    return prepared


def evaluate(
    sets: Sequence[EvaluationSet],
    bar: Bar,
    folder: Path | None = None,
    store: tuple[str, str | None] | None = None,
) -> Evaluation:
    """Evaluate sets on the connected Ray cluster, or resume the evaluation in the folder.

    Args:
        folder: where results are saved as they arrive; None keeps them in memory.
        store: MLflow's URI, and the parent of the evaluation's run.

    Raises: ConfigError if the folder has another evaluation, or the cluster no GPUs; PoolError.
    """
    check_gpus(sets[0].config)
    specs, content, cache = specs_for(sets), identity(sets), sets[0].train.spec.cache
    mlflow_run = open_folder(folder, content) if folder else {}
    log = ResultsLog(folder / RECORDS if folder else None)
    tracker, warnings = None, list[str]()
    if store is not None:
        try:
            tracker = _tracker(sets, mlflow_run, *store)
        except StoreError as e:
            warnings.append(str(e))
    if folder and tracker:
        save_mlflow_run(folder, content, {"uri": redact(tracker.uri), "run_id": tracker.run_id})
    with tracked_run(tracker) if tracker else nullcontext():
        restore_whole_train(cache, specs, log)
        with bar("evaluating", sum(spec.num_trainings for spec in specs)) as update:
            scheduler, stats = retrain_on_pool(sets, specs, log, update)
        try:
            cache_whole_train(cache, specs, log)
        except OSError as e:
            warnings.append(
                f"the results on the whole training set are not cached for other evaluations: {e}"
            )
        records, failures = scheduler.records(), scheduler.failures
        robustness = []
        if sets[0].config.evaluation.robustness:
            robustness = robustness_scores(result_rows(records, failures), baseline_names(sets, specs))
        evaluation = Evaluation(
            records, failures, robustness, scheduler.lrs, stats, folder, tracker, warnings
        )
        files = []
        if folder:
            files = write_results(folder, records, failures, robustness)
            files += write_figures(folder, evaluation.rows)
        if tracker:
            warn_on_failure(warnings, lambda: _log_results(tracker, evaluation, files))
    return evaluation


def _tracker(
    sets: Sequence[EvaluationSet], mlflow_run: Mapping[str, str], uri: str, parent: str | None
) -> Tracker:
    """The MLflow run of the evaluation's folder, or a new one."""
    if mlflow_run.get("uri") == redact(uri):
        tracker = Tracker(uri, mlflow_run["run_id"])
        if tracker.exists_in_store():
            tracker.reopen()
            return tracker
    config = sets[0].config
    tags = {"config_hash": sets[0].dataset.config_hash, "kind": "evaluate"}
    if parent is not None:
        tags[PARENT_TAG] = parent
    params = config.experiment() | {"sets": ", ".join(each.name for each in sets)}
    return create_run(uri, config.tracking.experiment, f"{config.name}-evaluation", params, tags)


def metric_name(row: ResultRow) -> str:
    """Of a row's accuracy in MLflow."""
    label = row.subject if row.treatment == "own" else f"{row.subject} {row.treatment}"
    if row.kind == "subset":
        label = f"{label} {row.num_images}"
    return _metric_name("test_accuracy", label, row.network)


def _metric_name(quantity: str, subject: str, network: str) -> str:
    """MLflow allows few characters in names."""
    return re.sub(r"[^\w\-./ :]", "_", f"{quantity}/{subject}/{network}")


def _log_results(tracker: Tracker, evaluation: Evaluation, files: Iterable[Path]) -> None:
    """The steps of an accuracy in MLflow are inner steps, so that its charts show accuracy over them."""
    rows = evaluation.rows
    tracker.log_metrics(
        (metric_name(row), row.inner_steps or 0, row.mean) for row in rows if row.mean is not None
    )
    tracker.log_metrics(
        (_metric_name(name, each.subject, each.network), each.inner_steps, score)
        for each in evaluation.robustness
        for name, score in each.scores.items()
    )
    tracker.log_table([asdict(row) for row in rows], "evaluation_table.json")
    for path in files:
        tracker.log_file(path)


def warn_on_failure(warnings: list[str], log: Callable[[], object]) -> None:
    """Call `log`; if MLflow fails, add a warning."""
    try:
        log()
    except TrackingError as e:
        warnings.append(str(e))


def parent_run(sets: Iterable[DistilledDataset], uri: str) -> str | None:
    """The MLflow run that made the sets, if it is one and the store has it."""
    runs = {dataset.provenance.get("mlflow_run_id") for dataset in sets}
    run_id = runs.pop()
    return run_id if isinstance(run_id, str) and not runs and Tracker(uri, run_id).exists_in_store() else None


def evaluate_sets(
    sets: Mapping[str, DistilledDataset],
    *,
    out: str | Path | None = None,
    uri: str | None = None,
    overrides: Iterable[str] = (),
    bar: Bar = silent,
    **options: Unpack[EvaluationOptions],
) -> Evaluation:
    """Retrain networks on distilled sets and on baselines, test them, and compare.

        evaluation = evaluate_sets({"mine": DistilledDataset.load("distilled.parquet")}, networks=["mlp2"], seeds=4)
        evaluation.to_pandas()

    Uses the Ray cluster that the process is connected to; otherwise connects it (`cluster.connection.connect`), for later
    calls too.

    Args:
        sets: by their names in the table.
        out: a folder where results are saved as they arrive; the same call again computes only what is missing.
        uri: an MLflow store to log the evaluation to.
        overrides: `key=value` as the command's `--set`.
        options: keys of the section `evaluation`; by default those in the first set.

    Raises: ConfigError, DataError, StoreError for invalid arguments; ClusterError, PoolError. Retrainings that fail are
    in `failures`.
    """
    from ray_distill.cluster.connection import connect

    if not sets:
        raise ConfigError("evaluate: no sets; pass at least one, as {name: dataset}")
    configs = evaluation_configs([dataset.config for dataset in sets.values()], options, overrides)
    prepared = prepare_sets(sets, configs, bar)
    store = None
    if uri is not None:
        open_store(uri, configs[0].tracking.experiment)
        store = (uri, parent_run(sets.values(), uri))
    connect()
    return evaluate(prepared, bar, None if out is None else Path(out), store)
