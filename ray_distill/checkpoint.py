"""The state of an unfinished run in one file: versioned, checked, written atomically, never a pickle.

Two lines of text, the format and a digest of all that follows; then an Arrow IPC stream with one row per
tensor (name, dtype, shape, bytes) and a JSON record in its schema's metadata. Nothing is parsed before
the digest fits, so a file that was cut or altered is refused whatever was hit, and one that a stranger
made is still only numbers.
"""

import hashlib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from ray_distill.errors import FailedError
from ray_distill.whole_files import written_whole

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


class CheckpointError(FailedError):
    """A checkpoint that cannot be read or does not belong to this run."""


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=16).hexdigest().encode()


def save(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
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
    with written_whole(path) as file:
        file.write(b"\n".join((FORMAT, _digest(body), body)))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record of a file that `save` wrote.

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
