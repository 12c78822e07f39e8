"""What may happen to a run on a cluster of two nodes, at a moment that a seed draws: the same D, the same record.

In each: the artefact holds the D of the undisturbed run, bit for bit, and MLflow one run with each measurement once. The
seed is printed, and taken from RAY_DISTILL_FAULT_SEED where that is set; the time to recover is printed too (pytest -rP). A
driver that is killed, a store under a lock and Ctrl-C are in test_commands, a job that is stopped in test_jobs, evaluation
actors that die in test_evaluate.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient
from nodes import BIN, Nodes, cluster_of_two, free_port, wait_until
from processes import descendants_named, last_checkpoint, wait_for_checkpoint
from tiny import tiny_config
from undisturbed import Undisturbed

from ray_distill.config import Config
from ray_distill.run_state import load_kept

pytestmark = pytest.mark.slow
EVERY = 10
"""Outer steps between two checkpoints."""
SECTIONS = {
    "outer": {"steps": 160},
    "validation": {"every": 80},
    "checkpoint": {"every": EVERY},
    "evaluation": {"networks": ["mlp1"], "seeds": 1, "random_real_draws": 1},
    "cluster": {"num_workers": 2},
}
CONFIG = tiny_config(**SECTIONS)


@pytest.fixture(scope="module")
def undisturbed() -> Undisturbed:
    return Undisturbed(CONFIG)


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Nodes, subprocess.Popen[bytes]]]:
    with cluster_of_two() as both:
        yield both


@pytest.fixture
def draw() -> random.Random:
    seed = int(os.environ.get("RAY_DISTILL_FAULT_SEED") or random.SystemRandom().randrange(10**6))
    print(f"RAY_DISTILL_FAULT_SEED={seed}")
    return random.Random(seed)


def started(
    nodes: Nodes, folder: Path, config: Config, *arguments: str, out: Path | None = None, **environment: str
) -> subprocess.Popen[str]:
    """A run on the nodes, in `run` in the folder or where it is to go."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(config.to_yaml())
    command = [
        *(sys.executable, "-c", "from ray_distill.cli import main; main()"),
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
    **environment: str,
) -> str:
    """A run from its start to its end, with the fault at a moment in the first half of its outer steps; what it said on
    stderr."""
    process = started(nodes, folder, config, **environment)
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
    """SIGKILL for the Train worker on one of the nodes; of the file that the workers would go on from, a part is left.
    They go on from the one before, and the run says so."""
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
    assert f"the run goes on from outer step {damaged[0] - EVERY}" in said
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

    disturbed(cluster, tmp_path / "here", draw, come_and_go, elastic)
    undisturbed.check(folder, folder / "mlflow.db")


class Server:
    """An MLflow server on loopback with a sqlite store, which may go and come back."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self.store = folder / "store.db"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *(str(BIN / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(self._port)),
                *("--workers", "1", "--backend-store-uri", f"sqlite:///{self.store}"),
                *("--artifacts-destination", str(self._folder / "artifacts")),
            ],
            cwd=self._folder,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._answers, "the MLflow server answers")

    def stop(self) -> None:
        """SIGKILL for it and what it started."""
        assert self._process is not None
        for pid in [self._process.pid, *descendants_named("", self._process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
            return True
        return False


@contextmanager
def mlflow_server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def test_the_mlflow_server_is_away(
    undisturbed: Undisturbed,
    nodes: tuple[Nodes, subprocess.Popen[bytes]],
    draw: random.Random,
    tmp_path: Path,
) -> None:
    """SIGKILL for the server; it is started again up to three seconds later, which takes some more."""
    with mlflow_server(tmp_path) as server:

        def go_away() -> None:
            server.stop()
            time.sleep(3 * draw.random())
            server.start()

        # Each report waits for the store's refusal: so the run does not end before the server is back.
        often = tiny_config(**SECTIONS, tracking={"report_every": 1})
        disturbed(nodes[0], tmp_path / "here", draw, go_away, often, MLFLOW_TRACKING_URI=server.uri)
        undisturbed.check(tmp_path / "here" / "run", server.store)


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
    """Write into it until there is no room for a byte."""
    with suppress(OSError), file.open("ab", buffering=0) as left:
        while left.write(bytes(4096)):
            pass


def test_the_disk_is_full(
    undisturbed: Undisturbed,
    nodes: tuple[Nodes, subprocess.Popen[bytes]],
    draw: random.Random,
    tmp_path: Path,
) -> None:
    """A disk that holds the run, and something else that fills it: exit code 1 and one message that names the disk and says
    how to go on, an MLflow run that FAILED, and the checkpoints before, whole. With room again, --resume goes on."""
    store = tmp_path / "store.db"
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
    with small_disk(tmp_path / "disk", 2**20) as disk:
        out, other = disk / "run", disk / "other"
        process = started(nodes[0], tmp_path / "here", CONFIG, out=out, **environment)
        try:
            wait_for_checkpoint(process, out, draw.randrange(EVERY, CONFIG.outer.steps // 2))
            time.sleep(draw.random())
            fill(other)
            began = time.monotonic()
            said = process.communicate(timeout=200)[1]
        finally:
            process.kill()
        assert process.returncode == 1, said
        (line,) = [line for line in said.splitlines() if line.startswith("failed: ")]
        assert f"{out}/train" in line
        assert "no room for" in line
        assert "go on with --resume" in line
        assert "Traceback" not in said
        kept = sorted((out / "train" / "run").glob("step_*/state.arrow"))
        at = [load_kept(file, CONFIG.hash).state.outer_step for file in kept]
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
