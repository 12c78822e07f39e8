"""The file format of a distilled dataset: Parquet, with a header in its metadata.

| column | type | |
|---|---|---|
| `image` | fixed_shape_tensor<float, [C, H, W]> | preprocessed values |
| `label` | int64 | the most probable class |
| `label_probabilities` | fixed_shape_tensor<float, [K]> | cross-entropy targets |
| `preprocessing_chunk` | binary | the preprocessing's tensors, split into one chunk per row |

A whitening matrix is 38 MB: in the schema's metadata every reader would load it, and it would be stored twice; a column
can be skipped. Everything else is JSON under the metadata key `ray_distill`, with a BLAKE2b digest of itself and of the
columns, so that a corrupt file is never used. There is no pickle, and values are stored plain and uncompressed: the
declared sizes are checked against the file's size before anything is allocated.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_distill.data.preprocessing import Preprocessing, preprocessing_from_record
from ray_distill.errors import UserError

FORMAT = 1
"""Incremented with every change that an older reader would misread."""

_KEY = b"ray_distill"
PLAIN_FIELDS = ("protocol", "config", "provenance")
"""Fields that are plain JSON."""
_HEADER_FIELDS = (
    *("format", "num_images", "image_shape", "class_names", "preprocessing", "preprocessing_tensors"),
    *("config_hash", *PLAIN_FIELDS, "digest"),
)


class ArtifactError(UserError):
    """A file is not an intact distilled dataset, or the given values are invalid."""


class ArtifactContents(NamedTuple):
    """The fields of a `DistilledDataset`."""

    images_NCHW: Tensor
    labels_NK: Tensor
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    protocol: dict[str, Any]
    config: dict[str, Any]
    config_hash: str
    provenance: dict[str, Any]


def to_table(contents: ArtifactContents) -> Any:
    """The pyarrow table to write, with its metadata."""
    import pyarrow as pa

    description, tensors = contents.preprocessing.to_record()
    payload = b"".join(_floats(tensor).tobytes() for tensor in tensors.values())
    images, labels_NK = _floats(contents.images_NCHW), _floats(contents.labels_NK)
    labels = np.argmax(labels_NK, axis=1)
    header = {
        "format": FORMAT,
        "num_images": len(images),
        "image_shape": list(contents.images_NCHW.shape[1:]),
        "class_names": list(contents.class_names),
        "preprocessing": description,
        "preprocessing_tensors": [[name, list(tensor.shape)] for name, tensor in tensors.items()],
        "config_hash": contents.config_hash,
        **{name: getattr(contents, name) for name in PLAIN_FIELDS},
    }
    header["digest"] = _digest(header, [images.tobytes(), labels_NK.tobytes(), payload])
    step = -(-len(payload) // len(images))
    chunks = [payload[i * step : (i + 1) * step] for i in range(len(images))]
    schema = _schema(pa, contents.images_NCHW.shape[1:], len(contents.class_names))
    columns = [
        pa.FixedShapeTensorArray.from_numpy_ndarray(images).cast(schema.field("image").type),
        pa.array(labels, pa.int64()),
        pa.FixedShapeTensorArray.from_numpy_ndarray(labels_NK).cast(schema.field("label_probabilities").type),
        pa.array(chunks, pa.binary()),
    ]
    return pa.table(columns, schema=schema.with_metadata({_KEY: json.dumps(header, allow_nan=False)}))


def _schema(pa: Any, image_shape: tuple[int, ...], num_classes: int) -> Any:
    """The columns of a file, without metadata."""
    return pa.schema(
        [
            pa.field("image", pa.fixed_shape_tensor(pa.float32(), tuple(image_shape)), nullable=False),
            pa.field("label", pa.int64(), nullable=False),
            pa.field(
                "label_probabilities", pa.fixed_shape_tensor(pa.float32(), (num_classes,)), nullable=False
            ),
            pa.field("preprocessing_chunk", pa.binary(), nullable=False),
        ]
    )


def _floats(tensor: Tensor) -> NDArray[np.float32]:
    """The tensor as little-endian float32, whatever the machine."""
    array: NDArray[np.float32] = np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype="<f4")
    return array


def _digest(header: dict[str, Any], payload: list[bytes]) -> str:
    """BLAKE2b of the header without its digest, in canonical JSON, and of the columns' bytes."""
    digest = hashlib.blake2b(digest_size=32)
    fields = {key: value for key, value in header.items() if key != "digest"}
    digest.update(json.dumps(fields, sort_keys=True, allow_nan=False).encode())
    for part in payload:
        digest.update(part)
    return digest.hexdigest()


def read(path: Path) -> ArtifactContents:
    """Read a file. Raises: any exception; the caller turns it into one that names the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
        header = _read_header(parquet.schema_arrow.metadata or {})
        image_shape = _sizes(header["image_shape"], 3)
        (num_images,) = _sizes([header["num_images"]], 1)
        num_classes = len(header["class_names"])
        shapes = {name: _sizes(shape, len(shape)) for name, shape in header["preprocessing_tensors"]}
        num_values = num_images * (math.prod(image_shape) + num_classes) + sum(
            map(math.prod, shapes.values())
        )
        if 4 * num_values > path.stat().st_size:
            raise ArtifactError("it declares more data than it contains")
        if not parquet.schema_arrow.equals(_schema(pa, image_shape, num_classes)):
            raise ArtifactError("its columns do not match its metadata")
        if parquet.metadata.num_rows != num_images:
            raise ArtifactError(
                f"it has {parquet.metadata.num_rows} rows, but its metadata declares {num_images}"
            )
        table = parquet.read()
    images = _tensor_column(table, "image", (num_images, *image_shape))
    labels_NK = _tensor_column(table, "label_probabilities", (num_images, num_classes))
    payload = b"".join(table.column("preprocessing_chunk").to_pylist())
    if header["digest"] != _digest(header, [images.tobytes(), labels_NK.tobytes(), payload]):
        raise ArtifactError("its contents do not match their digest")
    if not np.array_equal(table.column("label").to_numpy(), np.argmax(labels_NK, axis=1)):
        raise ArtifactError("its column `label` is not the most probable class")
    return ArtifactContents(
        images_NCHW=torch.from_numpy(images),
        labels_NK=torch.from_numpy(labels_NK),
        class_names=tuple(header["class_names"]),
        preprocessing=preprocessing_from_record(header["preprocessing"], _split_tensors(payload, shapes)),
        config_hash=header["config_hash"],
        **{name: header[name] for name in PLAIN_FIELDS},
    )


def _read_header(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """The JSON under the key. Raises: ArtifactError for a file without it, or of another format version."""
    if _KEY not in metadata:
        raise ArtifactError("a Parquet file, but its metadata has no `ray_distill`")
    header = json.loads(metadata[_KEY])
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        version = header.get("format") if isinstance(header, dict) else None
        raise ArtifactError(f"it has format version {version}; this version of ray_distill reads {FORMAT}")
    missing = [name for name in _HEADER_FIELDS if name not in header]
    if missing:
        raise ArtifactError(f"its metadata lacks {', '.join(missing)}")
    names = header["class_names"]
    if not isinstance(names, list) or not all(
        isinstance(text, str) for text in (*names, header["config_hash"])
    ):
        raise ArtifactError("its class names and hash must be strings")
    return header


def _sizes(values: Any, count: int) -> tuple[int, ...]:
    """Raises: ArtifactError unless the values are `count` positive integers."""
    if not isinstance(values, list) or len(values) != count:
        raise ArtifactError(f"{values!r} is not a shape of {count} axes")
    if not all(type(value) is int and value > 0 for value in values):
        raise ArtifactError(f"the shape {values!r} has an axis that is not a positive integer")
    return tuple(values)


def _tensor_column(table: Any, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A column of fixed-shape tensors, copied to one array. Raises: ArtifactError for missing values."""
    values = table.column(name).combine_chunks().storage.flatten()
    if values.null_count > 0 or len(values) != math.prod(shape):
        raise ArtifactError(f"its column `{name}` has missing values")
    array: NDArray[np.float32] = values.to_numpy().astype("<f4", copy=True).reshape(shape)
    return array


def _split_tensors(payload: bytes, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of the preprocessing. Raises: ArtifactError for the wrong number of bytes."""
    if len(payload) != 4 * sum(map(math.prod, shapes.values())):
        raise ArtifactError(f"its preprocessing has {len(payload)} bytes, which does not match its metadata")
    tensors, start = {}, 0
    for name, shape in shapes.items():
        values = np.frombuffer(payload, dtype="<f4", count=math.prod(shape), offset=start)
        # A copy, aligned like any tensor, so that products with it round as they did before saving.
        tensors[name] = torch.from_numpy(values.copy()).reshape(shape)
        start += 4 * math.prod(shape)
    return tensors
