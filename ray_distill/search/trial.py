"""A trial in a process of its own: the outer loop, told to Tune at every validation, with a checkpoint.

Starting Ray Train's workers takes half a minute on a small machine, so a distillation with one worker runs here, in
the process of Tune's trial. A checkpoint holds the run's state and, beside it, how the trial came there: its lineage,
the values that held from which outer step on, those of the members of a population that it was cloned from included.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
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
from ray_distill.search.config import EVALUATION_KEY
from ray_distill.search.domains import Value
from ray_distill.utils.atomic import write_json

STATE = "state.arrow"
META = "trial.json"

Lineage = list[tuple[int, dict[str, Value]]]
"""From which outer step on which values held; the first from 0."""


@dataclass
class TrialMeta:
    """What a checkpoint says of its trial."""

    lineage: Lineage
    seconds: float = 0.0
    """Of the outer loop up to here, in all processes that took part, pauses left out."""
    told: dict[str, Any] | None = None
    """The report that the checkpoint was kept with."""

    @classmethod
    def load(cls, path: Path) -> "TrialMeta":
        """From a checkpoint's folder. Raises: CheckpointError."""
        file = path / META
        try:
            values = json.loads(file.read_text())
            lineage = [(int(step), dict(of)) for step, of in values["lineage"]]
            seconds, told = float(values["seconds"]), values["told"]
            if not lineage or not math.isfinite(seconds) or not isinstance(told, dict | None):
                raise ValueError("other values")
        except OSError as e:
            raise CheckpointError(f"{file} cannot be read: {e}") from e
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as e:
            raise CheckpointError(f"{file} was cut or altered after it was written: {e}") from e
        return cls(lineage, seconds, told)


def with_values(about: TrialMeta, state: RunState, values: dict[str, Value]) -> RunState:
    """Take a state up with these values, noted in its lineage.

    Sets are judged by networks that are trained with the inner step size. Where that changes, accuracies from before
    cannot be compared with those that come, so the best set is looked for anew.
    """
    before = about.lineage[-1][1] if about.lineage else None
    if before != values:
        about.lineage.append((state.outer_step, values))
        if before is not None and before.get(EVALUATION_KEY) != values.get(EVALUATION_KEY):
            return state._replace(best=None)
    return state


def reporting_each_validation(experiment: Experiment) -> Experiment:
    """With a report and a checkpoint at every validation and no others: what a search compares."""
    every = experiment.cadence.validate_every
    return replace(
        experiment, cadence=Cadence(report_every=every, validate_every=every, checkpoint_every=every)
    )


ReportFn = Callable[[dict[str, Any], Path | None], None]
"""Says something to Tune, with the folder of a checkpoint, if there is one."""


def report_to_tune(said: dict[str, Any], checkpoint: Path | None) -> None:
    """From the trial's own process, which waits in it for Tune's decision: that may be to end it."""
    tune.report(said, checkpoint=checkpoint and tune.Checkpoint.from_directory(checkpoint))


class TuneReporter:
    """What the outer loop's reports become: reports to Tune, with checkpoints."""

    def __init__(
        self, about: TrialMeta, search_hash: str, validate_every: int, tell: ReportFn, damaged: str
    ) -> None:
        self._about, self._hash, self._every, self._tell = about, search_hash, validate_every, tell
        self._also = {"damaged": damaged} if damaged else dict[str, Any]()
        self._waiting: list[StepMetrics] = []
        self._since = time.perf_counter()

    def __call__(self, report: Report) -> None:
        """ReportFn Tune of a validation."""
        self._about.seconds += time.perf_counter() - self._since
        self._waiting += report.points
        if report.checkpoint:
            self._about.told = self._told(report.points[-1])
            with tempfile.TemporaryDirectory() as folder:
                save_state(Path(folder) / STATE, self._hash, report.state, [])
                write_json(Path(folder) / META, asdict(self._about))
                points, self._waiting = self._waiting, []
                said = self._about.told | self._also | {"points": [tuple(p) for p in points]}
                self._also = {}
                self._tell(said, Path(folder))
        self._since = time.perf_counter()

    def _told(self, point: StepMetrics) -> dict[str, Any]:
        _, values = self._about.lineage[-1]
        return {
            "outer_step": point.outer_step,
            "validations": -(-point.outer_step // self._every),
            "validation_accuracy": point.values["validation_accuracy"],
            "best_validation_accuracy": point.values["best_validation_accuracy"],
            "seconds": self._about.seconds,
            "values": values,
        }

    def failed(self, reason: str) -> None:
        """ReportFn Tune that the trial cannot go on."""
        told = self._about.told or {"outer_step": 0, "validations": 0}
        nothing = {"validation_accuracy": 0.0, "best_validation_accuracy": 0.0}
        points = [tuple(p) for p in self._waiting]
        seconds = self._about.seconds + time.perf_counter() - self._since
        self._tell({**nothing, **told, "seconds": seconds, "points": points, "reason": reason}, None)


def read_state(
    checkpoint: Path, search_hash: str, device: torch.device | None = None
) -> tuple[RunState, TrialMeta]:
    """What a checkpoint's folder holds. Raises: CheckpointError for a damaged one, or one of another search."""
    return load_state(checkpoint / STATE, search_hash, device).state, TrialMeta.load(checkpoint)


def resume_or_start(
    kept: tuple[RunState, TrialMeta] | None, place: WorkerContext, values: dict[str, Value]
) -> tuple[RunState, TrialMeta]:
    """What a checkpoint held, or the state before the first outer step, with these values from now on."""
    state, about = kept or (place.start, TrialMeta([]))
    return with_values(about, state, values), about


def train_trial(
    place: WorkerContext,
    state: RunState,
    about: TrialMeta,
    world: Communicator,
    search_hash: str,
    tell: ReportFn,
    damaged: str = "",
) -> None:
    """The outer loop from a state to the end; `damaged`: what is wrong with newer ones, told with the first report."""
    if place.compiles:
        place.compile(state, world)
    experiment = reporting_each_validation(place.experiment)
    teller = TuneReporter(about, search_hash, experiment.cadence.validate_every, tell, damaged)
    try:
        outer_loop(experiment, place.train, place.validation, state, world, teller)
    except NonFiniteError as e:
        # Raised, it would make Tune start the trial again, to fail the same way.
        teller.failed(str(e))


def run_trial(proposal: dict[str, Any], shared: dict[str, Any]) -> None:
    """What the process of each trial does: the outer loop from its checkpoint, or from the start.

    Args:
        proposal: `config` (plain data), `values` (of the searched keys), `checkpoint` (where in Tune's storage to go on
            from, or None) and `again` (whether to begin by telling Tune once more what the checkpoint was kept with).
        shared: `data` (the handle of the real images), `fitted` (a list of one reference to their preprocessing),
            `search_hash` and `filesystem` (pyarrow's, of Tune's storage; None for this machine's).
    """
    config = parse_config(proposal["config"])
    place = open_worker_context(
        config, shared["data"], lambda: ray.get(shared["fitted"][0]), settings.device_for(config)
    )
    given, kept, damaged = starting_checkpoint(proposal, shared), None, ""
    if given is not None:
        kept, damaged = load_newest(given, proposal["values"], shared["search_hash"], place.device)
        if proposal["again"] and not damaged:
            repeat_report(given)
    state, about = resume_or_start(kept, place, proposal["values"])
    train_trial(place, state, about, SingleProcess(), shared["search_hash"], report_to_tune, damaged)


def starting_checkpoint(proposal: dict[str, Any], shared: dict[str, Any]) -> tune.Checkpoint | None:
    """The one that a trial is to go on from: Tune's, once it has one, before that the proposal's."""
    given: tune.Checkpoint | None = tune.get_checkpoint()
    if given is None and proposal["checkpoint"] is not None:
        return tune.Checkpoint(proposal["checkpoint"], shared["filesystem"])
    return given


def load_newest(
    given: tune.Checkpoint, values: dict[str, Value], search_hash: str, device: torch.device
) -> tuple[tuple[RunState, TrialMeta], str]:
    """What the checkpoint holds that a trial was given; if it is damaged, the newest whole one before it that was kept with
    these values, and what is wrong with those after that.

    A state from before an exchange led there by other values. Raises: NoValidCheckpointError.
    """

    def read(folder: Path) -> tuple[RunState, TrialMeta]:
        return read_state(folder, search_hash, device)

    def read_same(folder: Path) -> tuple[RunState, TrialMeta]:
        state, about = read(folder)
        if about.lineage[-1][1] != values:
            raise CheckpointError("was kept with other values")
        return state, about

    found, damaged = load_latest([given], read, device, SingleProcess())
    if found is None:
        found, more = load_latest(_before(given), read_same, device, SingleProcess())
        damaged += more
    said = "; ".join(damaged)
    if found is None:
        raise NoValidCheckpointError(f"no checkpoint of this trial can be read: {said}")
    return found, said and f"{said}; the trial goes on from outer step {found[0].outer_step}"


def _before(given: tune.Checkpoint) -> list[tune.Checkpoint]:
    """Those that lie beside a checkpoint and are older, the oldest first."""
    path = PurePosixPath(given.path)
    beside = given.filesystem.get_file_info(FileSelector(str(path.parent), allow_not_found=True))
    names = sorted(info.base_name for info in beside if not info.is_file and info.base_name < path.name)
    return [tune.Checkpoint(f"{path.parent}/{name}", given.filesystem) for name in names]


def repeat_report(checkpoint: tune.Checkpoint) -> None:
    """ReportFn Tune what a checkpoint was kept with."""
    with checkpoint.as_directory() as folder:
        told = TrialMeta.load(Path(folder)).told
        if told is not None:
            tune.report({**told, "points": []}, checkpoint=tune.Checkpoint.from_directory(folder))
