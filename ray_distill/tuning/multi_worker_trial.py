"""A trial with several workers: Ray Train inside a Tune trial.

Tune's own callback for Ray Train does not pass on checkpoints, without which a population cannot clone. So Train's controller
puts each report with its checkpoint into a queue, from which the trial reports to Tune. Each start is a Train run with a name
of its own: under an old name Train would resume from its own last checkpoint instead of Tune's.

A trial that Tune stops takes Train's controller with it. What that had reserved is released by Train's cleaner, a detached
actor of each run, which asks Ray's state API for the controller and exits when that is gone; it needs the dashboard.
"""

import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray.train
import torch.distributed as dist
from ray import tune
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue

from ray_distill.cluster.connection import normal_priority
from ray_distill.cluster.process_group import GroupConfig
from ray_distill.config.config import Config
from ray_distill.config.load import parse_config
from ray_distill.core.distributed import Communicator, SingleProcess, TorchDistributed
from ray_distill.core.state import RunState
from ray_distill.distillation.recovery import NoValidCheckpointError, listed_checkpoints, load_latest
from ray_distill.distillation.trainer import scaling_config
from ray_distill.distillation.worker import WorkerContext, open_worker_context, quiet_reports, worker_device
from ray_distill.tuning.trial import (
    TrialMeta,
    read_state,
    repeat_report,
    resume_or_start,
    starting_checkpoint,
    train_trial,
)


def train_worker(setup: dict[str, Any]) -> None:
    """The function of each Ray Train worker of a trial.

    Args:
        setup: `trial` and `shared` (see `search.trial.run_trial`), and `checkpoint`, Tune's.
    """
    quiet_reports()
    normal_priority()
    trial, shared = setup["trial"], setup["shared"]
    config = parse_config(trial["config"])
    fitted = shared["fitted"]
    context = open_worker_context(config, shared["data"], lambda: ray.get(fitted[0]), worker_device(config))
    communicator: Communicator = TorchDistributed() if dist.is_initialized() else SingleProcess()
    # Train has newer ones of its own after it lost a worker.
    given = [] if setup["checkpoint"] is None else [setup["checkpoint"]]
    saved, damaged = load_newest_on_all_ranks(
        [*given, *listed_checkpoints()], context, communicator, shared["search_hash"]
    )
    if damaged and saved is None and given:
        raise NoValidCheckpointError(f"no checkpoint of this trial can be read: {damaged}")
    state, meta = resume_or_start(saved, context, trial["values"])

    def report(metrics: dict[str, Any], checkpoint: Path | None) -> None:
        # Every rank must report, but only rank 0 saves.
        saved = checkpoint if communicator.rank == 0 else None
        ray.train.report(metrics, checkpoint=saved and ray.train.Checkpoint.from_directory(saved))

    train_trial(context, state, meta, communicator, shared["search_hash"], report, damaged)


def load_newest_on_all_ranks(
    checkpoints: Sequence[ray.train.Checkpoint],
    context: WorkerContext,
    communicator: Communicator,
    search_hash: str,
) -> tuple[tuple[RunState, TrialMeta] | None, str]:
    """Load the newest checkpoint that all ranks can read, given the oldest first; all ranks must call it.

    Returns: state and metadata, None if there is none, and a message about damaged checkpoints.
    """

    def read(folder: Path) -> tuple[RunState, TrialMeta]:
        return read_state(folder, search_hash, context.device)

    saved, damaged = load_latest(checkpoints, read, context.device, communicator)
    step = saved[0].outer_step if saved else 0
    return saved, f"{'; '.join(damaged)}; the trial resumes from outer step {step}" if damaged else ""


class _QueueCallback(ray.train.UserCallback):
    """Puts the workers' reports into a queue; runs in the trainer's controller."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """One report of all ranks, of which rank 0's counts."""
        self._queue.put((metrics[0], checkpoint and checkpoint.path))


def _trainer(config: Config, setup: dict[str, Any], queue: Queue) -> TorchTrainer:
    return TorchTrainer(
        train_worker,
        train_loop_config=setup,
        torch_config=GroupConfig(),
        scaling_config=scaling_config(config),
        run_config=ray.train.RunConfig(
            name=f"{setup['trial']['name']}-{uuid.uuid4().hex[:8]}",
            storage_path=setup["shared"]["train"],
            storage_filesystem=setup["shared"]["filesystem"],
            callbacks=[_QueueCallback(queue)],
            failure_config=ray.train.FailureConfig(
                max_failures=config.cluster.max_failures, controller_failure_limit=5
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=3),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )


def run_multi_worker_trial(trial: dict[str, Any], shared: dict[str, Any]) -> None:
    """The function of the process of a trial with several workers: Ray Train, whose reports it passes on to Tune.

    Args: as `search.trial.run_trial`; `shared` also has `train`, the folder of Train's own files in Tune's storage.
    """
    checkpoint = starting_checkpoint(trial, shared)
    if checkpoint is not None and trial["repeat_report"]:
        repeat_report(checkpoint)
    queue = Queue(actor_options={"num_cpus": 0})
    setup = {"trial": trial, "shared": shared, "checkpoint": checkpoint}
    trainer = _trainer(parse_config(trial["config"]), setup, queue)
    raised: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as e:
            raised.append(e)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive() or not queue.empty():
        try:
            metrics, saved = queue.get(timeout=0.5)
        except Empty:
            continue
        tune.report(metrics, checkpoint=saved and tune.Checkpoint(saved, shared["filesystem"]))
    queue.shutdown()
    if raised:
        raise raised[0]
