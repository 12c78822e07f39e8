"""A process that distils: its experiment and real data on a device, and the function that a Ray Train worker runs.

A trial of a search opens the same `WorkerContext`, so that a run's numbers do not depend on who computes it.
"""

import logging
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ray_distill.builders import settings
from ray_distill.builders.experiment import build_experiment, initial_distilled_data, to_run_device
from ray_distill.cluster.connection import normal_priority
from ray_distill.config.config import Config
from ray_distill.config.load import parse_config
from ray_distill.core.distributed import Communicator, SingleProcess, TorchDistributed
from ray_distill.core.metrics import StepMetrics
from ray_distill.core.outer_loop import Experiment, NonFiniteError, Report, outer_loop
from ray_distill.core.state import RunState
from ray_distill.core.unroll import draw_inner, inner_batch
from ray_distill.data.preprocessing import Preprocessing
from ray_distill.data.real_data import RealData
from ray_distill.data.splits import DataHandle, open_development
from ray_distill.distillation import recovery
from ray_distill.distillation.checkpoint import save_state
from ray_distill.distillation.recovery import (
    CheckpointDiskFullError,
    NoValidCheckpointError,
    ResumePoint,
    checkpoint_name,
)
from ray_distill.distillation.reporting import CHECKPOINT_FILE

import ray  # isort: skip  (after ray_distill.cluster.connection, which sets its environment)
import ray.exceptions
import ray.train


@dataclass(frozen=True, eq=False)
class WorkerContext:
    """An experiment and its real data on a device."""

    config: Config
    device: torch.device
    experiment: Experiment
    train: RealData
    validation: RealData

    @cached_property
    def start(self) -> RunState:
        """The state before the first outer step."""
        return RunState.start(
            initial_distilled_data(self.config, self.train, self.device), self.experiment.outer
        )

    @property
    def compiles(self) -> bool:
        """Whether the step functions are to be compiled, which takes about a minute."""
        return self.experiment.inner.functions.compiled

    def compile(self, state: RunState, world: Communicator) -> str:
        """Compile the step functions for this process's groups of replicas. Returns: how it went."""
        began, experiment = time.perf_counter(), self.experiment
        draws = draw_inner(experiment.inner, experiment.seed, state.outer_step, 0, 1, state.data)
        # Validation networks are trained one by one.
        sizes = {1, *(len(group) for group in experiment.groups[world.rank :: world.size])}
        batch = inner_batch(state.data, draws, 0)
        error = experiment.inner.functions.try_compile(draws.theta_P, batch, sorted(sizes))
        return f"not compiled ({error})" if error else f"compiled in {time.perf_counter() - began:.0f} s"


def open_worker_context(
    config: Config, data: DataHandle, fitted: Callable[[], Preprocessing], device: torch.device
) -> WorkerContext:
    """The context of this process, whose number of threads and precision it sets.

    Args:
        fitted: fetches the preprocessing of the real images, on a machine without the preprocessed ones.

    Raises: ConfigError if the configuration does not fit the data; DataError.
    """
    torch.set_num_threads(config.cluster.cpus_per_worker)
    settings.set_tf32(config)
    train, validation = (to_run_device(config, part, device) for part in open_development(data, fitted))
    experiment = build_experiment(config, train.image_shape, train.num_classes, device)
    return WorkerContext(config, device, experiment, train, validation)


def worker_device(config: Config) -> torch.device:
    """The device of this Ray Train worker."""
    if not config.cluster.use_gpu:
        return torch.device("cpu")
    import ray.train.torch

    device: torch.device = ray.train.torch.get_device()
    return device


def quiet_reports() -> None:
    """Silence Ray's log line for every report of every rank, which its own log level does not reach."""
    from ray.train.v2._internal.execution import context

    logging.getLogger(context.__file__).setLevel(logging.WARNING)


class _Reporter:
    """Turns the outer loop's reports into Ray Train reports, with rank 0's state for a checkpoint.

    A checkpoint also holds the metrics that may not be in MLflow yet: the driver, which logs them, may be killed, or
    MLflow may be unavailable.
    """

    def __init__(self, config: Config, world: Communicator, mailbox: Any, resume: ResumePoint) -> None:
        self._config_hash, self._world, self._mailbox = config.hash, world, mailbox
        self._taken = resume.names
        self._unlogged = resume.saved.unlogged if resume.saved else list[StepMetrics]()
        """Used on rank 0 only."""

    def __call__(self, report: Report) -> None:
        """Pass one report to Ray Train; every rank must. Raises: CheckpointDiskFullError, on every rank."""
        metrics = {"points": [tuple(p) for p in report.points]}
        if self._world.rank == 0:
            self._unlogged = [*self._unlogged, *report.points]
        if not report.checkpoint:
            ray.train.report(metrics)
            return
        name = checkpoint_name(report.state.outer_step, self._taken)
        error = ""
        if self._world.rank == 0:
            error = self._save(report.state, metrics, name)
        else:
            ray.train.report(metrics, checkpoint_dir_name=name)
        # A rank that ended alone would leave the others waiting.
        at = report.state.data.images_NCHW.device
        if float(self._world.sum(torch.tensor([bool(error)], dtype=torch.float64, device=at))):
            raise CheckpointDiskFullError(error)

    def _save(self, state: RunState, metrics: dict[str, Any], name: str) -> str:
        """Report with a checkpoint. Returns: the message if a disk is full."""
        self._drop_logged()
        what = f"the checkpoint after outer step {state.outer_step}"
        with ExitStack() as stack:
            try:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                save_state(folder / CHECKPOINT_FILE, self._config_hash, state, self._unlogged)
            except OSError as e:
                # The other ranks wait for this one's report.
                ray.train.report(metrics, checkpoint_dir_name=name)
                return recovery.disk_full_message(e, Path(tempfile.gettempdir()), what)
            try:
                checkpoint = ray.train.Checkpoint.from_directory(folder)
                ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)
            except OSError as e:
                size = f"{(folder / CHECKPOINT_FILE).stat().st_size / 2**20:.2f} MiB"
                error = recovery.disk_full_message(e, recovery.train_storage_path(), f"{what} ({size})")
                recovery.remove_partial_checkpoint(name)
                return error
        return ""

    def _drop_logged(self) -> None:
        # A mailbox that is lost or slow costs a larger checkpoint.
        with suppress(ray.exceptions.RayError):
            logged_step = ray.get(self._mailbox.logged_step.remote(), timeout=10)
            self._unlogged = [p for p in self._unlogged if p.outer_step > logged_step]


def worker(setup: dict[str, Any]) -> str | None:
    """What each Ray Train worker runs: the outer loop, from the last checkpoint if there is one.

    Args:
        setup: `config` (plain data), `data` (the handle of the real images), `fitted` (a list of one reference to
            their preprocessing and class names), and `mailbox` (a list of one actor handle).

    Returns: why the run had to stop early, or None.
    """
    quiet_reports()
    normal_priority()
    config = parse_config(setup["config"])
    context = open_worker_context(
        config, setup["data"], lambda: ray.get(setup["fitted"][0])[0], worker_device(config)
    )
    world: Communicator = TorchDistributed() if dist.is_initialized() else SingleProcess()
    (mailbox,) = setup["mailbox"]
    try:
        resume = recovery.latest_valid(config.hash, context.device, world)
        reporter = _Reporter(config, world, mailbox, resume)
        state = _resume(resume, reporter) if resume.saved else context.start
        if context.compiles:
            mailbox.set_status.remote(state.outer_step, "compiling the step functions")
            compile_status = context.compile(state, world)
            mailbox.set_status.remote(state.outer_step, compile_status)
            ray.train.report({"points": [], "computation": compile_status})
        outer_loop(context.experiment, context.train, context.validation, state, world, reporter)
    except (NonFiniteError, NoValidCheckpointError, CheckpointDiskFullError) as e:
        # On every rank. Raised, it would make Ray restart the workers, to fail the same way.
        return str(e)
    return None


def _resume(resume: ResumePoint, reporter: _Reporter) -> RunState:
    """The state to resume from, after reporting what came with it."""
    assert resume.saved is not None
    state, unlogged = resume.saved
    metrics = {"points": [tuple(p) for p in unlogged]}
    ray.train.report(metrics | {"damaged": resume.damaged} if resume.damaged else metrics)
    if not resume.in_snapshot:
        # The result of a run is the last checkpoint that Train knows.
        reporter(Report(state, [], checkpoint=True))
    return state
