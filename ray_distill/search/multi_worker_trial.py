"""A trial with several workers: Ray Train inside a Tune trial.

Tune's own callback for Ray Train hands it no checkpoints, without which a population cannot clone. So Train's
controller puts each report and its checkpoint into a queue, and the trial, which waits at its other end, tells Tune.
Each start is a Train run with a name of its own: under an old name Train would go on from its own last checkpoint, and
not from the one that Tune gives.

A trial that Tune stops takes Train's controller with it. What that had reserved is given back by Train's cleaner, a detached
actor of each run that asks Ray's state API for the controller, and ends when that is gone; it needs the dashboard. When a
search has ended none of it is left: a test looks.
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
from ray_distill.search.trial import (
    TrialMeta,
    read_state,
    repeat_report,
    resume_or_start,
    starting_checkpoint,
    train_trial,
)


def train_worker(setup: dict[str, Any]) -> None:
    """What each Ray Train worker of a trial does.

    Args:
        setup: the trial's `proposal` and `shared` (see `search_trial.trial`), and `checkpoint`, the one that Tune gave.
    """
    quiet_reports()
    normal_priority()
    proposal, shared = setup["proposal"], setup["shared"]
    config = parse_config(proposal["config"])
    fitted = shared["fitted"]
    place = open_worker_context(config, shared["data"], lambda: ray.get(fitted[0]), worker_device(config))
    world: Communicator = TorchDistributed() if dist.is_initialized() else SingleProcess()
    # Train has its own after one of its workers was lost.
    given = [] if setup["checkpoint"] is None else [setup["checkpoint"]]
    kept, damaged = load_newest_on_all_ranks(
        [*given, *listed_checkpoints()], place, world, shared["search_hash"]
    )
    if damaged and kept is None and given:
        raise NoValidCheckpointError(f"no checkpoint of this trial can be read: {damaged}")
    state, about = resume_or_start(kept, place, proposal["values"])

    def tell(said: dict[str, Any], checkpoint: Path | None) -> None:
        # Every rank must report, and rank 0 alone has something to keep.
        kept = checkpoint if world.rank == 0 else None
        ray.train.report(said, checkpoint=kept and ray.train.Checkpoint.from_directory(kept))

    train_trial(place, state, about, world, shared["search_hash"], tell, damaged)


def load_newest_on_all_ranks(
    checkpoints: Sequence[ray.train.Checkpoint], place: WorkerContext, world: Communicator, search_hash: str
) -> tuple[tuple[RunState, TrialMeta] | None, str]:
    """What the last of these holds, the oldest first, that all ranks can read, which every one must ask; and what is wrong
    with those after it, for people."""
    kept, damaged = load_latest(
        checkpoints, lambda folder: read_state(folder, search_hash, place.device), place.device, world
    )
    said = "; ".join(damaged)
    return kept, said and f"{said}; the trial goes on from outer step {kept[0].outer_step if kept else 0}"


class _Bridge(ray.train.UserCallback):
    """Puts what the workers report into a queue; runs in the trainer's controller."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """One report of all ranks; rank 0 speaks for all."""
        self._queue.put((metrics[0], checkpoint and checkpoint.path))


def _trainer(config: Config, setup: dict[str, Any], queue: Queue) -> TorchTrainer:
    return TorchTrainer(
        train_worker,
        train_loop_config=setup,
        torch_config=GroupConfig(),
        scaling_config=scaling_config(config),
        run_config=ray.train.RunConfig(
            name=f"{setup['proposal']['name']}-{uuid.uuid4().hex[:8]}",
            storage_path=setup["shared"]["train"],
            storage_filesystem=setup["shared"]["filesystem"],
            callbacks=[_Bridge(queue)],
            failure_config=ray.train.FailureConfig(
                max_failures=config.cluster.max_failures, controller_failure_limit=5
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=3),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )


def run_multi_worker_trial(proposal: dict[str, Any], shared: dict[str, Any]) -> None:
    """What the process of a trial with several workers does: Ray Train, whose reports it passes on to Tune.

    Args: as `search_trial.trial`; `shared` also has `train`, the place for Train's own files, in Tune's storage.
    """
    kept = starting_checkpoint(proposal, shared)
    if kept is not None and proposal["again"]:
        repeat_report(kept)
    queue = Queue(actor_options={"num_cpus": 0})
    setup = {"proposal": proposal, "shared": shared, "checkpoint": kept}
    trainer = _trainer(parse_config(proposal["config"]), setup, queue)
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
            said, checkpoint = queue.get(timeout=0.5)
        except Empty:
            continue
        tune.report(said, checkpoint=checkpoint and tune.Checkpoint(checkpoint, shared["filesystem"]))
    queue.shutdown()
    if raised:
        raise raised[0]
