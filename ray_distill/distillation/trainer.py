"""Distillation by Ray Train: the trainer around `worker`.

The worker runs `outer_loop`, the very function that the tests call; Ray gives it a rank, a process group and a place for
checkpoints. Its reports go through the trainer's controller to the driver, which logs them (`reporting`).
"""

import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from pathlib import Path
from typing import Any

from ray_distill.cluster.connection import check_resources, environment
from ray_distill.cluster.process_group import GroupConfig
from ray_distill.config.config import Config
from ray_distill.data.splits import DevelopmentData
from ray_distill.distillation import recovery
from ray_distill.distillation.callbacks import Callback
from ray_distill.distillation.checkpoint import SavedRun, load_state
from ray_distill.distillation.mailbox import MailboxActor
from ray_distill.distillation.reporting import CHECKPOINT_FILE, ReportForwarder, ReportLogger
from ray_distill.distillation.worker import worker
from ray_distill.errors import RunError, is_disk_full
from ray_distill.storage.run_dir import RunDir
from ray_distill.tracking.tracker import Tracker
from ray_distill.utils.progress import Update

import ray  # isort: skip  (after ray_distill.cluster.connection, which sets its environment)
import ray.exceptions
import ray.train
from ray.train.torch import TorchTrainer

logger = logging.getLogger(__name__)
RESIZE_CHECK_INTERVAL_S = 20.0
"""How often an elastic run checks for new nodes; Ray itself counts them as often. Growing costs a restart from the last
checkpoint, so nodes that arrive together should be added together."""
PLACEMENT_TIMEOUT_S = 25.0
"""How long an elastic run waits for its workers to be placed before it checks how many fit: longer than Ray takes to notice a
lost node, and shorter than the 60 s of other runs, which wait for nodes to come."""
_PLACEMENT_TIMEOUT_ENV = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""Ray Train's variable for it."""
TRAIN_RUN = "run"
"""The name of Ray Train's run inside the run's folder; Train resumes by the two."""


class DistillError(RunError):
    """A distillation failed."""


def scaling_config(config: Config) -> ray.train.ScalingConfig:
    """The number of workers and the resources of each."""
    cluster = config.cluster
    elastic: dict[str, Any] = {}
    if cluster.min_workers is not None:
        elastic = {
            "num_workers": (cluster.min_workers, cluster.num_workers),
            "elastic_resize_monitor_interval_s": RESIZE_CHECK_INTERVAL_S,
        }
    return ray.train.ScalingConfig(
        **({"num_workers": cluster.num_workers} | elastic),
        use_gpu=cluster.use_gpu,
        resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.use_gpu else {}),
    )


def placement_timeout_env(config: Config) -> dict[str, str]:
    """The environment variable that sets an elastic run's placement timeout, unless the user has set it."""
    if config.cluster.min_workers is None or _PLACEMENT_TIMEOUT_ENV in os.environ:
        return {}
    return {_PLACEMENT_TIMEOUT_ENV: f"{PLACEMENT_TIMEOUT_S:g}"}


def _trainer(config: Config, data: DevelopmentData, folder: RunDir, mailbox: Any) -> TorchTrainer:
    fitted = [ray.put((data.preprocessing, data.class_names))]
    setup = {
        "config": config.to_dict(),
        "data": data.handle,
        "fitted": fitted,
        "mailbox": [mailbox],
    }
    storage_path, filesystem = folder.ray_storage()
    return TorchTrainer(
        worker,
        train_loop_config=setup,
        torch_config=GroupConfig(),
        scaling_config=scaling_config(config),
        run_config=ray.train.RunConfig(
            name=TRAIN_RUN,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            callbacks=[ReportForwarder(mailbox, fitted)],
            # Without a limit for the controller, Ray waits for ever for resources that never come.
            failure_config=ray.train.FailureConfig(
                max_failures=config.cluster.max_failures, controller_failure_limit=5
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


def _fit(trainer: TorchTrainer, reports: ReportLogger, folder: RunDir, update: Update) -> ray.train.Result:
    """`trainer.fit()`, while reports are logged and the lease on the storage is checked once a second.

    It runs in a thread of its own: in the main thread it would handle Ctrl-C itself, end the process silently and swallow
    further interrupts. Here an interrupt reaches the caller, and the run ends with the driver's connection to Ray.
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
        reports.poll(update)
    return outcome.result()


def _last_lines(failures: dict[int, Exception]) -> list[str]:
    """The last line of each failed worker's error; Ray's texts contain whole tracebacks."""
    return [f"worker {rank}: {str(f).strip().splitlines()[-1]}" for rank, f in sorted(failures.items())]


def train(
    config: Config,
    data: DevelopmentData,
    folder: RunDir,
    tracker: Tracker,
    update: Update,
    callbacks: Sequence[Callback] = (),
) -> SavedRun:
    """Distil with Ray Train, from the folder's last checkpoint if there is one.

    Returns: the final state, and the last metrics, which are not in MLflow if it was unavailable.

    Needs a connection to Ray (`cluster`). Raises: ConfigError if the workers cannot be placed or the network
    does not fit the images; DistillError if the distillation failed; LostLeaseError.
    """
    check_cluster(config)
    mailbox = MailboxActor.remote()
    trainer = _trainer(config, data, folder, mailbox)
    if error := recovery.quarantine_snapshot(*folder.ray_storage(), TRAIN_RUN):
        logger.warning("%s", error)
    try:
        with (
            closing(ReportLogger(tracker, mailbox, callbacks)) as reports,
            environment(placement_timeout_env(config)),
        ):
            result = _fit(trainer, reports, folder, update)
    except ray.train.WorkerGroupError as e:
        raise DistillError("; ".join(_last_lines(e.worker_failures))) from e
    except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as e:
        cause = getattr(e, "controller_failure", None)
        if isinstance(cause, OSError) and is_disk_full(cause):
            what = "Ray Train's list of checkpoints"
            raise DistillError(recovery.disk_full_message(cause, folder.train_location(), what)) from e
        raise DistillError(str(e)) from e
    if result.return_value is not None:
        raise DistillError(result.return_value)
    if result.checkpoint is None:
        raise DistillError("the run ended without a checkpoint")
    with result.checkpoint.as_directory() as checkpoint:
        return load_state(Path(checkpoint) / CHECKPOINT_FILE, config.hash)
