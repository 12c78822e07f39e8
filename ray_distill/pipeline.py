"""One run from a configuration to a table: data, distillation, artefact, evaluation, record.

Distillation and evaluation do not import each other: the one may see the validation split, the other the test split. They
meet here. Results go to disk first and then to MLflow: an unavailable store costs a warning, never a result.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ray_distill.builders.experiment import check_fits_data, load_development_data
from ray_distill.config.config import Config, ConfigError
from ray_distill.data.splits import DevelopmentData
from ray_distill.distillation.callbacks import Callback
from ray_distill.distillation.outputs import contact_sheet_of, to_dataset
from ray_distill.distillation.trainer import check_cluster, train
from ray_distill.evaluation.results import ResultRow, at_last_horizon
from ray_distill.evaluation.run import (
    Evaluation,
    check_evaluation,
    evaluate,
    metric_name,
    warn_on_failure,
)
from ray_distill.evaluation.worker import check_test_source, load_evaluation_set
from ray_distill.storage.preflight import check_reachable
from ray_distill.storage.run_dir import RunDir
from ray_distill.tracking.store import open_store
from ray_distill.tracking.tracker import Tracker, create_run, tracked_run
from ray_distill.tuning.run import SearchOutcome
from ray_distill.tuning.search_dir import SearchDir
from ray_distill.utils.atomic import write_json
from ray_distill.utils.progress import Bar, percent
from ray_distill.utils.secrets import redact

DISTILLED = "distilled"
"""The name of a run's own set in its evaluation."""


@dataclass(frozen=True)
class Outcome:
    """The result of a run."""

    evaluation: Evaluation
    tracker: Tracker
    wall_s: float
    warnings: list[str] = field(default_factory=list)
    """About what MLflow does not have."""


def finalise_search(
    outcome: SearchOutcome, data: DevelopmentData, folder: SearchDir, uri: str, bar: Bar
) -> tuple[RunDir, Outcome]:
    """Distil with a search's best configuration, for all outer steps, and evaluate on the test split.

    Raises: as `run_experiment`.
    """
    name = f"final-{outcome.rows[0].trial}"
    place = RunDir(folder.path / name, folder.storage / name if folder.storage else None)
    began = time.monotonic()
    done = run_experiment(outcome.config, data, place, uri, bar, resume=place.is_claimed, began=began)
    return place, done


def prepare(config: Config, uri: str, bar: Bar) -> DevelopmentData:
    """The run's real data, without the test split, checked against the configuration; and an open store.

    Args:
        uri: the MLflow store, created after all other checks; nothing else is written.

    Raises: ConfigError, DataError or StoreError for all that can be known before the first outer step.
    """
    check_test_source(config)
    data = _development(config, bar)
    check_evaluation(config, data)
    open_store(uri, config.tracking.experiment)
    return data


def prepare_development(config: Config, uri: str, bar: Bar) -> DevelopmentData:
    """As `prepare`, for work without an evaluation: there need be no test split."""
    data = _development(config, bar)
    open_store(uri, config.tracking.experiment)
    return data


def _development(config: Config, bar: Bar) -> DevelopmentData:
    with bar("real images", 100) as update:
        data = load_development_data(config, None, percent(update))
    check_fits_data(config, data)
    return data


@contextmanager
def open_run_dir(
    config: Config, folder: RunDir, uri: str, *, resume: bool = False, replace: bool = False
) -> Iterator[Tracker]:
    """Lock the folder, and open an MLflow run that ends with the block.

    Args:
        resume: continue the run in the folder.
        replace: delete the run in the folder, which must be `check_replaceable`, if there is one.

    Raises: ConfigError, StoreError, StorageError.
    """
    with folder.lock():
        check_reachable(folder.storage)
        tracker = _claim(config, folder, uri, resume=resume, replace=replace)
        with tracked_run(tracker):
            yield tracker


def _claim(config: Config, folder: RunDir, uri: str, *, resume: bool, replace: bool) -> Tracker:
    """Claim a locked folder and create the MLflow run, or resume both."""
    if resume:
        tracker = folder.tracker_to_resume(config)
        if not tracker.exists_in_store():
            raise ConfigError(
                f"{folder.path}: MLflow at {redact(tracker.uri)} does not know its run {tracker.run_id}; "
                "bring the store back, or start again in another --out"
            )
        tracker.reopen()
        folder.fetch()
        return tracker
    if replace:
        folder.clear()
    # Another run may have claimed it since the first check.
    folder.check_empty("Use another --out.")
    tags = {"config_hash": config.hash, "kind": "distill"}
    if folder.storage:
        tags["storage"] = str(folder.storage)
    tracker = create_run(uri, config.tracking.experiment, config.name, config.experiment(), tags)
    folder.claim(config, tracker)
    return tracker


def run_experiment(
    config: Config,
    data: DevelopmentData,
    folder: RunDir,
    uri: str,
    bar: Bar,
    *,
    resume: bool,
    replace: bool = False,
    began: float,
    callbacks: Sequence[Callback] = (),
) -> Outcome:
    """Distil, store, evaluate, on the connected Ray cluster. The MLflow run ends with it.

    Args:
        resume, replace: as `open_run_dir` has them.
        callbacks: called during the distillation.
        began: `time.monotonic()` when the command began, from which the seconds count.

    Raises: ConfigError, StoreError or StorageError before anything is distilled; DistillError, PoolError,
    StorageUnavailableError.
    """
    check_cluster(config)
    warnings: list[str] = []
    with open_run_dir(config, folder, uri, resume=resume, replace=replace) as tracker:
        with bar("distilling", config.outer.steps) as update:
            state, unlogged = train(config, data, folder, tracker, update, callbacks)
        warn_on_failure(warnings, lambda: tracker.log_steps(unlogged))
        dataset = to_dataset(config, data, state, tracker.run_id)
        dataset.save(folder.artifact)
        contact_sheet_of(dataset).save(folder.contact_sheet)
        folder.store(folder.artifact, folder.contact_sheet)
        warn_on_failure(
            warnings, lambda: _log_files(tracker, folder.config, folder.artifact, folder.contact_sheet)
        )
        evaluation_set = load_evaluation_set(DISTILLED, dataset, config, data, bar)
        with folder.mirror_evaluation():
            evaluation = evaluate([evaluation_set], bar, folder.evaluation, (tracker.uri, tracker.run_id))
        rows, wall_s = at_last_horizon(evaluation.rows), time.monotonic() - began
        write_json(folder.summary, summary(config, rows, wall_s))
        # The summary comes last: with it the run is at its end.
        folder.store(folder.evaluation, folder.summary)
        warn_on_failure(warnings, lambda: _log_summary(tracker, rows, wall_s))
        warn_on_failure(warnings, lambda: _log_files(tracker, folder.summary))
    return Outcome(evaluation, tracker, wall_s, warnings + evaluation.warnings)


def _log_files(tracker: Tracker, *paths: Path) -> None:
    for path in paths:
        tracker.log_file(path)


def _log_summary(tracker: Tracker, rows: list[ResultRow], wall_s: float) -> None:
    """Beside the metrics of the run: what came of it, so that runs can be compared without their evaluations."""
    means = [(metric_name(row), row.inner_steps or 0, row.mean) for row in rows if row.mean is not None]
    tracker.log_metrics([*means, ("wall_s", 0, wall_s)])
    tracker.log_table([asdict(row) for row in rows], "evaluation_table.json")


def summary(config: Config, rows: list[ResultRow], wall_s: float) -> dict[str, Any]:
    """Seconds, and mean, std and n of each network and of each baseline (fractions), as their own protocol has them.

    A baseline's own numbers are those of the network that D was distilled through, if that was evaluated.
    """
    rows = [row for row in rows if row.treatment == "own" and row.kind != "subset"]

    def numbers(row: ResultRow) -> dict[str, Any]:
        return {"mean": row.mean, "std": row.std, "n": row.n}

    def own_first(name: str) -> dict[str, Any]:
        of = {row.network: numbers(row) for row in rows if row.kind == name}
        own = config.network.name if config.network.name in of else next(iter(of))
        return {"network": own, **of[own], "networks": of}

    baselines = dict.fromkeys(row.kind for row in rows if row.kind != "distilled")
    return {
        "name": config.name,
        "config_hash": config.hash,
        "wall_s": wall_s,
        "networks": {row.network: numbers(row) for row in rows if row.kind == "distilled"},
        "baselines": {name: own_first(name) for name in baselines},
    }
