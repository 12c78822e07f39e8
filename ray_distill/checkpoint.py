"""The state of an unfinished run in one file: versioned, checked, written atomically, never a pickle.

The file is an Arrow IPC table with one row per tensor (name, dtype, shape, bytes) and one JSON record in
the schema's metadata, with a digest over all of it. Reading one that was cut, altered or made by
something else raises CheckpointError and nothing else.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

FORMAT = "ray_distill checkpoint 1"
DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.float64, torch.int64)}
_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("dtype", pa.string()),
        ("shape", pa.list_(pa.int64())),
        ("data", pa.large_binary()),
    ]
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not belong to this run."""


def _digest(record: str, rows: list[dict[str, Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(record.encode())
    for row in rows:
        digest.update(f"{row['name']} {row['dtype']} {row['shape']}".encode())
        digest.update(row["data"])
    return digest.hexdigest()


def save(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able record to `path`; a reader sees the old file or the new one."""
    rows = []
    for name, tensor in tensors.items():
        array = tensor.detach().cpu().contiguous()
        dtype = str(array.dtype).removeprefix("torch.")
        rows.append(
            {"name": name, "dtype": dtype, "shape": list(array.shape), "data": array.numpy().tobytes()}
        )
    text = json.dumps(record, sort_keys=True)
    metadata = {"format": FORMAT, "record": text, "digest": _digest(text, rows)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with pa.OSFile(str(temporary), "wb") as sink:
            schema = _SCHEMA.with_metadata(metadata)
            with pa.ipc.new_file(sink, schema) as writer:
                writer.write_table(pa.Table.from_pylist(rows, schema))
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record of a file that `save` wrote.

    Raises: CheckpointError for a file that is missing, cut, altered or not a checkpoint.
    """
    try:
        with pa.OSFile(str(path), "rb") as source:
            table = pa.ipc.open_file(source).read_all()
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        rows = table.to_pylist()
    except (OSError, pa.ArrowException, UnicodeDecodeError, MemoryError) as e:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {e}") from e
    if metadata.get("format") != FORMAT or not table.schema.equals(_SCHEMA):
        raise CheckpointError(f"{path} is not a checkpoint of this version of ray_distill ({FORMAT})")
    try:
        intact = metadata["digest"] == _digest(metadata["record"], rows)
    except (KeyError, TypeError) as e:
        raise CheckpointError(f"{path} has lost part of its contents") from e
    if not intact:
        raise CheckpointError(f"{path} was altered after it was written: its digest does not match")
    tensors = {
        row["name"]: torch.frombuffer(bytearray(row["data"]), dtype=DTYPES[row["dtype"]]).reshape(
            row["shape"]
        )
        for row in rows
    }
    return tensors, json.loads(metadata["record"])
