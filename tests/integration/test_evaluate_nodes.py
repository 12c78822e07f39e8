"""An evaluation by its command on a cluster that is small, or taken by others, or loses a node: always the same table.

The head has one CPU, and so has each further node.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ray_distill.config.load import parse_config
from ray_distill.evaluation.report import read_results
from tests.helpers.evaluated_sets import dataset_of
from tests.helpers.nodes import Nodes, head_alone
from tests.helpers.processes import descendants_named, wait_for_checkpoint, wait_until
from tests.helpers.tiny import tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
CONFIG = tiny_config(evaluation={"horizons": [100, 300], "seeds": 4, "random_real_draws": 4})
RAY_DISTILL = "from ray_distill.cli.main import main; main()"
HOLDER = """
import time, ray
ray.init(log_to_driver=False)
holder = ray.remote(num_cpus=1)(type("Holder", (), {"ready": lambda self: None})).remote()
ray.get(holder.ready.remote())
print("has a CPU", flush=True)
time.sleep(600)
"""

Number = tuple[str, str, int, int, float]


class Program:
    """A Python program beside the cluster, in a folder, and what it has said."""

    def __init__(self, nodes: Nodes, folder: Path, code: str, *arguments: str) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self._said = folder, folder / f"said-{len(list(folder.iterdir()))}.txt"
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                cwd=folder,
                env=nodes.environment | {"RAY_ADDRESS": nodes.address},
                stdout=said,
                stderr=said,
                text=True,
            )

    @property
    def said(self) -> str:
        return self._said.read_text()

    def says(self, words: str) -> None:
        wait_until(lambda: words in self.said or self.process.poll() is not None, f"it says {words}")
        assert words in self.said, self.said

    def ends(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=280)
        assert self.process.returncode == 0, self.said
        assert "Traceback" not in self.said


@contextmanager
def running(nodes: Nodes, folder: Path, code: str, *arguments: str) -> Iterator[Program]:
    """It is killed at the end, if it has not ended by then."""
    program = Program(nodes, folder, code, *arguments)
    try:
        yield program
    finally:
        program.process.kill()
        program.process.wait()


@contextmanager
def evaluation(nodes: Nodes, folder: Path) -> Iterator[Program]:
    folder.mkdir()
    dataset_of(CONFIG).save(folder / "mine.parquet")
    with running(nodes, folder, RAY_DISTILL, "evaluate", "mine.parquet", "--out", "out") as program:
        yield program


def numbers(evaluation: Program) -> list[Number]:
    records, failures = read_results(evaluation.folder / "out" / "evaluation.json")
    assert failures == []
    return sorted(
        (*(r.retraining.subject, r.retraining.network, r.retraining.index), r.inner_steps, r.test_accuracy)
        for r in records
    )


@pytest.fixture(scope="module")
def head() -> Iterator[Nodes]:
    with head_alone() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def table(head: Nodes, tmp_path_factory: pytest.TempPathFactory) -> list[Number]:
    """What one actor finds out, on a whole cluster with one CPU."""
    with evaluation(head, tmp_path_factory.mktemp("alone") / "here") as alone:
        alone.ends()
    assert "on 1 actor(s)" in alone.said
    return numbers(alone)


def test_one_core_is_enough(table: list[Number]) -> None:
    """Two networks, four times each on the set and on random images, after two horizons; the whole set once."""
    assert len(table) == 2 * 2 * 4 * 2 + 1
    assert len({accuracy for *_, accuracy in table}) > 10


def test_beside_a_training_run(head: Nodes, table: list[Number], tmp_path: Path) -> None:
    """A run of Ray Train has one of two CPUs: the evaluation does with the other. Somebody else has that one too: the
    next evaluation says what it waits for, and does nothing, until the training run is stopped."""
    node = head.add()
    run = CONFIG.to_dict() | {"outer": CONFIG.to_dict()["outer"] | {"steps": 1_000_000}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tiny.yaml").write_text(parse_config(run).to_yaml())
    with running(head, tmp_path / "run", RAY_DISTILL, "distill", "tiny.yaml", "--out", "out") as training:
        wait_for_checkpoint(training.process, tmp_path / "run" / "out", 1)
        with evaluation(head, tmp_path / "one") as beside:
            beside.ends()
        assert numbers(beside) == table
        assert "on 1 actor(s)" in beside.said
        assert training.process.poll() is None
        with running(head, tmp_path, HOLDER) as other:
            other.says("has a CPU")
            with evaluation(head, tmp_path / "none") as waiting:
                waiting.says("waiting for 1 CPU; free: 0 of")
                training.process.send_signal(signal.SIGINT)
                assert training.process.wait(timeout=100) == 130
                waiting.ends()
        assert numbers(waiting) == table
    head.remove(node)


def test_a_node_is_lost(head: Nodes, table: list[Number], tmp_path: Path) -> None:
    """SIGKILL for all processes of a node whose actor has stopped in the midst of a job: that job is retried on the
    other actor, which runs the rest too."""
    node = head.add()
    with evaluation(head, tmp_path / "here") as losing:
        wait_until(
            lambda: bool(descendants_named("ray::_Retrainer.run", node.pid)), "an actor of the node has a job"
        )
        (actor,) = descendants_named("ray::_Retrainer.run", node.pid)
        os.kill(actor, signal.SIGSTOP)
        head.remove(node)
        losing.ends()
    assert "1 retried after losing an actor" in losing.said
    assert numbers(losing) == table
