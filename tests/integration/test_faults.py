"""What may happen to a run on a cluster of two nodes, at a moment that a seed draws: the same D, the same record.

In each: the artefact holds the D of the undisturbed run, bit for bit, and MLflow one run with each measurement once. The
seed is printed, and taken from RAY_DISTILL_FAULT_SEED where that is set; the time to recover is printed too (pytest -rP). A
driver that is killed, a store under a lock and Ctrl-C are in test_commands, a job that is stopped in test_jobs, evaluation
actors that die in test_evaluate.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nodes import Nodes, cluster_of_two, wait_until
from processes import descendants_named, last_checkpoint, wait_for_checkpoint
from tiny import tiny_config
from undisturbed import Undisturbed

pytestmark = pytest.mark.slow
EVERY = 10
"""Outer steps between two checkpoints."""
CONFIG = tiny_config(
    outer={"steps": 160},
    validation={"every": 80},
    checkpoint={"every": EVERY},
    evaluation={"networks": ["mlp1"], "seeds": 1, "random_real_draws": 1},
    cluster={"num_workers": 2},
)


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


def disturbed(
    nodes: Nodes,
    folder: Path,
    draw: random.Random,
    fault: Callable[[], object],
) -> None:
    """A run from its start to its end, with the fault at a moment in the first half of its outer steps."""
    folder.mkdir()
    (folder / "tiny.yaml").write_text(CONFIG.to_yaml())
    command = [
        sys.executable,
        "-c",
        "from ray_distill.cli import main; main()",
        "distill",
        "tiny.yaml",
        "--out",
        "run",
    ]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=nodes.environment | {"RAY_ADDRESS": nodes.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for_checkpoint(process, folder / "run", draw.randrange(EVERY, CONFIG.outer.steps // 2))
        # Somewhere between two checkpoints.
        time.sleep(draw.random())
        at, began = last_checkpoint(folder / "run"), time.monotonic()
        assert at < CONFIG.outer.steps, "the run was over before anything could happen to it"
        fault()
        # Two, since one may have been on its way.
        wait_until(
            lambda: (
                last_checkpoint(folder / "run") >= min(at + 2 * EVERY, CONFIG.outer.steps)
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


def test_a_worker_is_killed(
    undisturbed: Undisturbed,
    nodes: tuple[Nodes, subprocess.Popen[bytes]],
    draw: random.Random,
    tmp_path: Path,
) -> None:
    """SIGKILL for the Train worker on one of the nodes."""
    cluster, node = nodes

    def kill() -> None:
        (worker,) = descendants_named("ray::RayTrainWorker", node.pid)
        os.kill(worker, signal.SIGKILL)

    disturbed(cluster, tmp_path / "here", draw, kill)
    undisturbed.check(tmp_path / "here" / "run", tmp_path / "here" / "run" / "mlflow.db")


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
