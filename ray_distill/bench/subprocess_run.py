"""One measured run in its own process, as a bare outer loop or through Ray Train.

The benchmark calls `run_measured`, which starts a process that calls `main`. That process ends when its standard input
is closed, so it cannot outlive the benchmark.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from ray_distill.builders.experiment import (
    build_experiment,
    initial_distilled_data,
    load_development_data,
    to_run_device,
)
from ray_distill.config.config import Config
from ray_distill.config.load import load_config
from ray_distill.core.distilled import DistilledData
from ray_distill.core.distributed import SingleProcess
from ray_distill.core.metrics import StepMetrics
from ray_distill.core.outer_loop import Report, outer_loop
from ray_distill.core.state import RunState
from ray_distill.distillation import checkpoint
from ray_distill.errors import RunError, UserError

SECONDS = ("seconds_per_outer_step", "seconds_per_validation")
"""The metrics that the benchmark reads."""

SHUTDOWN_TIMEOUT_S = 30.0
"""Time for an interrupted run to shut down its Ray cluster, before it is killed."""


class MeasuredRun(NamedTuple):
    """The result of a run, with its start and end."""

    points: list[StepMetrics]
    data: DistilledData
    """D after the last outer step."""
    started_unix_s: float
    """When its process was started."""
    ended_unix_s: float
    """When its process, and with it its Ray cluster, had exited."""


def run_bare(config: Config, folder: Path) -> tuple[list[StepMetrics], RunState]:
    """The outer loop alone: no Ray, no MLflow, no checkpoints."""
    torch.set_num_threads(config.cluster.cpus_per_worker)
    cpu = torch.device("cpu")
    data = load_development_data(config)
    experiment = build_experiment(config, data.image_shape, data.num_classes)
    train = to_run_device(config, data.train, cpu)
    validation = to_run_device(config, data.validation, cpu)
    state = RunState.start(initial_distilled_data(config, data.train, cpu), experiment.outer)
    reports: list[Report] = []
    end = outer_loop(experiment, train, validation, state, SingleProcess(), reports.append)
    return [point for report in reports for point in report.points], end


def run_through_ray(config: Config, folder: Path) -> tuple[list[StepMetrics], RunState]:
    """What `distill` does before the evaluation, with a Ray cluster and an MLflow store of its own."""
    from ray_distill import pipeline
    from ray_distill.cluster.connection import cluster
    from ray_distill.distillation.trainer import train
    from ray_distill.storage.run_dir import RunDir
    from ray_distill.tracking.uri import store_uri
    from ray_distill.utils.progress import silent

    run_dir = RunDir(folder / "run")
    uri = store_uri(None, run_dir.path)
    with cluster():
        data = pipeline.prepare(config, uri, silent)
        with (
            pipeline.open_run_dir(config, run_dir, uri) as tracker,
            silent("distilling", config.outer.steps) as update,
        ):
            end = train(config, data, run_dir, tracker, update).state
    return tracker.steps(SECONDS), end


ROUTES: dict[str, Callable[[Config, Path], tuple[list[StepMetrics], RunState]]] = {
    "bare": run_bare,
    "ray": run_through_ray,
}


def run_measured(route: str, config: Config, folder: Path) -> MeasuredRun:
    """Run one of ROUTES in its own process, which has exited when this returns or raises.

    Args:
        folder: created for all files of the run, including Ray's; a short path, since Ray puts its sockets there.

    Raises: UserError or RunError, as the run did; RunError if its process failed in any other way.
    """
    folder.mkdir()
    (folder / "config.yaml").write_text(config.to_yaml())
    # The user's cluster and store stay out of it; no process uses more threads than a worker has; and Ray's workers,
    # which by default run at a lower priority, get that of the bare loop.
    environment = os.environ | {
        "RAY_TMPDIR": str(folder),
        "OMP_NUM_THREADS": str(config.cluster.cpus_per_worker),
        "RAY_worker_niceness": "0",
    }
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "ray_distill.bench.subprocess_run", route, str(folder)]
    started = time.time()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            code = process.wait()
        finally:
            _end(process)
    ended = time.time()
    if code != 0:
        raise _error(code, folder)
    points = [StepMetrics(*point) for point in json.loads((folder / "points.json").read_text())]
    if len(points) != config.outer.steps:
        raise RunError(f"a measured run recorded {len(points)} of {config.outer.steps} outer steps")
    tensors, _ = checkpoint.load_tensors(folder / "end.arrow")
    return MeasuredRun(points, DistilledData(tensors["images"], tensors["labels"]), started, ended)


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(SHUTDOWN_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _error(code: int, folder: Path) -> Exception:
    """The error that the process reported; if it did not, its exit code and the end of its log."""
    with suppress(OSError):
        message = (folder / "error").read_text()
        return UserError(message) if code == 2 else RunError(message)
    lines = (folder / "log").read_text(errors="replace").strip().splitlines() or ["(empty)"]
    return RunError(f"a measured run failed with exit code {code}; the last line of its log: {lines[-1]}")


def _end_with_input() -> None:
    os.read(0, 1)
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def main(route: str, folder: Path) -> int:
    """Run the config in `folder` and save the metrics and D there. Returns: the exit code."""
    # SIGINT is ignored in processes started from a background job.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        points, end = ROUTES[route](load_config(folder / "config.yaml"), folder)
    except (UserError, RunError) as e:
        (folder / "error").write_text(str(e))
        return 2 if isinstance(e, UserError) else 1
    (folder / "points.json").write_text(json.dumps(points))
    checkpoint.save_tensors(
        folder / "end.arrow", {"images": end.data.images_NCHW, "labels": end.data.labels_NK}, {}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
