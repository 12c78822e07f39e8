"""What may happen to a run on a cluster of two nodes, at a moment that a seed draws: the same D, the same record.

In each: the artefact holds the D of the undisturbed run, bit for bit, and MLflow one run with each measurement once. The
seed is printed, and taken from RAY_DISTILL_FAULT_SEED where that is set; the time to recover is printed too (pytest -rP).
Ctrl-C is in test_commands, a driver that is killed with all that it started in test_storage_s3, a job that is stopped in
test_jobs, an evaluation that loses its node in test_evaluate_nodes.
"""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient

from ray_distill.config.config import Config
from ray_distill.distillation.checkpoint import load_state
from tests.helpers.mlflow_server import mlflow_server
from tests.helpers.nodes import Nodes, cluster_of_two
from tests.helpers.processes import (
    descendants_named,
    last_checkpoint,
    steps_shown,
    wait_for_checkpoint,
    wait_until,
)
from tests.helpers.tiny import tiny_config
from tests.helpers.undisturbed import Undisturbed

pytestmark = pytest.mark.slow
EVERY = 10
"""Outer steps between two checkpoints."""
SECTIONS = {
    "outer": {"steps": 160},
    "validation": {"every": 80},
    "checkpoint": {"every": EVERY},
    "evaluation": {
        **{"networks": ["mlp1"], "seeds": 1, "baselines": []},
        **{"random_real_draws": None, "whole_train_epochs": None},
    },
    "cluster": {"num_workers": 2},
}
CONFIG = tiny_config(**SECTIONS)
MAIN = "from ray_distill.cli.main import main; main()"
LOOKS_OFTEN = f"import ray_distill.distillation.trainer; ray_distill.distillation.trainer.RESIZE_CHECK_INTERVAL_S = 3.0; {MAIN}"
"""The command, looking more often whether nodes have come."""


@pytest.fixture(scope="module")
def undisturbed() -> Undisturbed:
    return Undisturbed(CONFIG)


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Nodes, subprocess.Popen[bytes]]]:
    with cluster_of_two() as both:
        yield both


def started(
    nodes: Nodes,
    folder: Path,
    config: Config,
    *arguments: str,
    out: Path | None = None,
    code: str = MAIN,
    **environment: str,
) -> subprocess.Popen[str]:
    """A run on the nodes, in `run` in the folder or where it is to go."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(config.to_yaml())
    command = [
        *(sys.executable, "-c", code),
        *("distill", "tiny.yaml", "--out", str(out or "run"), *arguments),
    ]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=nodes.environment | {"RAY_ADDRESS": nodes.address} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def disturbed(
    nodes: Nodes,
    folder: Path,
    draw: random.Random,
    fault: Callable[[], object],
    config: Config = CONFIG,
    **more: str,
) -> str:
    """A run from its start to its end, with the fault at a moment in the first half of its outer steps; what it said on
    stderr."""
    process = started(nodes, folder, config, **more)
    try:
        wait_for_checkpoint(process, folder / "run", draw.randrange(EVERY, config.outer.steps // 2))
        # Somewhere between two checkpoints.
        time.sleep(draw.random())
        at, began = last_checkpoint(folder / "run"), time.monotonic()
        assert at < config.outer.steps, "the run was over before anything could happen to it"
        fault()
        # Two, since one may have been on its way.
        wait_until(
            lambda: (
                last_checkpoint(folder / "run") >= min(at + 2 * EVERY, config.outer.steps)
                or process.poll() is not None
            ),
            "the run goes on",
        )
        print(f"disturbed after outer step {at}, recovered {time.monotonic() - began:.1f} s later")
        out, err = process.communicate(timeout=280)
    finally:
        process.kill()
    assert process.returncode == 0, out + err
    assert "Traceback" not in err
    return err


def test_a_worker_is_killed_and_the_last_checkpoint_damaged(
    undisturbed: Undisturbed,
    nodes: tuple[Nodes, subprocess.Popen[bytes]],
    draw: random.Random,
    tmp_path: Path,
) -> None:
    """SIGKILL for the Train worker on one node; the file that the workers would resume from is truncated. They resume from
    the one before, and the run reports it."""
    cluster, node = nodes
    folder = tmp_path / "here" / "run"
    damaged = []

    def kill() -> None:
        (worker,) = descendants_named("ray::RayTrainWorker", node.pid)
        os.kill(worker, signal.SIGKILL)
        # What was on its way when the worker died has come; the next ones take longer to start.
        time.sleep(1)
        damaged.append(last_checkpoint(folder))
        file = folder / "train" / "run" / f"step_{damaged[0]:08d}" / "state.arrow"
        os.truncate(file, draw.randrange(file.stat().st_size))

    said = disturbed(cluster, tmp_path / "here", draw, kill)
    assert f"the run resumes from outer step {damaged[0] - EVERY}" in said
    undisturbed.check(folder, folder / "mlflow.db")


def test_a_node_is_lost(
    undisturbed: Undisturbed,
    nodes: tuple[Nodes, subprocess.Popen[bytes]],
    draw: random.Random,
    tmp_path: Path,
) -> None:
    """SIGKILL for all processes of a node, a worker among them; another node comes up to ten seconds later."""
    cluster, node = nodes

    def lose() -> None:
        cluster.remove(node)
        time.sleep(10 * draw.random())
        cluster.add()

    disturbed(cluster, tmp_path / "here", draw, lose)
    undisturbed.check(tmp_path / "here" / "run", tmp_path / "here" / "run" / "mlflow.db")


def test_an_elastic_run_goes_on_with_the_nodes_that_are_there(
    undisturbed: Undisturbed,
    nodes: tuple[Nodes, subprocess.Popen[bytes]],
    draw: random.Random,
    tmp_path: Path,
) -> None:
    """SIGKILL for a node: the run goes on with the one worker that is left, over two checkpoints; then another node comes
    up, and it goes on with two. Meanwhile the one is made to wait, so that it does not come to the end alone."""
    cluster, folder = nodes[0], tmp_path / "here" / "run"
    # Each report waits for Train's controller: so the run does not end before that has looked.
    elastic = tiny_config(
        **SECTIONS | {"cluster": {"num_workers": 2, "min_workers": 1}},
        tracking={"report_every": 1},
    )

    def worker_on(node: subprocess.Popen[bytes]) -> int | None:
        return next(iter(descendants_named("ray::RayTrainWorker", node.pid)), None)

    def come_and_go() -> None:
        assert worker_on(cluster.newest)
        at = last_checkpoint(folder)
        cluster.remove(cluster.newest)
        alone_s = wait_until(lambda: last_checkpoint(folder) >= at + 2 * EVERY, "one worker goes on")
        alone = worker_on(cluster.oldest)
        assert alone is not None
        os.kill(alone, signal.SIGSTOP)
        came = cluster.add()
        # Ray takes stock of its nodes every 20 s.
        time.sleep(21)
        os.kill(alone, signal.SIGCONT)
        grown_s = wait_until(lambda: worker_on(came) is not None, "a worker starts on the node that came")
        assert last_checkpoint(folder) < CONFIG.outer.steps
        print(f"alone {alone_s:.1f} s after the loss, grown after 21 + {grown_s:.1f} s")

    disturbed(cluster, tmp_path / "here", draw, come_and_go, elastic, code=LOOKS_OFTEN)
    undisturbed.check(folder, folder / "mlflow.db")


def test_the_mlflow_server_is_killed_and_restarted(
    undisturbed: Undisturbed,
    nodes: tuple[Nodes, subprocess.Popen[bytes]],
    draw: random.Random,
    tmp_path: Path,
) -> None:
    """SIGKILL for the server, which is restarted up to three seconds later."""
    with mlflow_server(tmp_path) as server:

        def go_away() -> None:
            server.stop()
            time.sleep(3 * draw.random())
            server.start()

        # Each report waits for the failing call, so the run does not end before the server is back.
        often = tiny_config(**SECTIONS, tracking={"report_every": 1})
        disturbed(nodes[0], tmp_path / "here", draw, go_away, often, MLFLOW_TRACKING_URI=server.uri)
        undisturbed.check(tmp_path / "here" / "run", tmp_path / "mlflow.db")


@contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """A disk of this size, mounted there."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(file: Path) -> None:
    """Append to it until the disk is full."""
    with suppress(OSError), file.open("ab", buffering=0) as left:
        while left.write(bytes(4096)):
            pass


def test_the_disk_is_full(
    undisturbed: Undisturbed,
    nodes: tuple[Nodes, subprocess.Popen[bytes]],
    draw: random.Random,
    tmp_path: Path,
) -> None:
    """The disk of the run is filled by something else: exit code 1 and one message that names the disk and what to do, an
    MLflow run that FAILED, and intact earlier checkpoints. With free space again, --resume finishes the run."""
    store = tmp_path / "store.db"
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
    with small_disk(tmp_path / "disk", 2**20) as disk:
        out, other = disk / "run", disk / "other"
        process = started(nodes[0], tmp_path / "here", CONFIG, out=out, **environment)
        try:
            wait_for_checkpoint(process, out, draw.randrange(EVERY, CONFIG.outer.steps // 2))
            time.sleep(draw.random())
            began = time.monotonic()
            while process.poll() is None:
                # Again and again: deleting an old checkpoint frees space for the next.
                fill(other)
                assert time.monotonic() - began < 200
                time.sleep(0.02)
            said = process.communicate()[1]
        finally:
            process.kill()
        assert process.returncode == 1, said
        (line,) = [line for line in said.splitlines() if line.startswith("failed: ")]
        assert f"{out}/train" in line
        assert "not enough disk space for" in line
        assert "free some space and use --resume" in line
        assert "Traceback" not in said
        kept = sorted((out / "train" / "run").glob("step_*/state.arrow"))
        at = [load_state(file, CONFIG.hash).state.outer_step for file in kept]
        assert at
        assert set(at) <= set(range(EVERY, CONFIG.outer.steps, EVERY))
        print(f"full after outer step {at[-1]}, over {time.monotonic() - began:.1f} s later: {line}")
        identity = json.loads((out / "run.json").read_text())
        run = MlflowClient(environment["MLFLOW_TRACKING_URI"]).get_run(identity["run_id"])
        assert run.info.status == "FAILED"

        other.unlink()
        process = started(nodes[0], tmp_path / "here", CONFIG, "--resume", out=out, **environment)
        try:
            said = process.communicate(timeout=280)[1]
        finally:
            process.kill()
        assert process.returncode == 0, said
        undisturbed.check(out, store)


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Locks MLflow's sqlite store against reads and writes."""
    connection = sqlite3.connect(store, isolation_level=None, timeout=30)
    connection.execute("begin exclusive")
    try:
        yield
    finally:
        connection.close()


def num_logged(store: Path) -> int:
    """Number of outer steps in MLflow."""
    with sqlite3.connect(store) as connection:
        return int(connection.execute("select count(*) from metrics where key = 'outer_loss'").fetchone()[0])


def kill_one_running(name: str) -> None:
    """SIGKILL for a descendant process that is running a task of this name."""
    killed = []

    def kill() -> bool:
        for pid in descendants_named(name):
            os.kill(pid, signal.SIGSTOP)
            if pid in descendants_named(name):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                break
            os.kill(pid, signal.SIGCONT)
        return bool(killed)

    wait_until(kill, f"a {name} to kill")


def test_the_driver_is_killed_and_in_the_end_an_evaluation_actor(
    undisturbed: Undisturbed,
    nodes: tuple[Nodes, subprocess.Popen[bytes]],
    draw: random.Random,
    tmp_path: Path,
) -> None:
    """SIGKILL for the driver, a client of a cluster that stays; --resume at once. MLflow's store is locked by then, with
    eight reports pending, whose timeouts of 20 s each would have blocked the run for minutes: they are in the checkpoint. In
    the evaluation of the resumed run, among the first half of its results, an actor is killed in the middle of a job: the
    table equals that of the jobs run here one by one."""
    cluster, folder = nodes[0], tmp_path / "here" / "run"
    judging: dict[str, object] = {
        "networks": ["mlp1"],
        "seeds": 8,
        "horizons": 500,
        "baselines": ["random_real"],
    }
    judging |= {"random_real_draws": 8, "whole_train_epochs": None}
    config = tiny_config(**SECTIONS | {"evaluation": judging})
    store, records = folder / "mlflow.db", folder / "distilled.evaluation" / "records.jsonl"
    process = started(cluster, tmp_path / "here", config)
    try:
        wait_for_checkpoint(process, folder, draw.randrange(EVERY, config.outer.steps // 2))
        wait_until(lambda: num_logged(store) > 0, "MLflow has some steps")
        with locked(store):
            at = last_checkpoint(folder) + 4 * EVERY
            wait_until(lambda: last_checkpoint(folder) >= at, "the run goes on", within_s=100)
            time.sleep(draw.random())
            process.kill()
            process.communicate()
            at = last_checkpoint(folder)
    finally:
        process.kill()
    assert num_logged(store) <= at - 3 * EVERY, "the store was not locked"
    assert at < config.outer.steps, "the run was over before its driver was killed"

    began = time.monotonic()
    process = started(cluster, tmp_path / "here", config, "--resume")
    try:
        wait_until(lambda: last_checkpoint(folder) > at or process.poll() is not None, "it goes on")
        print(f"killed after outer step {at}, recovered {time.monotonic() - began:.1f} s later")
        num = draw.randrange(config.evaluation.seeds)
        wait_until(
            lambda: (
                process.poll() is not None
                or (records.exists() and len(records.read_text().splitlines()) >= num)
            ),
            f"{num} results",
        )
        kill_one_running("ray::_Retrainer.run")
        out, err = process.communicate(timeout=280)
    finally:
        process.kill()
    assert process.returncode == 0, out + err
    assert "Traceback" not in err
    assert steps_shown(out)[0] >= at, "it began anew"
    assert "1 retried after losing an actor" in out
    undisturbed.check(folder, store)
    undisturbed.check_evaluation(folder, store, config)
