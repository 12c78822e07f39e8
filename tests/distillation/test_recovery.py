"""Which checkpoint a run goes on from when some are damaged, and what the next one is called."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ray.train import Checkpoint
from torch import Tensor

from ray_distill.core.distilled import DistilledData
from ray_distill.core.distributed import SingleProcess
from ray_distill.core.metrics import StepMetrics
from ray_distill.core.outer_optimizer import OuterOptimizer
from ray_distill.core.schedules import Constant
from ray_distill.core.state import RunState
from ray_distill.distillation.checkpoint import save_state
from ray_distill.distillation.recorder import CHECKPOINT_FILE
from ray_distill.distillation.recovery import (
    SNAPSHOT,
    NoWholeCheckpointError,
    name_of,
    newest_whole,
    quarantine_snapshot,
)

CPU = torch.device("cpu")
STEPS = (5, 10, 15)


@pytest.fixture
def lying(tmp_path: Path) -> list[Checkpoint]:
    """Three whole checkpoints, the oldest first."""
    data = DistilledData(torch.rand(2, 1, 2, 2), torch.eye(2))
    start = RunState.start(data, OuterOptimizer(lr=Constant(1.0)))
    kept = []
    for step in STEPS:
        folder = tmp_path / "run" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        state = start._replace(outer_step=step)
        save_state(folder / CHECKPOINT_FILE, "abc", state, [StepMetrics(step, {"loss": 0.1}, 1e9)])
        kept.append(Checkpoint.from_directory(folder))
    return kept


def file_of(checkpoint: Checkpoint) -> Path:
    return Path(checkpoint.path) / CHECKPOINT_FILE


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def test_the_newest_whole_one_is_taken_and_the_others_are_named(lying: list[Checkpoint]) -> None:
    """Cut the newest, then remove the one before: each time the next older one, with its points; what is wrong with the
    others is said, and their names stay taken."""
    found = newest_whole(lying, "abc", CPU, SingleProcess())
    assert found.kept is not None
    assert (found.kept.state.outer_step, found.damaged, found.booked) == (15, "", True)
    cut(file_of(lying[2]))
    found = newest_whole(lying, "abc", CPU, SingleProcess())
    assert found.kept is not None
    assert found.kept.state.outer_step == 10
    assert [point.outer_step for point in found.kept.unrecorded] == [10]
    assert str(file_of(lying[2])) in found.damaged
    assert found.damaged.endswith("its digest does not fit; the run goes on from outer step 10")
    file_of(lying[1]).unlink()
    found = newest_whole(lying, "abc", CPU, SingleProcess())
    assert found.kept is not None
    assert found.kept.state.outer_step == 5
    assert found.names == {"step_00000005", "step_00000010", "step_00000015"}


def test_without_a_whole_one_there_is_an_error_that_names_them_all(lying: list[Checkpoint]) -> None:
    """And without any the run begins."""
    for checkpoint in lying:
        cut(file_of(checkpoint))
    with pytest.raises(NoWholeCheckpointError, match="--force") as raised:
        newest_whole(lying, "abc", CPU, SingleProcess())
    assert all(str(file_of(checkpoint)) in str(raised.value) for checkpoint in lying)
    assert newest_whole([], "abc", CPU, SingleProcess()).kept is None


class Rank:
    """One of two ranks, the other of which cannot read the newest checkpoint."""

    rank, size = 0, 2

    def __init__(self) -> None:
        self._others = [0.0, 1.0]

    def sum(self, values: Tensor) -> Tensor:
        return values + self._others.pop(0)


def test_ranks_take_the_same_one(lying: list[Checkpoint]) -> None:
    """What one rank can read and another cannot is taken by none."""
    found = newest_whole(lying, "abc", CPU, Rank())
    assert found.kept is not None
    assert found.kept.state.outer_step == 10
    assert "step_00000015 can be read by some workers and not by others" in found.damaged


def test_a_checkpoint_takes_the_name_of_no_other() -> None:
    """Train deletes by name: the second after 10 outer steps is another folder than the first."""
    taken = frozenset({"step_00000010", "step_00000010-2"})
    assert name_of(5, taken) == "step_00000005"
    assert name_of(10, taken) == "step_00000010-3"


def book(*names: str) -> str:
    return json.dumps({"checkpoint_results": [{"checkpoint_dir_name": name} for name in names]})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda whole: whole, ""),
        (lambda whole: "", "was cut or altered"),
        (lambda whole: whole[:40], "was cut or altered"),
        (lambda whole: "[7]", "was cut or altered"),
        (lambda whole: book("step_00000005", "step_00000020"), "names step_00000020, which is not there"),
    ],
)
def test_a_book_that_train_would_refuse_is_set_aside(
    lying: list[Checkpoint], tmp_path: Path, content: Callable[[str], str], says: str
) -> None:
    """Whole, empty (as a full disk leaves it), cut, another thing, naming what is gone."""
    file = tmp_path / "run" / SNAPSHOT
    assert quarantine_snapshot(str(tmp_path), None, "run") == ""
    file.write_text(content(book("step_00000010", "step_00000015")))
    said = quarantine_snapshot(str(tmp_path), None, "run")
    assert says in said
    assert bool(said) == bool(says)
    assert file.exists() != bool(says)
    assert (tmp_path / "run" / f"{SNAPSHOT}.damaged").exists() == bool(says)
