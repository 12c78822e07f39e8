"""One run from a configuration to a table: data, distillation, artefact, evaluation, record.

Only this module and the command line know all the rooms; distillation and evaluation do not know each
other, since one may see the validation split and the other the test split.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ray_distill import build, pictures
from ray_distill.artifact import DistilledDataset, provenance
from ray_distill.cluster import cluster
from ray_distill.config import Config
from ray_distill.data.preprocessing import Preprocessing
from ray_distill.data.splits import DevelopmentData, prepare_development
from ray_distill.distill import train
from ray_distill.evaluate import Record, Row, evaluate, jobs_of, real_arrays, rows_of
from ray_distill.progress import Update
from ray_distill.run_folder import RunFolder, write_json
from ray_distill.run_state import RunState
from ray_distill.tracking import Tracker, open_run

Bar = Callable[[str, int], AbstractContextManager[Update]]
"""(what, total units) -> a progress bar."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    folder: RunFolder
    tracker: Tracker
    rows: list[Row]
    wall_s: float


def development_data(config: Config, bar: Bar, fitted: Preprocessing | None = None) -> DevelopmentData:
    """The run's real data, without the test split; with a preprocessing that is already fitted, if there is
    one. Raises: DataError.
    """
    data = config.data
    with bar("real images", 100) as update:
        return prepare_development(
            data.source,
            preprocessing=fitted or data.preprocessing,
            zca_shrinkage=data.zca_shrinkage or 0.0,
            validation_fraction=data.validation_fraction,
            limit=data.limit,
            seed=config.seed,
            progress=lambda done, total: update(100 * done // total, "decoded, in percent"),
        )


def to_dataset(config: Config, data: DevelopmentData, state: RunState, tracker: Tracker) -> DistilledDataset:
    """The best set on validation, with all that is needed to use it."""
    assert state.best is not None, "the last outer step is always validated"
    best = state.best
    evaluation, inner, network = config.evaluation, config.inner, config.network
    return DistilledDataset(
        images_NCHW=best.data.images_NCHW.to(torch.float32),
        labels_NK=best.data.labels_NK.to(torch.float32),
        class_names=data.class_names,
        preprocessing=data.preprocessing,
        protocol={
            "network": network.model_dump(mode="json"),
            "optimizer": "adam",
            "lr": inner.lr,
            "eps_convention": inner.eps_convention,
            "batch_per_class": inner.batch_per_class or config.distilled.ipc,
            "augmentation": list(inner.augmentation),
            "inner_steps": evaluation.horizon,
        },
        config=config.to_dict(),
        config_hash=config.hash,
        provenance=provenance(
            outer_step=best.outer_step,
            outer_steps=state.outer_step,
            validation_accuracy=best.accuracy,
            seed=config.seed,
            mlflow_run_id=tracker.run_id,
        ),
    )


def evaluate_artifact(
    config: Config, dataset: DistilledDataset, artifact: Path, target: Path, uri: str, bar: Bar
) -> list[Row]:
    """Judge a set that lies in a file, on its own data source; a new MLflow run, under the set's own if it is there."""
    data = development_data(config, bar, dataset.preprocessing)
    tags = {"config_hash": dataset.config_hash, "kind": "evaluate"}
    parent = Tracker(uri, str(dataset.provenance.get("mlflow_run_id")))
    if parent.has_run():
        tags["mlflow.parentRunId"] = parent.run_id
    params = {"artifact": str(artifact), "evaluation": config.to_dict()["evaluation"]}
    tracker = open_run(uri, config.tracking.experiment, f"{config.name}-evaluation", params, tags)
    with recorded(tracker), cluster():
        real = real_arrays(config, dataset, data.train_images_NCHW, data.train_labels_N)
        with bar("evaluating", len(jobs_of(config))) as update:
            records = evaluate(config, dataset, real, update)
        rows = rows_of(records)
        record_evaluation(records, rows, target, tracker)
    return rows


@contextmanager
def recorded(tracker: Tracker) -> Iterator[None]:
    """The MLflow run ends with the block: FINISHED, KILLED by the keyboard, or FAILED."""
    try:
        yield
    except BaseException as e:
        tracker.finish("KILLED" if isinstance(e, KeyboardInterrupt) else "FAILED")
        raise
    tracker.finish("FINISHED")


def open_folder(config: Config, folder: RunFolder, uri: str, *, resume: bool) -> Tracker:
    """Claim the folder and open the MLflow run; or take both up again. Raises: ConfigError."""
    if resume:
        tracker = folder.reopen(config)
        tracker.reopen()
        return tracker
    folder.path.mkdir(parents=True, exist_ok=True)
    tags = {"config_hash": config.hash, "kind": "distill"}
    tracker = open_run(uri, config.tracking.experiment, config.name, config.to_dict(), tags)
    folder.open(config, tracker)
    return tracker


@dataclass(frozen=True)
class Prepared:
    """What a run has before it needs Ray: its data, its folder, its MLflow run."""

    data: DevelopmentData
    folder: RunFolder
    tracker: Tracker
    began: float


def prepare(config: Config, folder: RunFolder, uri: str, bar: Bar, *, resume: bool, began: float) -> Prepared:
    """Read the data, claim the folder and open the MLflow run.

    Args:
        began: `time.monotonic()` when the command began, from which the run's seconds count.

    Raises: ConfigError or DataError; nothing has been written then.
    """
    data = development_data(config, bar)
    build.experiment(config, data.image_shape, data.num_classes)
    return Prepared(data, folder, open_folder(config, folder, uri, resume=resume), began)


def carry_out(config: Config, prepared: Prepared, bar: Bar) -> Outcome:
    """Distil, keep, evaluate, on the connected Ray cluster. The MLflow run ends with it.

    Raises: ConfigError if the cluster is too small; DistillError, EvaluationError.
    """
    data, folder, tracker = prepared.data, prepared.folder, prepared.tracker
    with recorded(tracker):
        with bar("distilling", config.outer.steps) as update:
            state = train(config, data, folder, tracker, update)
        dataset = to_dataset(config, data, state, tracker)
        _keep(dataset, folder, tracker)
        real = real_arrays(config, dataset, data.train_images_NCHW, data.train_labels_N)
        with bar("evaluating", len(jobs_of(config))) as update:
            records = evaluate(config, dataset, real, update)
        rows = rows_of(records)
        record_evaluation(records, rows, folder.evaluation, tracker)
        wall_s = time.monotonic() - prepared.began
        write_json(folder.summary, summary(config, rows, wall_s))
        tracker.log_metrics({"wall_s": wall_s})
        tracker.log_file(folder.summary)
    return Outcome(folder, tracker, rows, wall_s)


def _keep(dataset: DistilledDataset, folder: RunFolder, tracker: Tracker) -> None:
    """The artefact and its picture, on disk and in MLflow."""
    dataset.save(folder.artifact)
    classes = dataset.labels_NK.argmax(dim=1).tolist()
    pictures.contact_sheet(dataset.to_pixels(), classes, dataset.class_names).save(folder.contact_sheet)
    for path in (folder.config, folder.artifact, folder.contact_sheet):
        tracker.log_file(path)


def record_evaluation(records: list[Record], rows: list[Row], path: Path, tracker: Tracker) -> None:
    """Every retraining in a file; means as metrics and the table in MLflow."""
    write_json(path, {"records": [asdict(r) for r in records], "table": [asdict(r) for r in rows]})
    tracker.log_file(path)
    tracker.log_table([asdict(row) for row in rows], "evaluation_table.json")
    tracker.log_metrics({f"test_accuracy/{row.trained_on}/{row.network}": row.mean for row in rows})


def summary(config: Config, rows: list[Row], wall_s: float) -> dict[str, Any]:
    """Seconds, and mean, std and n of each network and of each baseline (fractions).

    A baseline's own numbers are those of the network that D was distilled through.
    """

    def numbers(row: Row) -> dict[str, Any]:
        return {"mean": row.mean, "std": row.std, "n": row.n}

    def own_first(name: str) -> dict[str, Any]:
        of = {row.network: numbers(row) for row in rows if row.trained_on == name}
        own = config.network.name if config.network.name in of else next(iter(of))
        return {"network": own, **of[own], "networks": of}

    baselines = dict.fromkeys(row.trained_on for row in rows if row.trained_on != "distilled")
    return {
        "name": config.name,
        "config_hash": config.hash,
        "wall_s": wall_s,
        "networks": {row.network: numbers(row) for row in rows if row.trained_on == "distilled"},
        "baselines": {name: own_first(name) for name in baselines},
    }
