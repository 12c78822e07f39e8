"""A trial in a process of its own: the outer loop, with a report to Tune and a checkpoint at every validation.

Starting Ray Train's workers takes half a minute on a small machine, so a distillation with one worker runs here, in the
process of Tune's trial. A checkpoint has the run's state and, beside it, the trial's lineage: which values were used from
which outer step on, including those of the members of a population that it was cloned from.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import ray
import torch
from pyarrow.fs import FileSelector
from ray import tune

from ray_distill.builders import settings
from ray_distill.config.load import parse_config
from ray_distill.core.distributed import Communicator, SingleProcess
from ray_distill.core.metrics import StepMetrics
from ray_distill.core.outer_loop import Cadence, Experiment, NonFiniteError, Report, outer_loop
from ray_distill.core.state import RunState
from ray_distill.distillation.checkpoint import CheckpointError, load_state, save_state
from ray_distill.distillation.recovery import NoValidCheckpointError, load_latest
from ray_distill.distillation.worker import WorkerContext, open_worker_context
from ray_distill.tuning.config import EVALUATION_KEY
from ray_distill.tuning.domains import Value
from ray_distill.utils.atomic import write_json

STATE = "state.arrow"
META = "trial.json"

Lineage = list[tuple[int, dict[str, Value]]]
"""(outer step, the values used from there on); the first from 0."""


@dataclass
class TrialMeta:
    """What a checkpoint says of its trial."""

    lineage: Lineage
    seconds: float = 0.0
    """In the outer loop until here, in all processes that took part, without pauses."""
    report: dict[str, Any] | None = None
    """The report that the checkpoint was saved with."""

    @classmethod
    def load(cls, folder: Path) -> "TrialMeta":
        """From a checkpoint's folder. Raises: CheckpointError."""
        file = folder / META
        try:
            record = json.loads(file.read_text())
            lineage = [(int(step), dict(values)) for step, values in record["lineage"]]
            seconds, report = float(record["seconds"]), record["told"]
            if not lineage or not math.isfinite(seconds) or not isinstance(report, dict | None):
                raise ValueError("unexpected values")
        except OSError as e:
            raise CheckpointError(f"{file} cannot be read: {e}") from e
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as e:
            raise CheckpointError(f"{file} is truncated or corrupt: {e}") from e
        return cls(lineage, seconds, report)

    def save(self, folder: Path) -> None:
        """Into a checkpoint's folder."""
        record = {"lineage": self.lineage, "seconds": self.seconds, "told": self.report}
        write_json(folder / META, record)


def with_values(meta: TrialMeta, state: RunState, values: dict[str, Value]) -> RunState:
    """The state to continue with these values, which are added to the lineage.

    Sets are evaluated by networks that are trained with the inner step size. If that changes, accuracies from before cannot
    be compared with later ones, so the state loses its best set.
    """
    previous = meta.lineage[-1][1] if meta.lineage else None
    if previous != values:
        meta.lineage.append((state.outer_step, values))
        if previous is not None and previous.get(EVALUATION_KEY) != values.get(EVALUATION_KEY):
            return state._replace(best=None)
    return state


def reporting_each_validation(experiment: Experiment) -> Experiment:
    """The experiment with a report and a checkpoint at every validation, and no others."""
    every = experiment.cadence.validate_every
    cadence = Cadence(report_every=every, validate_every=every, checkpoint_every=every)
    return replace(experiment, cadence=cadence)


ReportFn = Callable[[dict[str, Any], Path | None], None]
"""Reports metrics to Tune, with the folder of a checkpoint, if there is one."""


def report_to_tune(metrics: dict[str, Any], checkpoint: Path | None) -> None:
    """From the trial's own process, which blocks until Tune has decided whether it continues."""
    tune.report(metrics, checkpoint=checkpoint and tune.Checkpoint.from_directory(checkpoint))


class TuneReporter:
    """Turns the outer loop's reports into reports to Tune, with checkpoints."""

    def __init__(
        self, meta: TrialMeta, search_hash: str, validate_every: int, report: ReportFn, damaged: str
    ) -> None:
        self._meta, self._hash, self._every, self._report = meta, search_hash, validate_every, report
        self._extra = {"damaged": damaged} if damaged else dict[str, Any]()
        self._steps: list[StepMetrics] = []
        self._since = time.perf_counter()

    def __call__(self, report: Report) -> None:
        """Report a validation, with all steps since the last."""
        self._meta.seconds += time.perf_counter() - self._since
        self._steps += report.points
        if report.checkpoint:
            self._meta.report = self._metrics(report.points[-1])
            with tempfile.TemporaryDirectory() as folder:
                save_state(Path(folder) / STATE, self._hash, report.state, [])
                self._meta.save(Path(folder))
                metrics = self._meta.report | self._extra | {"points": [tuple(s) for s in self._steps]}
                self._steps, self._extra = [], {}
                self._report(metrics, Path(folder))
        self._since = time.perf_counter()

    def _metrics(self, step: StepMetrics) -> dict[str, Any]:
        _, values = self._meta.lineage[-1]
        return {
            "outer_step": step.outer_step,
            "validations": -(-step.outer_step // self._every),
            "validation_accuracy": step.values["validation_accuracy"],
            "best_validation_accuracy": step.values["best_validation_accuracy"],
            "seconds": self._meta.seconds,
            "values": values,
        }

    def fail(self, reason: str) -> None:
        """Report that the trial cannot continue."""
        last = self._meta.report or {"outer_step": 0, "validations": 0}
        defaults = {"validation_accuracy": 0.0, "best_validation_accuracy": 0.0}
        seconds = self._meta.seconds + time.perf_counter() - self._since
        steps = [tuple(step) for step in self._steps]
        self._report({**defaults, **last, "seconds": seconds, "points": steps, "reason": reason}, None)


def read_state(
    checkpoint: Path, search_hash: str, device: torch.device | None = None
) -> tuple[RunState, TrialMeta]:
    """Read a checkpoint's folder. Raises: CheckpointError if it is damaged, or of another search."""
    return load_state(checkpoint / STATE, search_hash, device).state, TrialMeta.load(checkpoint)


def resume_or_start(
    saved: tuple[RunState, TrialMeta] | None, context: WorkerContext, values: dict[str, Value]
) -> tuple[RunState, TrialMeta]:
    """A checkpoint's state, or the initial one, to continue with these values."""
    state, meta = saved or (context.start, TrialMeta([]))
    return with_values(meta, state, values), meta


def train_trial(
    context: WorkerContext,
    state: RunState,
    meta: TrialMeta,
    communicator: Communicator,
    search_hash: str,
    report: ReportFn,
    damaged: str = "",
) -> None:
    """The outer loop from a state to its end; `damaged`: a message about newer checkpoints, for the first report."""
    if context.compiles:
        context.compile(state, communicator)
    experiment = reporting_each_validation(context.experiment)
    reporter = TuneReporter(meta, search_hash, experiment.cadence.validate_every, report, damaged)
    try:
        outer_loop(experiment, context.train, context.validation, state, communicator, reporter)
    except NonFiniteError as e:
        # If it were raised, Tune would restart the trial, to fail again.
        reporter.fail(str(e))


def run_trial(trial: dict[str, Any], shared: dict[str, Any]) -> None:
    """The function of each trial's process: the outer loop from its checkpoint, or from the start.

    Args:
        trial: `config` (plain data), `values` (of the searched keys), `checkpoint` (to resume from, in Tune's storage, or
            None) and `repeat_report` (whether to report first what the checkpoint was saved with).
        shared: `data` (the handle of the real images), `fitted` (a list of one reference to their preprocessing),
            `search_hash` and `filesystem` (pyarrow's, of Tune's storage; None for this machine's).
    """
    config = parse_config(trial["config"])
    context = open_worker_context(
        config, shared["data"], lambda: ray.get(shared["fitted"][0]), settings.device_for(config)
    )
    checkpoint, saved, damaged = starting_checkpoint(trial, shared), None, ""
    if checkpoint is not None:
        saved, damaged = load_newest(checkpoint, trial["values"], shared["search_hash"], context.device)
        if trial["repeat_report"] and not damaged:
            repeat_report(checkpoint)
    state, meta = resume_or_start(saved, context, trial["values"])
    train_trial(context, state, meta, SingleProcess(), shared["search_hash"], report_to_tune, damaged)


def starting_checkpoint(trial: dict[str, Any], shared: dict[str, Any]) -> tune.Checkpoint | None:
    """The checkpoint to resume from: Tune's, once it has one, before that the queue's."""
    checkpoint: tune.Checkpoint | None = tune.get_checkpoint()
    if checkpoint is None and trial["checkpoint"] is not None:
        return tune.Checkpoint(trial["checkpoint"], shared["filesystem"])
    return checkpoint


def load_newest(
    checkpoint: tune.Checkpoint, values: dict[str, Value], search_hash: str, device: torch.device
) -> tuple[tuple[RunState, TrialMeta], str]:
    """Load a checkpoint, or, if it is damaged, the newest valid one before it that was saved with these values.

    A state from before an exchange was reached with other values. Returns: state and metadata, and a message about damaged
    checkpoints. Raises: NoValidCheckpointError.
    """

    def read(folder: Path) -> tuple[RunState, TrialMeta]:
        return read_state(folder, search_hash, device)

    def read_same(folder: Path) -> tuple[RunState, TrialMeta]:
        state, meta = read(folder)
        if meta.lineage[-1][1] != values:
            raise CheckpointError("was saved with other values")
        return state, meta

    saved, damaged = load_latest([checkpoint], read, device, SingleProcess())
    if saved is None:
        saved, more = load_latest(_older(checkpoint), read_same, device, SingleProcess())
        damaged += more
    message = "; ".join(damaged)
    if saved is None:
        raise NoValidCheckpointError(f"no checkpoint of this trial can be read: {message}")
    return saved, message and f"{message}; the trial resumes from outer step {saved[0].outer_step}"


def _older(checkpoint: tune.Checkpoint) -> list[tune.Checkpoint]:
    """The older checkpoints in the same folder, the oldest first."""
    path = PurePosixPath(checkpoint.path)
    infos = checkpoint.filesystem.get_file_info(FileSelector(str(path.parent), allow_not_found=True))
    names = sorted(info.base_name for info in infos if not info.is_file and info.base_name < path.name)
    return [tune.Checkpoint(f"{path.parent}/{name}", checkpoint.filesystem) for name in names]


def repeat_report(checkpoint: tune.Checkpoint) -> None:
    """Report to Tune again what a checkpoint was saved with."""
    with checkpoint.as_directory() as folder:
        report = TrialMeta.load(Path(folder)).report
        if report is not None:
            tune.report({**report, "points": []}, checkpoint=tune.Checkpoint.from_directory(folder))
