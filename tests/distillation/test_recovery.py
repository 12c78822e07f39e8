"""Which checkpoint a run resumes from when some are damaged, and what the next one is called."""

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
from ray_distill.distillation.recovery import (
    SNAPSHOT,
    NoValidCheckpointError,
    checkpoint_name,
    choose_resume_point,
    quarantine_snapshot,
)
from ray_distill.distillation.reporting import CHECKPOINT_FILE

CPU = torch.device("cpu")
STEPS = (5, 10, 15)


@pytest.fixture
def stored(tmp_path: Path) -> list[Checkpoint]:
    """Three valid checkpoints, oldest first."""
    data = DistilledData(torch.rand(2, 1, 2, 2), torch.eye(2))
    start = RunState.start(data, OuterOptimizer(lr=Constant(1.0)))
    checkpoints = []
    for step in STEPS:
        folder = tmp_path / "run" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        state = start._replace(outer_step=step)
        save_state(folder / CHECKPOINT_FILE, "abc", state, [StepMetrics(step, {"loss": 0.1}, 1e9)])
        checkpoints.append(Checkpoint.from_directory(folder))
    return checkpoints


def file_of(checkpoint: Checkpoint) -> Path:
    return Path(checkpoint.path) / CHECKPOINT_FILE


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def test_the_newest_valid_checkpoint_is_chosen_and_damaged_ones_are_named(stored: list[Checkpoint]) -> None:
    """Truncate the newest, then remove the one before: each time the next older one is chosen, with its metrics; the errors
    of the others are reported, and their names stay taken."""
    found = choose_resume_point(stored, "abc", CPU, SingleProcess())
    assert found.saved is not None
    assert (found.saved.state.outer_step, found.damaged, found.in_snapshot) == (15, "", True)
    cut(file_of(stored[2]))
    found = choose_resume_point(stored, "abc", CPU, SingleProcess())
    assert found.saved is not None
    assert found.saved.state.outer_step == 10
    assert [point.outer_step for point in found.saved.unlogged] == [10]
    assert str(file_of(stored[2])) in found.damaged
    assert found.damaged.endswith("its digest does not match; the run resumes from outer step 10")
    file_of(stored[1]).unlink()
    found = choose_resume_point(stored, "abc", CPU, SingleProcess())
    assert found.saved is not None
    assert found.saved.state.outer_step == 5
    assert found.names == {"step_00000005", "step_00000010", "step_00000015"}


def test_without_a_valid_checkpoint_the_error_names_them_all(stored: list[Checkpoint]) -> None:
    """Without any checkpoint the run starts."""
    for checkpoint in stored:
        cut(file_of(checkpoint))
    with pytest.raises(NoValidCheckpointError, match="--force") as raised:
        choose_resume_point(stored, "abc", CPU, SingleProcess())
    assert all(str(file_of(checkpoint)) in str(raised.value) for checkpoint in stored)
    assert choose_resume_point([], "abc", CPU, SingleProcess()).saved is None


class Rank:
    """One of two ranks, the other of which cannot read the newest checkpoint."""

    rank, size = 0, 2

    def __init__(self) -> None:
        self._others = [0.0, 1.0]

    def sum(self, values: Tensor) -> Tensor:
        return values + self._others.pop(0)


def test_all_ranks_choose_the_same_checkpoint(stored: list[Checkpoint]) -> None:
    """One that some rank cannot read is not chosen."""
    found = choose_resume_point(stored, "abc", CPU, Rank())
    assert found.saved is not None
    assert found.saved.state.outer_step == 10
    assert "step_00000015 can be read by some workers and not by others" in found.damaged


def test_checkpoint_names_are_unique() -> None:
    """Train deletes by name: the second after 10 outer steps is another folder than the first."""
    taken = frozenset({"step_00000010", "step_00000010-2"})
    assert checkpoint_name(5, taken) == "step_00000005"
    assert checkpoint_name(10, taken) == "step_00000010-3"


def snapshot(*names: str) -> str:
    return json.dumps({"checkpoint_results": [{"checkpoint_dir_name": name} for name in names]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda content: content, ""),
        (lambda content: "", "is truncated or corrupt"),
        (lambda content: content[:40], "is truncated or corrupt"),
        (lambda content: "[7]", "is truncated or corrupt"),
        (
            lambda content: snapshot("step_00000005", "step_00000020"),
            "names step_00000020, which does not exist",
        ),
    ],
)
def test_a_snapshot_that_train_would_refuse_is_set_aside(
    stored: list[Checkpoint], tmp_path: Path, content: Callable[[str], str], message: str
) -> None:
    """Intact, empty (as a full disk leaves it), truncated, other JSON, naming what does not exist."""
    file = tmp_path / "run" / SNAPSHOT
    assert quarantine_snapshot(str(tmp_path), None, "run") == ""
    file.write_text(content(snapshot("step_00000010", "step_00000015")))
    error = quarantine_snapshot(str(tmp_path), None, "run")
    assert message in error
    assert bool(error) == bool(message)
    assert file.exists() != bool(message)
    assert (tmp_path / "run" / f"{SNAPSHOT}.damaged").exists() == bool(message)
