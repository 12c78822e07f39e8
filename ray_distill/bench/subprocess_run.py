"""A run that is measured, in a process of its own: as a bare loop, or as the real thing through Ray Train.

`run_measured` is for the command, `main` is what its process does. That process ends when its standard input does,
so it cannot outlive the command, however that ends.
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
"""What is read of a run's points."""

END_WITHIN_S = 30.0
"""What an interrupted run gets to end its Ray cluster."""


class MeasuredRun(NamedTuple):
    """What came of a run, and when."""

    points: list[StepMetrics]
    data: DistilledData
    """D after the last outer step."""
    began_unix_s: float
    """When its process was started."""
    ended_unix_s: float
    """When its process, and with it its Ray cluster, had ended."""


def run_bare(config: Config, folder: Path) -> tuple[list[StepMetrics], RunState]:
    """The outer loop and nothing else: no Ray, no MLflow, no checkpoints."""
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
    """What `distill` does before it evaluates, with a Ray cluster and a store that nobody else uses."""
    from ray_distill import pipeline
    from ray_distill.cluster.connection import cluster
    from ray_distill.distillation.trainer import train
    from ray_distill.storage.run_dir import RunDir
    from ray_distill.tracking.uri import store_uri
    from ray_distill.utils.progress import silent

    place = RunDir(folder / "run")
    uri = store_uri(None, place.path)
    with cluster():
        data = pipeline.prepare(config, uri, silent)
        with (
            pipeline.open_run_dir(config, place, uri) as tracker,
            silent("distilling", config.outer.steps) as update,
        ):
            end = train(config, data, place, tracker, update).state
    return tracker.steps(SECONDS), end


ROUTES: dict[str, Callable[[Config, Path], tuple[list[StepMetrics], RunState]]] = {
    "bare": run_bare,
    "ray": run_through_ray,
}


def run_measured(route: str, config: Config, folder: Path) -> MeasuredRun:
    """A run by one of ROUTES in a process of its own, which is over when this returns or raises.

    Args:
        folder: is made, for all that the run leaves, Ray's files included; a short path, since Ray puts sockets
            into it.

    Raises: UserError or RunError, as the run did; RunError if it ended in any other way.
    """
    folder.mkdir()
    (folder / "config.yaml").write_text(config.to_yaml())
    # Neither a cluster nor a store of the user's; no more threads in any process than a worker has; and the
    # priority of the bare loop for Ray's workers too, which by default let all others on the machine go first.
    environment = os.environ | {
        "RAY_TMPDIR": str(folder),
        "OMP_NUM_THREADS": str(config.cluster.cpus_per_worker),
        "RAY_worker_niceness": "0",
    }
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "ray_distill.bench.subprocess_run", route, str(folder)]
    began = time.time()
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
        raise RunError(f"{len(points)} of {config.outer.steps} outer steps were recorded")
    tensors, _ = checkpoint.load_tensors(folder / "end.arrow")
    return MeasuredRun(points, DistilledData(tensors["images"], tensors["labels"]), began, ended)


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(END_WITHIN_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _error(code: int, folder: Path) -> Exception:
    """What the process said of itself before it ended."""
    with suppress(OSError):
        said = (folder / "error").read_text()
        return UserError(said) if code == 2 else RunError(said)
    lines = (folder / "log").read_text(errors="replace").strip().splitlines() or ["nothing"]
    return RunError(f"a measured run ended with exit code {code}; it said last: {lines[-1]}")


def _end_with_input() -> None:
    os.read(0, 1)
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def main(route: str, folder: Path) -> int:
    """Carry out the run that lies in the folder; its points and its D go there. Returns: the exit code."""
    # A process whose command was started in the background would ignore the signal.
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
