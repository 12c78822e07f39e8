"""One run from a configuration to a table: data, distillation, artefact, evaluation, record.

Only this module and the command line know all the rooms; distillation and evaluation do not know each
other, since one may see the validation split and the other the test split. Results go to disk first and
then to MLflow: a store that is away costs a warning, never a result.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ray_distill import build, pictures, tracking
from ray_distill.artifact import DistilledDataset, provenance
from ray_distill.build_networks import network_for
from ray_distill.config import Config, ConfigError
from ray_distill.data.decoding import Progress
from ray_distill.data.labelled_images import DataError
from ray_distill.data.preprocessing import Preprocessing
from ray_distill.data.splits import DevelopmentData
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
from ray_distill.progress import Update
from ray_distill.protocol import protocol_of
from ray_distill.run_folder import RunFolder
from ray_distill.run_state import RunState
from ray_distill.tracking import Tracker, TrackingError, open_run, recorded
from ray_distill.uris import masked
from ray_distill.whole_files import write_json

Bar = Callable[[str, int], AbstractContextManager[Update]]
"""(what, total units) -> a progress bar."""


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
    with bar("real images", 100) as update:
        data = build.development_data(config, fitted, percent(update))
    _check(config, data)
    tracking.open_store(uri, config.tracking.experiment)
    return data


def percent(update: Update) -> Progress:
    """A bar of 100 units as the progress of preparing data."""
    return lambda what, done, total: update(100 * done // total, f"percent, {what}")


def _tickets(config: Config, dataset: DistilledDataset, data: DevelopmentData, bar: Bar) -> Tickets:
    with bar("test images", 100) as update:
        return tickets_for(config, dataset, data, percent(update))


def _check(config: Config, data: DevelopmentData) -> None:
    """Raises: ConfigError for what does not fit the data, and would only be noticed later."""
    build.experiment(config, data.image_shape, data.num_classes)
    build.check_groups(config, data.image_shape, data.num_classes)
    for name in config.evaluation.networks:
        network_for(config, name, data.image_shape, data.num_classes, "evaluation.networks")
    count, size = data.train.num_images, config.outer.batch_size
    if size > count:
        raise ConfigError(f"outer.batch_size: must be at most the {count} training images (found {size})")
    fewest = int(torch.bincount(data.train.labels_N, minlength=data.num_classes).min())
    if config.distilled.ipc > fewest:
        raise ConfigError(
            f"distilled.ipc: must be at most {fewest}, the training images of the smallest class "
            f"(found {config.distilled.ipc})"
        )


def to_dataset(config: Config, data: DevelopmentData, state: RunState, tracker: Tracker) -> DistilledDataset:
    """The best set on validation, with all that is needed to use it."""
    assert state.best is not None, "the last outer step is always validated"
    best = state.best
    return DistilledDataset(
        images_NCHW=best.data.images_NCHW.to(torch.float32),
        labels_NK=best.data.labels_NK.to(torch.float32),
        class_names=data.class_names,
        preprocessing=data.preprocessing,
        protocol=protocol_of(config, data.num_classes),
        config=config.experiment(),
        config_hash=config.hash,
        provenance=provenance(
            outer_step=best.outer_step,
            outer_steps=state.outer_step,
            validation_accuracy=best.accuracy,
            seed=config.seed,
            mlflow_run_id=tracker.run_id,
        ),
    )


@contextmanager
def claimed(
    config: Config, folder: RunFolder, uri: str, *, resume: bool = False, replace: bool = False
) -> Iterator[Tracker]:
    """The folder for this process alone, and an MLflow run, which ends with the block.

    Args:
        resume: take up the run in the folder.
        replace: delete the run in the folder, which must be `check_replaceable`, if there is one.

    Raises: ConfigError, StoreError.
    """
    with folder.held():
        tracker = _claim(config, folder, uri, resume=resume, replace=replace)
        with recorded(tracker):
            yield tracker


def _claim(config: Config, folder: RunFolder, uri: str, *, resume: bool, replace: bool) -> Tracker:
    """Claim a folder that is held, and open the MLflow run; or take both up again."""
    if resume:
        tracker = folder.reopen(config)
        if not tracker.has_run():
            raise ConfigError(
                f"{folder.path}: MLflow at {masked(tracker.uri)} does not know its run {tracker.run_id}; "
                "bring the store back, or start again in another --out"
            )
        tracker.reopen()
        return tracker
    if replace:
        folder.clear()
    # Another run may have taken it since it was looked at.
    folder.check_free("Use another --out.")
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
    replace: bool = False,
    began: float,
) -> Outcome:
    """Distil, keep, evaluate, on the connected Ray cluster. The MLflow run ends with it.

    Args:
        resume, replace: as `claimed` has them.
        began: `time.monotonic()` when the command began, from which the seconds count.

    Raises: ConfigError or StoreError before anything is distilled; DistillError, EvaluationError.
    """
    check_cluster(config)
    warnings: list[str] = []
    with claimed(config, folder, uri, resume=resume, replace=replace) as tracker:
        with bar("distilling", config.outer.steps) as update:
            state, unrecorded = train(config, data, folder, tracker, update)
        _tell(warnings, lambda: tracker.log_points(unrecorded))
        dataset = to_dataset(config, data, state, tracker)
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
