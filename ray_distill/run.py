"""One run from a configuration to a table: data, distillation, artefact, evaluation, record.

Only this module and the command line know all the rooms; distillation and evaluation do not know each
other, since one may see the validation split and the other the test split. Results go to disk first and
then to MLflow: a store that is away costs a warning, never a result.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ray_distill import build, pictures, tracking
from ray_distill.artifact import DistilledDataset
from ray_distill.build_artifact import to_dataset
from ray_distill.config import Config, ConfigError
from ray_distill.data.decoding import Progress
from ray_distill.data.labelled_images import DataError
from ray_distill.data.preprocessing import Preprocessing
from ray_distill.data.splits import DevelopmentData
from ray_distill.data_fit import check_fits_data
from ray_distill.distill import check_cluster, train
from ray_distill.evaluate import (
    DISTILLED,
    Record,
    Row,
    Tickets,
    check_test_source,
    evaluate,
    jobs_of,
    rows_of,
    tickets_for,
)
from ray_distill.progress import Bar, Update
from ray_distill.run_folder import RunFolder
from ray_distill.tracking import Tracker, TrackingError, open_run, recorded
from ray_distill.whole_files import write_json


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    rows: list[Row]
    tracker: Tracker
    wall_s: float
    warnings: list[str] = field(default_factory=list)
    """What MLflow did not take."""


def prepare(config: Config, uri: str, bar: Bar, fitted: Preprocessing | None = None) -> DevelopmentData:
    """The run's real data, without the test split, checked against the configuration; and an open store.

    Args:
        uri: the MLflow store, which is made if all else is right; nothing else is written.
        fitted: a preprocessing to use in place of one that is fitted here.

    Raises: ConfigError, DataError or StoreError for all that can be known before the first outer step.
    """
    check_test_source(config)
    return prepare_development(config, uri, bar, fitted)


def prepare_development(
    config: Config, uri: str, bar: Bar, fitted: Preprocessing | None = None
) -> DevelopmentData:
    """As `prepare`, for work that has no evaluation: whether there is a test split is not looked at."""
    with bar("real images", 100) as update:
        data = build.development_data(config, fitted, percent(update))
    check_fits_data(config, data)
    tracking.open_store(uri, config.tracking.experiment)
    return data


def percent(update: Update) -> Progress:
    """A bar of 100 units as the progress of preparing data."""
    return lambda what, done, total: update(100 * done // total, f"percent, {what}")


def _tickets(config: Config, dataset: DistilledDataset, data: DevelopmentData, bar: Bar) -> Tickets:
    with bar("test images", 100) as update:
        return tickets_for(config, dataset, data, percent(update))


def claim(config: Config, folder: RunFolder, uri: str, *, resume: bool) -> Tracker:
    """Claim the folder and open the MLflow run; or take both up again. Raises: ConfigError, StoreError."""
    if resume:
        tracker = folder.reopen(config)
        if not tracker.has_run():
            raise ConfigError(
                f"{folder.path}: MLflow at {tracking.shown(tracker.uri)} does not know its run {tracker.run_id}; "
                "bring the store back, or start again in another --out"
            )
        tracker.reopen()
        return tracker
    folder.path.mkdir(parents=True, exist_ok=True)
    tags = {"config_hash": config.hash, "kind": "distill"}
    tracker = open_run(uri, config.tracking.experiment, config.name, config.experiment(), tags)
    folder.open(config, tracker)
    return tracker


def carry_out(
    config: Config,
    data: DevelopmentData,
    folder: RunFolder,
    uri: str,
    bar: Bar,
    *,
    resume: bool,
    began: float,
) -> Outcome:
    """Distil, keep, evaluate, on the connected Ray cluster. The MLflow run ends with it.

    Args:
        began: `time.monotonic()` when the command began, from which the seconds count.

    Raises: ConfigError or StoreError before anything is distilled; DistillError, EvaluationError.
    """
    check_cluster(config)
    tracker = claim(config, folder, uri, resume=resume)
    warnings: list[str] = []
    with recorded(tracker):
        with bar("distilling", config.outer.steps) as update:
            state, unrecorded = train(config, data, folder, tracker, update)
        _tell(warnings, lambda: tracker.log_points(unrecorded))
        dataset = to_dataset(config, data, state, tracker.run_id)
        dataset.save(folder.artifact)
        sheet_of(dataset).save(folder.contact_sheet)
        _tell(warnings, lambda: _log_files(tracker, folder.config, folder.artifact, folder.contact_sheet))
        tickets = _tickets(config, dataset, data, bar)
        with bar("evaluating", len(jobs_of(config))) as update:
            records = evaluate(config, dataset, tickets, update)
        rows = rows_of(records)
        _write_evaluation(folder.evaluation, records, rows)
        wall_s = time.monotonic() - began
        write_json(folder.summary, summary(config, rows, wall_s))
        _tell(warnings, lambda: _log_evaluation(tracker, rows, {"wall_s": wall_s}))
        _tell(warnings, lambda: _log_files(tracker, folder.evaluation, folder.summary))
    return Outcome(rows, tracker, wall_s, warnings)


def evaluate_artifact(
    config: Config,
    dataset: DistilledDataset,
    artifact: Path,
    target: Path,
    uri: str,
    data: DevelopmentData,
    bar: Bar,
) -> Outcome:
    """Judge a set that lies in a file, on the connected Ray cluster; a new MLflow run, a child of the set's
    own run if the store knows that.

    Raises: DataError if the data are not of the set's shape and classes; StoreError; EvaluationError.
    """
    began = time.monotonic()
    shape = tuple(dataset.images_NCHW.shape[1:])
    if data.image_shape != shape or data.class_names != dataset.class_names:
        raise DataError(
            f"{config.data.source} has {data.image_shape} images of {data.num_classes} classes; the set in {artifact} "
            f"has {shape} images of {len(dataset.class_names)} classes, or they have other names"
        )
    tags = {"config_hash": dataset.config_hash, "kind": "evaluate"}
    parent = Tracker(uri, str(dataset.provenance.get("mlflow_run_id")))
    if parent.has_run():
        tags["mlflow.parentRunId"] = parent.run_id
    params = config.experiment() | {"artifact": str(artifact)}
    tracker = open_run(uri, config.tracking.experiment, f"{config.name}-evaluation", params, tags)
    warnings: list[str] = []
    with recorded(tracker):
        tickets = _tickets(config, dataset, data, bar)
        with bar("evaluating", len(jobs_of(config))) as update:
            records = evaluate(config, dataset, tickets, update)
        rows = rows_of(records)
        _write_evaluation(target, records, rows)
        _tell(warnings, lambda: _log_evaluation(tracker, rows, {}))
        _tell(warnings, lambda: _log_files(tracker, target))
    return Outcome(rows, tracker, time.monotonic() - began, warnings)


def sheet_of(dataset: DistilledDataset) -> Any:
    """The contact sheet of a set, a PIL image."""
    classes = pictures.classes_by_row(dataset.labels_NK)
    return pictures.contact_sheet(dataset.to_pixels(), classes, dataset.class_names)


def _tell(warnings: list[str], log: Callable[[], object]) -> None:
    """Try to log; what the store does not take becomes a warning."""
    try:
        log()
    except TrackingError as e:
        warnings.append(str(e))


def _log_files(tracker: Tracker, *paths: Path) -> None:
    for path in paths:
        tracker.log_file(path)


def _log_evaluation(tracker: Tracker, rows: list[Row], extra: dict[str, float]) -> None:
    tracker.log_metrics({f"test_accuracy/{row.trained_on}/{row.network}": row.mean for row in rows} | extra)
    tracker.log_table([asdict(row) for row in rows], "evaluation_table.json")


def _write_evaluation(path: Path, records: list[Record], rows: list[Row]) -> None:
    write_json(path, {"records": [asdict(r) for r in records], "table": [asdict(r) for r in rows]})


def summary(config: Config, rows: list[Row], wall_s: float) -> dict[str, Any]:
    """Seconds, and mean, std and n of each network and of each baseline (fractions).

    A baseline's own numbers are those of the network that D was distilled through, if it was judged by that.
    """

    def numbers(row: Row) -> dict[str, Any]:
        return {"mean": row.mean, "std": row.std, "n": row.n}

    def own_first(name: str) -> dict[str, Any]:
        of = {row.network: numbers(row) for row in rows if row.trained_on == name}
        own = config.network.name if config.network.name in of else next(iter(of))
        return {"network": own, **of[own], "networks": of}

    baselines = dict.fromkeys(row.trained_on for row in rows if row.trained_on != DISTILLED)
    return {
        "name": config.name,
        "config_hash": config.hash,
        "wall_s": wall_s,
        "networks": {row.network: numbers(row) for row in rows if row.trained_on == DISTILLED},
        "baselines": {name: own_first(name) for name in baselines},
    }
