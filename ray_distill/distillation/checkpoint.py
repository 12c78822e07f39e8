"""The state of an unfinished run in one file: versioned, checked, written atomically, never a pickle.

Two lines of text, the format and a digest of the rest; then an Arrow IPC stream with one row per tensor (name, dtype,
shape, bytes) and a JSON record in its schema's metadata. Nothing is parsed before the digest matches, so a truncated or
corrupt file is always refused, and an untrusted one can only hold numbers. Beside the state a checkpoint holds the metrics
that may not be in MLflow yet.
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
    """Write tensors and a JSON-serialisable record to `path` atomically."""
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
    """The inverse of `save_tensors`. Raises: CheckpointError for a file that is missing, corrupt or not a checkpoint."""
    try:
        content = path.read_bytes()
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e}") from e
    file_format, _, rest = content.partition(b"\n")
    digest, _, body = rest.partition(b"\n")
    if file_format != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this version of ray_distill")
    if digest != _digest(body):
        raise CheckpointError(f"{path} is truncated or corrupt: its digest does not match")
    try:
        with pa.ipc.open_stream(body) as reader:
            if reader.schema != _SCHEMA:
                raise ValueError("unexpected columns")
            table = reader.read_all()
        table.validate(full=True)
        record = json.loads(table.schema.metadata[_RECORD])
        if not isinstance(record, dict):
            raise TypeError("its record is not a mapping")
        tensors = {
            row["name"]: _tensor(row["data"], DTYPES[row["dtype"]], row["shape"]) for row in table.to_pylist()
        }
    # An untrusted file makes Arrow and torch raise many types.
    except Exception as e:
        raise CheckpointError(f"{path} is not a valid checkpoint: {e}") from e
    return tensors, record


def _tensor(data: bytes, dtype: torch.dtype, shape: list[int]) -> Tensor:
    if math.prod(shape) * dtype.itemsize != len(data) or min(shape, default=0) < 0:
        raise ValueError(f"{len(data)} bytes for a tensor of shape {shape}")
    # A copy, since bytes are read-only; frombuffer refuses an empty one.
    flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.reshape(shape)


def to_record(state: RunState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Named tensors and a JSON-serialisable record, for `save_tensors`."""
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
    """The inverse of `to_record`, onto a device. Raises: CheckpointError for an impossible state."""
    at = {name: tensor.to(device) for name, tensor in tensors.items()}
    try:
        data, best = _read_data(at, "images", "labels"), record["best"]
        labels = _read_moments(at, "outer_label", data.labels_NK) if record["labels_learnt"] else None
        return RunState(
            data=data,
            outer=OuterState(
                _read_moments(at, "outer", data.images_NCHW),
                labels,
                _read_count(record, "outer_num_steps"),
                None if record["clip_ema"] is None else _read_float(record, "clip_ema"),
            ),
            outer_step=_read_count(record, "outer_step"),
            clipped_total=_read_count(record, "clipped_total"),
            nonfinite_in_a_row=_read_count(record, "nonfinite_in_a_row"),
            nonfinite_total=_read_count(record, "nonfinite_total"),
            best=None if best is None else _read_best(at, best, data),
            curriculum=_read_curriculum(record["curriculum"]),
        )
    except (KeyError, TypeError) as e:
        raise CheckpointError(f"the checkpoint lacks {e}") from e


def _read_count(record: Mapping[str, Any], name: str) -> int:
    value = record[name]
    if type(value) is not int or not 0 <= value < 2**63:
        raise CheckpointError(f"the checkpoint's {name} must be a non-negative integer; got {value!r:.40}")
    return value


def _read_float(record: Mapping[str, Any], name: str) -> float:
    value = record[name]
    if type(value) is not float:
        raise CheckpointError(f"the checkpoint's {name} must be a float; got {value!r:.40}")
    return value


def _read_data(tensors: Mapping[str, Tensor], images: str, labels: str) -> DistilledData:
    data = DistilledData(tensors[images], tensors[labels])
    shapes = data.images_NCHW.shape, data.labels_NK.shape
    if (len(shapes[0]), len(shapes[1])) != (4, 2) or shapes[0][0] != shapes[1][0] or not shapes[0].numel():
        raise CheckpointError(
            f"the shapes of the checkpoint's {images} and {labels} do not fit: {list(shapes[0])} and {list(shapes[1])}"
        )
    if not all(x.is_floating_point() and bool(x.isfinite().all()) for x in data):
        raise CheckpointError(f"the checkpoint's {images} or {labels} are not finite")
    return data


def _read_moments(tensors: Mapping[str, Tensor], name: str, like: Tensor) -> Moments:
    moments = Moments(tensors[f"{name}_m"], tensors[f"{name}_v"])
    if any((x.shape, x.dtype) != (like.shape, like.dtype) for x in moments):
        raise CheckpointError(f"the checkpoint's {name}_m or {name}_v have the wrong shape or dtype")
    return moments


def _read_best(tensors: Mapping[str, Tensor], record: Mapping[str, Any], data: DistilledData) -> Best:
    best = Best(
        _read_data(tensors, "best_images", "best_labels"),
        _read_count(record, "outer_step"),
        _read_float(record, "accuracy"),
    )
    if any((x.shape, x.dtype) != (y.shape, y.dtype) for x, y in zip(best.data, data, strict=True)):
        raise CheckpointError("the checkpoint's best set has the wrong shape or dtype")
    return best


def _read_curriculum(record: Mapping[str, Any]) -> CurriculumState:
    loss = None if record["best_loss"] is None else _read_float(record, "best_loss")
    return CurriculumState(_read_count(record, "advanced"), loss, _read_count(record, "num_stalled"))


class SavedRun(NamedTuple):
    """A run's checkpoint."""

    state: RunState
    unlogged: list[StepMetrics]
    """Metrics that may not be in MLflow yet."""


def save_state(path: Path, config_hash: str, state: RunState, unlogged: Sequence[StepMetrics]) -> None:
    """Write a checkpoint of the run with this configuration."""
    tensors, record = to_record(state)
    record |= {"config_hash": config_hash, "unrecorded": list(unlogged)}
    save_tensors(path, tensors, record)


def load_state(path: Path, config_hash: str, device: torch.device | None = None) -> SavedRun:
    """The inverse of `save_state`, onto a device. Raises: CheckpointError if it is not a checkpoint of this run."""
    tensors, record = load_tensors(path)
    if record.get("config_hash") != config_hash:
        raise CheckpointError(f"{path} is a checkpoint of another configuration")
    state = from_record(tensors, record, device)
    try:
        unlogged = [
            StepMetrics(int(step), {str(name): float(value) for name, value in values.items()}, float(unix_s))
            for step, values, unix_s in record["unrecorded"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        raise CheckpointError(f"{path}: its metrics are malformed ({e})") from e
    return SavedRun(state, unlogged)
