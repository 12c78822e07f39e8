"""A full disk at a checkpoint: every rank ends with the same error, and none waits for another."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ray_distill.core.distilled import DistilledData
from ray_distill.core.metrics import StepMetrics
from ray_distill.core.outer_loop import Report
from ray_distill.core.outer_optimizer import OuterOptimizer
from ray_distill.core.schedules import Constant
from ray_distill.core.state import RunState
from ray_distill.distillation import recovery, worker
from ray_distill.distillation.recovery import CheckpointDiskFullError, ResumePoint
from tests.helpers.tiny import tiny_config

CONFIG = tiny_config()
STATE = RunState.start(
    DistilledData(torch.rand(2, 1, 2, 2), torch.eye(2)), OuterOptimizer(lr=Constant(1.0))
)._replace(outer_step=5)


class Rank:
    """A rank of two; what the other one adds to a sum."""

    size = 2

    def __init__(self, rank: int, other: float = 0.0) -> None:
        self.rank, self._other = rank, other
        self.num_sums = 0

    def sum(self, values: Tensor) -> Tensor:
        self.num_sums += 1
        return values + self._other


class Train:
    """In place of Ray Train's report."""

    def __init__(self, patch: pytest.MonkeyPatch, storage: Path, error: OSError | None = None) -> None:
        self.reported: list[tuple[bool, str | None]] = []
        self.removed: list[str] = []
        self._error = error
        patch.setattr("ray.train.report", self.report)
        patch.setattr(recovery, "train_storage_path", lambda: storage)
        patch.setattr(recovery, "remove_partial_checkpoint", self.removed.append)
        patch.setattr(worker._Reporter, "_drop_logged", lambda self: None)

    def report(self, metrics: Any, checkpoint: Any = None, checkpoint_dir_name: str | None = None) -> None:
        self.reported.append((checkpoint is not None, checkpoint_dir_name))
        if checkpoint is not None and self._error:
            raise self._error


def report(world: Rank) -> None:
    resume = ResumePoint(None, True, "", frozenset({"step_00000005"}))
    worker._Reporter(CONFIG, world, None, resume)(Report(STATE, [StepMetrics(5, {"loss": 1.0}, 1e9)], True))


def test_a_full_storage_is_reported_by_rank_0_and_the_partial_checkpoint_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With pyarrow's error: the place, what it was for, the free space, what to do."""
    train = Train(monkeypatch, tmp_path, OSError(errno.ENOSPC, "Error writing bytes to file"))
    world = Rank(0)
    with pytest.raises(
        CheckpointDiskFullError, match=r"after outer step 5 \(0.0\d MiB\): No space left"
    ) as raised:
        report(world)
    assert str(raised.value).startswith(f"{tmp_path}: not enough disk space for the checkpoint")
    assert str(raised.value).endswith("free some space and use --resume")
    assert "MiB free of" in str(raised.value)
    assert train.removed == ["step_00000005-2"]
    assert world.num_sums == 1


def test_with_a_full_temporary_folder_the_other_ranks_still_get_a_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The folder for temporary files is full: a report without a checkpoint, for which the other ranks wait."""
    train = Train(monkeypatch, tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "state.arrow")

    monkeypatch.setattr(worker, "save_state", full)
    with pytest.raises(
        CheckpointDiskFullError,
        match=f"^{tmp_path}: not enough disk space for the checkpoint after outer step 5: No",
    ):
        report(Rank(0))
    assert train.reported == [(False, "step_00000005-2")]


def test_the_other_rank_ends_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rank 1, whose own disk is fine; it continues where rank 0 has saved its state."""
    train = Train(monkeypatch, tmp_path)
    report(Rank(1))
    with pytest.raises(CheckpointDiskFullError):
        report(Rank(1, other=1.0))
    assert train.reported == 2 * [(False, "step_00000005-2")]


def test_other_errors_are_left_to_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A storage that is unavailable for a moment: Ray restarts the workers."""
    Train(monkeypatch, tmp_path, ConnectionResetError(errno.ECONNRESET, "reset"))
    with pytest.raises(ConnectionResetError):
        report(Rank(0))
