"""The state of a run between two outer steps: all that the next step depends on, and nothing else.

Randomness needs no state (`core.rng`), so D, the outer optimiser, the counters, the place of a forward
curriculum and the best set so far are enough to go on bit for bit. A checkpoint holds that, and the
measurements that MLflow may not have yet.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ray_distill import checkpoint
from ray_distill.checkpoint import CheckpointError
from ray_distill.core.distilled import DistilledData
from ray_distill.core.outer_optimizer import Moments, OuterOptimizer, OuterState
from ray_distill.core.truncation import CurriculumState
from ray_distill.points import Point


class Best(NamedTuple):
    """A distilled set and its validation accuracy (a fraction) after some outer step."""

    data: DistilledData
    outer_step: int
    accuracy: float


class RunState(NamedTuple):
    """D and everything that the outer loop carries from step to step."""

    data: DistilledData
    outer: OuterState
    outer_step: int = 0
    """Outer steps taken, skipped ones included."""
    clipped_total: int = 0
    nonfinite_in_a_row: int = 0
    nonfinite_total: int = 0
    best: Best | None = None
    curriculum: CurriculumState = CurriculumState()
    """Moved by the forward curriculum alone."""

    @classmethod
    def start(cls, data: DistilledData, outer: OuterOptimizer) -> "RunState":
        """The state before the first outer step."""
        return cls(data, outer.init(data))

    def advance(self, data: DistilledData, outer: OuterState, clipped: bool) -> "RunState":
        """The state after an outer step that was taken."""
        return self._replace(
            data=data,
            outer=outer,
            outer_step=self.outer_step + 1,
            clipped_total=self.clipped_total + clipped,
            nonfinite_in_a_row=0,
        )

    def skip_nonfinite(self) -> "RunState":
        """The state after an outer step that was skipped because its metagradient was not finite."""
        return self._replace(
            outer_step=self.outer_step + 1,
            nonfinite_in_a_row=self.nonfinite_in_a_row + 1,
            nonfinite_total=self.nonfinite_total + 1,
        )

    def judge(self, candidate: Best) -> "RunState":
        """The state with the better of its best and the candidate; the earlier one on a tie."""
        if self.best is None or candidate.accuracy > self.best.accuracy:
            return self._replace(best=candidate)
        return self

    def to_record(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Named tensors and a JSON-able record, for `checkpoint.save`."""
        tensors = {
            "images": self.data.images_NCHW,
            "labels": self.data.labels_NK,
            "outer_m": self.outer.images.m,
            "outer_v": self.outer.images.v,
        }
        if self.outer.labels is not None:
            tensors |= {"outer_label_m": self.outer.labels.m, "outer_label_v": self.outer.labels.v}
        record: dict[str, Any] = {
            "outer_step": self.outer_step,
            "labels_learnt": self.outer.labels is not None,
            "outer_num_steps": self.outer.num_steps,
            "clip_ema": self.outer.clip_ema,
            "clipped_total": self.clipped_total,
            "nonfinite_in_a_row": self.nonfinite_in_a_row,
            "nonfinite_total": self.nonfinite_total,
            "best": None,
            "curriculum": self.curriculum._asdict(),
        }
        if self.best is not None:
            tensors |= {"best_images": self.best.data.images_NCHW, "best_labels": self.best.data.labels_NK}
            record["best"] = {"outer_step": self.best.outer_step, "accuracy": self.best.accuracy}
        return tensors, record

    @classmethod
    def from_record(
        cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any], device: torch.device | None = None
    ) -> "RunState":
        """The inverse of `to_record`, onto a device. Raises: CheckpointError for what no run has come to."""
        at = {name: tensor.to(device) for name, tensor in tensors.items()}
        try:
            data, best = _set_of(at, "images", "labels"), record["best"]
            labels = _moments_of(at, "outer_label", data.labels_NK) if record["labels_learnt"] else None
            return cls(
                data=data,
                outer=OuterState(
                    _moments_of(at, "outer", data.images_NCHW),
                    labels,
                    _count(record, "outer_num_steps"),
                    None if record["clip_ema"] is None else _number(record, "clip_ema"),
                ),
                outer_step=_count(record, "outer_step"),
                clipped_total=_count(record, "clipped_total"),
                nonfinite_in_a_row=_count(record, "nonfinite_in_a_row"),
                nonfinite_total=_count(record, "nonfinite_total"),
                best=None if best is None else _best_of(at, best, data),
                curriculum=_curriculum_of(record["curriculum"]),
            )
        except (KeyError, TypeError) as e:
            raise CheckpointError(f"the checkpoint lacks {e}") from e


def _count(record: Mapping[str, Any], name: str) -> int:
    value = record[name]
    if type(value) is not int or not 0 <= value < 2**63:
        raise CheckpointError(f"the checkpoint's {name} is no count")
    return value


def _number(record: Mapping[str, Any], name: str) -> float:
    value = record[name]
    if type(value) is not float:
        raise CheckpointError(f"the checkpoint's {name} is no number")
    return value


def _set_of(tensors: Mapping[str, Tensor], images: str, labels: str) -> DistilledData:
    data = DistilledData(tensors[images], tensors[labels])
    shapes = data.images_NCHW.shape, data.labels_NK.shape
    if (len(shapes[0]), len(shapes[1])) != (4, 2) or shapes[0][0] != shapes[1][0] or not shapes[0].numel():
        raise CheckpointError(f"the checkpoint's {images} and {labels} do not belong together")
    if not all(x.is_floating_point() and bool(x.isfinite().all()) for x in data):
        raise CheckpointError(f"the checkpoint's {images} or {labels} are not finite")
    return data


def _moments_of(tensors: Mapping[str, Tensor], name: str, of: Tensor) -> Moments:
    moments = Moments(tensors[f"{name}_m"], tensors[f"{name}_v"])
    if any((x.shape, x.dtype) != (of.shape, of.dtype) for x in moments):
        raise CheckpointError(f"the checkpoint's {name}_m or {name}_v are of another shape or type")
    return moments


def _best_of(tensors: Mapping[str, Tensor], record: Mapping[str, Any], data: DistilledData) -> Best:
    best = Best(
        _set_of(tensors, "best_images", "best_labels"),
        _count(record, "outer_step"),
        _number(record, "accuracy"),
    )
    if any((x.shape, x.dtype) != (y.shape, y.dtype) for x, y in zip(best.data, data, strict=True)):
        raise CheckpointError("the checkpoint's best set is of another shape or type")
    return best


def _curriculum_of(record: Mapping[str, Any]) -> CurriculumState:
    loss = None if record["best_loss"] is None else _number(record, "best_loss")
    return CurriculumState(_count(record, "advanced"), loss, _count(record, "num_stalled"))


class KeptRun(NamedTuple):
    """What a checkpoint of a run holds."""

    state: RunState
    unrecorded: list[Point]
    """Points that MLflow may not have yet."""


def keep(path: Path, config_hash: str, state: RunState, unrecorded: Sequence[Point]) -> None:
    """Write a checkpoint of the run with this configuration."""
    tensors, record = state.to_record()
    record |= {"config_hash": config_hash, "unrecorded": list(unrecorded)}
    checkpoint.save(path, tensors, record)


def load_kept(path: Path, config_hash: str, device: torch.device | None = None) -> KeptRun:
    """The inverse of `keep`, onto a device. Raises: CheckpointError if it is not a checkpoint of this run."""
    tensors, record = checkpoint.load(path)
    if record.get("config_hash") != config_hash:
        raise CheckpointError(f"{path} is a checkpoint of another configuration")
    state = RunState.from_record(tensors, record, device)
    try:
        points = [
            Point(int(step), {str(name): float(value) for name, value in values.items()}, float(unix_s))
            for step, values, unix_s in record["unrecorded"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        raise CheckpointError(f"{path}: its points are not points ({e})") from e
    return KeptRun(state, points)
