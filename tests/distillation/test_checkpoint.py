"""Checkpoints: what is saved is loaded bit for bit, or the file is refused."""

import pickle
import random
from pathlib import Path

import pytest
import torch

from ray_distill.core.distilled import DistilledData
from ray_distill.core.metrics import StepMetrics
from ray_distill.core.outer_optimizer import OuterOptimizer
from ray_distill.core.schedules import Constant
from ray_distill.core.state import Best, RunState
from ray_distill.distillation.checkpoint import (
    FORMAT,
    CheckpointError,
    _digest,
    from_record,
    load_state,
    load_tensors,
    save_state,
    save_tensors,
    to_record,
)

TENSORS = {
    "a": torch.arange(6, dtype=torch.float64).reshape(2, 3) / 7,
    "b": torch.tensor([1.5, float("-inf")]),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(7),
}
RECORD = {"step": 3, "ema": 0.1, "best": None}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_tensors(tmp_path / "c.arrow", TENSORS, RECORD)
    return tmp_path / "c.arrow"


def test_round_trip_is_bit_equal(saved: Path) -> None:
    """Values, shapes, dtypes and the record; and nothing else is left in the folder."""
    tensors, record = load_tensors(saved)
    assert record == RECORD
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
        assert torch.equal(tensors[name], tensor)
    assert [p.name for p in saved.parent.iterdir()] == ["c.arrow"]


def test_every_truncation_is_refused(saved: Path, tmp_path: Path) -> None:
    """A file cut at any of 50 lengths raises CheckpointError."""
    content = saved.read_bytes()
    cut = tmp_path / "cut.arrow"
    for i in range(50):
        cut.write_bytes(content[: len(content) * i // 50])
        with pytest.raises(CheckpointError):
            load_tensors(cut)


def test_every_mutation_is_refused(saved: Path, tmp_path: Path) -> None:
    """300 single-bit changes anywhere in the file."""
    content = saved.read_bytes()
    changed = tmp_path / "changed.arrow"
    rng = random.Random(0)
    for _ in range(300):
        mutated = bytearray(content)
        mutated[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        changed.write_bytes(mutated)
        with pytest.raises(CheckpointError):
            load_tensors(changed)


def test_a_forged_body_is_refused(saved: Path, tmp_path: Path) -> None:
    """300 mutated bodies under a valid digest: a CheckpointError, or tensors and nothing else."""
    body = saved.read_bytes().split(b"\n", 2)[2]
    forged = tmp_path / "forged.arrow"
    rng = random.Random(1)
    refused = 0
    for _ in range(300):
        mutated = bytearray(body)
        mutated[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
        forged.write_bytes(b"\n".join((FORMAT, _digest(bytes(mutated)), bytes(mutated))))
        try:
            tensors, _ = load_tensors(forged)
        except CheckpointError:
            refused += 1
            continue
        assert all(isinstance(t, torch.Tensor) for t in tensors.values())
    assert refused > 50


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    """A missing file, a pickle (which is not run), other contents under a valid digest."""
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tensors(tmp_path / "missing.arrow")
    witness = tmp_path / "witness"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (witness,)

    (tmp_path / "pickle.arrow").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="not a checkpoint of this version"):
        load_tensors(tmp_path / "pickle.arrow")
    assert not witness.exists()
    body = b"anything"
    (tmp_path / "other.arrow").write_bytes(b"\n".join((FORMAT, _digest(body), body)))
    with pytest.raises(CheckpointError, match="is not a valid checkpoint"):
        load_tensors(tmp_path / "other.arrow")


def test_a_failed_write_leaves_the_old_file(saved: Path) -> None:
    """A record that JSON cannot hold: the error comes out, the old contents stay, no temporary is left."""
    with pytest.raises(TypeError):
        save_tensors(saved, {}, {"x": object()})
    assert load_tensors(saved)[1] == RECORD
    assert [p.name for p in saved.parent.iterdir()] == ["c.arrow"]


def test_a_state_without_the_moments_of_its_labels_is_refused() -> None:
    """Learnt labels do not resume with fresh moments."""
    data = DistilledData(torch.zeros(2, 1, 2, 2), torch.eye(2))
    state = RunState.start(data, OuterOptimizer(lr=Constant(1.0), label_lr_scale=1.0))
    tensors, record = to_record(state)
    assert from_record(tensors, record).outer.labels is not None
    del tensors["outer_label_v"]
    with pytest.raises(CheckpointError, match="lacks 'outer_label_v'"):
        from_record(tensors, record)


def test_an_incomplete_state_is_refused() -> None:
    """A record without the clip average."""
    with pytest.raises(CheckpointError, match="lacks"):
        from_record({}, {"best": None})


@pytest.mark.parametrize(
    ("tensor", "entry", "value"),
    [
        ("images", None, torch.full((2, 1, 2, 2), torch.nan)),
        ("images", None, torch.zeros(2, 4)),
        ("images", None, torch.zeros(3, 1, 2, 2)),
        ("labels", None, torch.zeros(2, 2, dtype=torch.int64)),
        ("outer_m", None, torch.zeros(2, 1, 4, 1)),
        ("outer_v", None, torch.zeros(2, 1, 2, 2, dtype=torch.float64)),
        ("outer_label_m", None, torch.zeros(2, 1)),
        ("best_images", None, torch.zeros(2, 1, 2, 3)),
        (None, "outer_step", -1),
        (None, "outer_step", True),
        (None, "outer_num_steps", "3"),
        (None, "clip_ema", "0.5"),
        (None, "nonfinite_total", 2**63),
        (None, "best", {"outer_step": 1, "accuracy": "high"}),
        (None, "curriculum", {"advanced": -1, "best_loss": None, "num_stalled": 0}),
        (None, "curriculum", [1]),
    ],
)
def test_an_impossible_state_is_refused(tensor: str | None, entry: str | None, value: object) -> None:
    """One tensor or one entry of a valid state changed, as anyone could under a valid digest."""
    data = DistilledData(torch.zeros(2, 1, 2, 2), torch.eye(2))
    state = RunState.start(data, OuterOptimizer(lr=Constant(1.0), label_lr_scale=1.0)).with_candidate(
        Best(data, 0, 0.25)
    )
    tensors, record = to_record(state)
    assert from_record(tensors, record).best is not None
    with pytest.raises(CheckpointError, match="the checkpoint"):
        from_record(tensors | ({tensor: value} if tensor else {}), record | ({entry: value} if entry else {}))  # type: ignore[dict-item]


def test_a_run_is_loaded_with_the_metrics_that_mlflow_may_lack(tmp_path: Path) -> None:
    """State and metrics, non-finite ones included; under another configuration the file is refused."""
    data = DistilledData(torch.rand(2, 1, 2, 2), torch.eye(2))
    state = RunState.start(data, OuterOptimizer(lr=Constant(1.0))).with_candidate(Best(data, 0, 0.25))
    points = [
        StepMetrics(3, {"loss": 0.1}, 1e9 + 0.125),
        StepMetrics(4, {"loss": float("inf"), "extra": 2.0}, 1e9 + 1),
    ]
    save_state(tmp_path / "c.arrow", "abc", state, points)
    saved = load_state(tmp_path / "c.arrow", "abc")
    assert saved.unlogged == points
    assert to_record(saved.state)[1] == to_record(state)[1]
    assert torch.equal(saved.state.data.images_NCHW, data.images_NCHW)
    with pytest.raises(CheckpointError, match="another configuration"):
        load_state(tmp_path / "c.arrow", "abd")


@pytest.mark.parametrize(
    "forged", [7, [7], [[1, 2]], [["x", {}, 0.0]], [[1, {"a": "b"}, 0.0]], [[1, [], 0.0]]]
)
def test_malformed_metrics_are_refused(forged: object, tmp_path: Path) -> None:
    """Whatever is in place of the metrics: a CheckpointError, and nothing else."""
    data = DistilledData(torch.zeros(2, 1, 2, 2), torch.eye(2))
    tensors, record = to_record(RunState.start(data, OuterOptimizer(lr=Constant(1.0))))
    save_tensors(tmp_path / "c.arrow", tensors, record | {"config_hash": "abc", "unrecorded": forged})
    with pytest.raises(CheckpointError, match="its metrics are malformed"):
        load_state(tmp_path / "c.arrow", "abc")
