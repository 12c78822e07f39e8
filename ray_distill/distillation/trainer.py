"""A distillation by Ray Train: the worker function and the trainer.

The worker runs `outer_loop`, the very function that the tests call; Ray gives it a rank, a process group
and a place for checkpoints. What the loop reports goes by the trainer's controller to the driver, where `recorder`
passes it on to MLflow and to the progress bar.
"""

import logging
import os
import tempfile
import threading
from concurrent.futures import Future, wait
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ray_distill.cluster.connection import check_resources, environment, normal_priority
from ray_distill.cluster.process_group import GroupConfig
from ray_distill.config.config import Config
from ray_distill.config.load import parse_config
from ray_distill.core.distributed import Communicator, SingleProcess, TorchDistributed
from ray_distill.core.metrics import StepMetrics
from ray_distill.core.outer_loop import NonFiniteError, Report, outer_loop
from ray_distill.core.state import RunState
from ray_distill.data.splits import DevelopmentData
from ray_distill.distillation import recovery
from ray_distill.distillation.checkpoint import SavedRun, load_state, save_state
from ray_distill.distillation.mailbox import ProgressBoard
from ray_distill.distillation.recorder import CHECKPOINT_FILE, Recorder, RunRecording
from ray_distill.distillation.recovery import FoundCheckpoint, NoRoomError, NoWholeCheckpointError, name_of
from ray_distill.distillation.worker import WorkerContext, open_worker_context
from ray_distill.errors import RunError, is_disk_full
from ray_distill.storage.run_dir import RunDir
from ray_distill.tracking.tracker import Tracker
from ray_distill.utils.progress import Update

import ray  # isort: skip  (after ray_distill.cluster.connection, which sets its environment)
import ray.exceptions
import ray.train
from ray.train.torch import TorchTrainer

logger = logging.getLogger(__name__)
TAKE_STOCK_EVERY_S = 20.0
"""How often an elastic run looks whether nodes have come; Ray itself counts them as often. Growing costs a restart from
the last checkpoint, so nodes that come together should be taken together."""
PLACED_WITHIN_S = 25.0
"""How long an elastic run waits until its workers have their places, before it looks again how many there are: more than it
takes Ray to notice that a node was lost, and less than the 60 s of other runs, which wait for what is to come."""
_PLACED_WITHIN = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""Train's own name for it."""
TRAIN_RUN = "run"
"""The name of Ray Train's run inside the run's folder: the pair is what Train resumes by."""


class DistillError(RunError):
    """A run that could not be brought to its end."""


def worker_device(config: Config) -> torch.device:
    """The device of this Ray Train worker."""
    if not config.cluster.use_gpu:
        return torch.device("cpu")
    import ray.train.torch

    device: torch.device = ray.train.torch.get_device()
    return device


class _Reporter:
    """What the outer loop's reports become: Ray Train reports, with rank 0's state where one is kept.

    A checkpoint also holds the points that MLflow does not have for certain: the driver, which records them, may
    be killed between the two, or the store may be away.
    """

    def __init__(self, config: Config, world: Communicator, board: Any, found: FoundCheckpoint) -> None:
        self._config_hash, self._world, self._board = config.hash, world, board
        self._taken = found.names
        self._unrecorded = found.kept.unrecorded if found.kept else list[StepMetrics]()
        """Rank 0's matter."""

    def __call__(self, report: Report) -> None:
        """Pass one report on; every rank must. Raises: NoRoomError, on every rank."""
        metrics = {"points": [tuple(p) for p in report.points]}
        if self._world.rank == 0:
            self._unrecorded = [*self._unrecorded, *report.points]
        if not report.checkpoint:
            ray.train.report(metrics)
            return
        name = name_of(report.state.outer_step, self._taken)
        said = ""
        if self._world.rank == 0:
            said = self._keep(report.state, metrics, name)
        else:
            ray.train.report(metrics, checkpoint_dir_name=name)
        # A rank that ended alone would leave the others waiting.
        at = report.state.data.images_NCHW.device
        if float(self._world.sum(torch.tensor([bool(said)], dtype=torch.float64, device=at))):
            raise NoRoomError(said)

    def _keep(self, state: RunState, metrics: dict[str, Any], name: str) -> str:
        """Report, with the state. Returns: why there was no room for it, if there was none."""
        self._forget_recorded()
        what = f"the checkpoint after outer step {state.outer_step}"
        with ExitStack() as stack:
            try:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                save_state(folder / CHECKPOINT_FILE, self._config_hash, state, self._unrecorded)
            except OSError as e:
                # The other ranks wait for this one's report.
                ray.train.report(metrics, checkpoint_dir_name=name)
                return recovery.no_room(e, Path(tempfile.gettempdir()), what)
            try:
                kept = ray.train.Checkpoint.from_directory(folder)
                ray.train.report(metrics, checkpoint=kept, checkpoint_dir_name=name)
            except OSError as e:
                takes = f"{(folder / CHECKPOINT_FILE).stat().st_size / 2**20:.2f} MiB"
                said = recovery.no_room(e, recovery.storage_path(), f"{what}, which takes {takes}")
                recovery.remove_part(name)
                return said
        return ""

    def _forget_recorded(self) -> None:
        # A board that is gone or slow costs a larger checkpoint.
        with suppress(ray.exceptions.RayError):
            recorded = ray.get(self._board.recorded.remote(), timeout=10)
            self._unrecorded = [p for p in self._unrecorded if p.outer_step > recorded]


def quiet_reports() -> None:
    """Ray logs every report of every rank, under a logger that its own log level does not reach."""
    from ray.train.v2._internal.execution import context

    logging.getLogger(context.__file__).setLevel(logging.WARNING)


def _compile(place: WorkerContext, state: RunState, world: Communicator, board: Any) -> str:
    """Compile the step functions before the first step, if they are to be; says what became of it."""
    if not place.compiles:
        return ""
    board.post.remote(state.outer_step, "compiling the step functions")
    said = place.compile(state, world)
    board.post.remote(state.outer_step, said)
    return said


def worker(setup: dict[str, Any]) -> str | None:
    """What each Ray Train worker does: the outer loop from the last checkpoint, or from the start.

    Args:
        setup: `config` (plain data), `data` (the handle of the real images), `fitted` (a list of one reference to
            their preprocessing and class names), and `board` (a list of one handle of the progress board).

    Returns: why the run had to end early, or None.
    """
    quiet_reports()
    normal_priority()
    config = parse_config(setup["config"])
    place = open_worker_context(
        config, setup["data"], lambda: ray.get(setup["fitted"][0])[0], worker_device(config)
    )
    world: Communicator = TorchDistributed() if dist.is_initialized() else SingleProcess()
    (board,) = setup["board"]
    try:
        found = recovery.latest_valid(config.hash, place.device, world)
        reporter = _Reporter(config, world, board, found)
        state = _go_on(found, reporter) if found.kept else place.start
        said = _compile(place, state, world, board)
        if said:
            ray.train.report({"points": [], "computation": said})
        outer_loop(place.experiment, place.train, place.validation, state, world, reporter)
    except (NonFiniteError, NoWholeCheckpointError, NoRoomError) as e:
        # Every rank comes here. Raised, it would make Ray start the workers again, to fail the same way.
        return str(e)
    return None


def _go_on(found: FoundCheckpoint, reporter: _Reporter) -> RunState:
    """The state to go on from, after what there is to say of it."""
    assert found.kept is not None
    state, unrecorded = found.kept
    # MLflow takes what it does not have.
    said = {"points": [tuple(p) for p in unrecorded]}
    ray.train.report(said | {"damaged": found.damaged} if found.damaged else said)
    if not found.booked:
        # At its end the run is what Train has as its last checkpoint.
        reporter(Report(state, [], checkpoint=True))
    return state


def scaling_of(config: Config) -> ray.train.ScalingConfig:
    """How many workers, and what each has."""
    cluster = config.cluster
    elastic: dict[str, Any] = {}
    if cluster.min_workers is not None:
        elastic = {
            "num_workers": (cluster.min_workers, cluster.num_workers),
            "elastic_resize_monitor_interval_s": TAKE_STOCK_EVERY_S,
        }
    return ray.train.ScalingConfig(
        **({"num_workers": cluster.num_workers} | elastic),
        use_gpu=cluster.use_gpu,
        resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.use_gpu else {}),
    )


def placed_within(config: Config) -> dict[str, str]:
    """The environment in which a trainer waits as long for its workers' places as the run wants; the user's is left."""
    if config.cluster.min_workers is None or _PLACED_WITHIN in os.environ:
        return {}
    return {_PLACED_WITHIN: f"{PLACED_WITHIN_S:g}"}


def _trainer(config: Config, data: DevelopmentData, folder: RunDir, board: Any) -> TorchTrainer:
    fitted = [ray.put((data.preprocessing, data.class_names))]
    setup = {
        "config": config.to_dict(),
        "data": data.handle,
        "fitted": fitted,
        "board": [board],
    }
    cluster = config.cluster
    storage_path, filesystem = folder.ray_storage()
    return TorchTrainer(
        worker,
        train_loop_config=setup,
        torch_config=GroupConfig(),
        scaling_config=scaling_of(config),
        run_config=ray.train.RunConfig(
            name=TRAIN_RUN,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            callbacks=[Recorder(board, fitted)],
            # Without a limit for the controller, Ray waits for ever for resources that never come.
            failure_config=ray.train.FailureConfig(
                max_failures=cluster.max_failures, controller_failure_limit=5
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )


def check_cluster(config: Config) -> None:
    """Raises: ConfigError if the connected cluster could never place the run's workers."""
    cluster = config.cluster
    fewest = "num_workers" if cluster.min_workers is None else "min_workers"
    check_resources(
        fewest, getattr(cluster, fewest), cluster.cpus_per_worker, 1.0 if cluster.use_gpu else 0.0
    )


def _fit(trainer: TorchTrainer, recording: RunRecording, folder: RunDir, update: Update) -> ray.train.Result:
    """`trainer.fit()`, with what is on the board recorded and shown once a second, as long as the storage is ours.

    It runs in a thread of its own: in the main thread it would answer Ctrl-C itself, end the process without
    a word, and swallow the interrupts that come after it. Here an interrupt reaches the caller, and the run
    ends with the driver's connection to Ray.
    """
    outcome: Future[ray.train.Result] = Future()

    def fit() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as e:
            outcome.set_exception(e)

    threading.Thread(target=fit, daemon=True).start()
    while not outcome.done():
        wait([outcome], timeout=1.0)
        folder.check_lease()
        recording.visit(update)
    return outcome.result()


def _last_lines(failures: dict[int, Exception]) -> list[str]:
    """What each failed worker said last: Ray's own texts carry whole tracebacks."""
    return [f"worker {rank}: {str(f).strip().splitlines()[-1]}" for rank, f in sorted(failures.items())]


def train(
    config: Config, data: DevelopmentData, folder: RunDir, tracker: Tracker, update: Update
) -> SavedRun:
    """Distil by Ray Train, from the folder's last checkpoint if there is one.

    Returns: the end of the run, and the last points, which MLflow may not have if it was away.

    Needs a connection to Ray (`cluster`). Raises: ConfigError if the workers cannot be placed or the network
    does not fit the images; DistillError if the run could not be brought to its end; LostLeaseError.
    """
    check_cluster(config)
    board = ProgressBoard.remote()
    trainer = _trainer(config, data, folder, board)
    if trouble := recovery.quarantine_snapshot(*folder.ray_storage(), TRAIN_RUN):
        logger.warning("%s", trouble)
    try:
        with closing(RunRecording(tracker, board)) as recording, environment(placed_within(config)):
            result = _fit(trainer, recording, folder, update)
    except ray.train.WorkerGroupError as e:
        raise DistillError("; ".join(_last_lines(e.worker_failures))) from e
    except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as e:
        cause = getattr(e, "controller_failure", None)
        if isinstance(cause, OSError) and is_disk_full(cause):
            raise DistillError(
                recovery.no_room(cause, folder.train_location(), "Ray Train's list of checkpoints")
            ) from e
        raise DistillError(str(e)) from e
    if result.return_value is not None:
        raise DistillError(result.return_value)
    if result.checkpoint is None:
        raise DistillError("the run ended without a checkpoint")
    with result.checkpoint.as_directory() as kept:
        return load_state(Path(kept) / CHECKPOINT_FILE, config.hash)
