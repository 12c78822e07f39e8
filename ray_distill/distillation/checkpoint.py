"""The state of an unfinished run in one file: versioned, checked, written atomically, never a pickle.

Two lines of text, the format and a digest of all that follows; then an Arrow IPC stream with one row per
tensor (name, dtype, shape, bytes) and a JSON record in its schema's metadata. Nothing is parsed before
the digest fits, so a file that was cut or altered is refused whatever was hit, and one that a stranger
made is still only numbers. Beside the run's state a checkpoint holds the measurements that MLflow may not
have yet.
"""

import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from ray_distill.core.distilled import DistilledData
from ray_distill.core.metrics import StepMetrics
from ray_distill.core.outer_optimizer import Moments, OuterState
from ray_distill.core.state import Best, RunState
from ray_distill.core.truncation import CurriculumState
from ray_distill.errors import RunError
from ray_distill.utils.atomic import atomic_write

FORMAT = b"ray_distill checkpoint 1"
DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.float64, torch.int64)}
_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("dtype", pa.string()),
        ("shape", pa.list_(pa.int64())),
        ("data", pa.large_binary()),
    ]
)
_RECORD = b"record"


class CheckpointError(RunError):
    """A checkpoint that cannot be read or does not belong to this run."""


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).hexdigest().encode()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able record to `path`; a reader sees the old file or the new one."""
    rows = []
    for name, tensor in tensors.items():
        array = tensor.detach().cpu().contiguous()
        dtype = str(array.dtype).removeprefix("torch.")
        rows.append(
            {"name": name, "dtype": dtype, "shape": list(array.shape), "data": array.numpy().tobytes()}
        )
    schema = _SCHEMA.with_metadata({_RECORD: json.dumps(record, sort_keys=True).encode()})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema))
    body = sink.getvalue()
    with atomic_write(path) as file:
        file.write(b"\n".join((FORMAT, _digest(body), body)))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record of a file that `save_tensors` wrote.

    Raises: CheckpointError for a file that is missing, cut, altered or not a checkpoint.
    """
    try:
        content = path.read_bytes()
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e}") from e
    kind, _, rest = content.partition(b"\n")
    digest, _, body = rest.partition(b"\n")
    if kind != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this version of ray_distill")
    if digest != _digest(body):
        raise CheckpointError(f"{path} was cut or altered after it was written: its digest does not fit")
    try:
        with pa.ipc.open_stream(body) as reader:
            if reader.schema != _SCHEMA:
                raise ValueError("other columns")
            table = reader.read_all()
        table.validate(full=True)
        record = json.loads(table.schema.metadata[_RECORD])
        if not isinstance(record, dict):
            raise TypeError("its record is no mapping")
        tensors = {
            row["name"]: _tensor(row["data"], DTYPES[row["dtype"]], row["shape"]) for row in table.to_pylist()
        }
    # What a file of a stranger's makes Arrow and torch raise is many things.
    except Exception as e:
        raise CheckpointError(f"{path} does not hold what a checkpoint holds: {e}") from e
    return tensors, record


def _tensor(data: bytes, dtype: torch.dtype, shape: list[int]) -> Tensor:
    if math.prod(shape) * dtype.itemsize != len(data) or min(shape, default=0) < 0:
        raise ValueError(f"{len(data)} bytes for a tensor of shape {shape}")
    # A copy, since bytes cannot be written to; frombuffer takes no empty one.
    flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.reshape(shape)


def to_record(state: RunState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Named tensors and a JSON-able record, for `save_tensors`."""
    tensors = {
        "images": state.data.images_NCHW,
        "labels": state.data.labels_NK,
        "outer_m": state.outer.images.m,
        "outer_v": state.outer.images.v,
    }
    if state.outer.labels is not None:
        tensors |= {"outer_label_m": state.outer.labels.m, "outer_label_v": state.outer.labels.v}
    record: dict[str, Any] = {
        "outer_step": state.outer_step,
        "labels_learnt": state.outer.labels is not None,
        "outer_num_steps": state.outer.num_steps,
        "clip_ema": state.outer.clip_ema,
        "clipped_total": state.clipped_total,
        "nonfinite_in_a_row": state.nonfinite_in_a_row,
        "nonfinite_total": state.nonfinite_total,
        "best": None,
        "curriculum": state.curriculum._asdict(),
    }
    if state.best is not None:
        tensors |= {"best_images": state.best.data.images_NCHW, "best_labels": state.best.data.labels_NK}
        record["best"] = {"outer_step": state.best.outer_step, "accuracy": state.best.accuracy}
    return tensors, record


def from_record(
    tensors: Mapping[str, Tensor], record: Mapping[str, Any], device: torch.device | None = None
) -> RunState:
    """The inverse of `to_record`, onto a device. Raises: CheckpointError for what no run has come to."""
    at = {name: tensor.to(device) for name, tensor in tensors.items()}
    try:
        data, best = _set_of(at, "images", "labels"), record["best"]
        labels = _moments_of(at, "outer_label", data.labels_NK) if record["labels_learnt"] else None
        return RunState(
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


class SavedRun(NamedTuple):
    """What a checkpoint of a run holds."""

    state: RunState
    unrecorded: list[StepMetrics]
    """Points that MLflow may not have yet."""


def save_state(path: Path, config_hash: str, state: RunState, unrecorded: Sequence[StepMetrics]) -> None:
    """Write a checkpoint of the run with this configuration."""
    tensors, record = to_record(state)
    record |= {"config_hash": config_hash, "unrecorded": list(unrecorded)}
    save_tensors(path, tensors, record)


def load_state(path: Path, config_hash: str, device: torch.device | None = None) -> SavedRun:
    """The inverse of `save_state`, onto a device. Raises: CheckpointError if it is not a checkpoint of this run."""
    tensors, record = load_tensors(path)
    if record.get("config_hash") != config_hash:
        raise CheckpointError(f"{path} is a checkpoint of another configuration")
    state = from_record(tensors, record, device)
    try:
        points = [
            StepMetrics(int(step), {str(name): float(value) for name, value in values.items()}, float(unix_s))
            for step, values, unix_s in record["unrecorded"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        raise CheckpointError(f"{path}: its points are not points ({e})") from e
    return SavedRun(state, points)
