"""A distilled dataset as one self-describing Parquet file: a torch Dataset that says how to use it.

Distilled images are worth nothing without their preprocessing and their training protocol: networks
trained on them and tested on images preprocessed otherwise are at chance. So both travel in the file.

| column | type | |
|---|---|---|
| `image` | fixed_shape_tensor<float, [C, H, W]> | in the preprocessed space that networks train in |
| `label` | int64 | the most probable class, for readers that want one |
| `label_probabilities` | fixed_shape_tensor<float, [K]> | targets of the cross entropy |
| `preprocessing_chunk` | binary | tensors of the preprocessing, cut into as many pieces as there are rows |

A whitening matrix is 38 MB: in the schema's metadata it would be read by whoever wants one image, and
stand there twice. As a column it costs nothing to a reader that leaves it out. All else is JSON under the
one metadata key `ray_distill`, with a BLAKE2b digest of itself and of the columns, so that nothing that
was changed is used. There is no pickle, and values are stored plain and uncompressed: what a file
declares is checked against its size before anything is allocated.
"""

import hashlib
import json
import math
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ray_distill import __version__
from ray_distill.data.preprocessing import Preprocessing, preprocessing_from_record
from ray_distill.errors import MistakeError, is_mistake
from ray_distill.whole_files import written_whole

FORMAT = 1
"""Raised with every change that an older reader would misread."""

_KEY = b"ray_distill"
_PLAIN_FIELDS = ("protocol", "config", "provenance")
_HEADER_FIELDS = (
    *("format", "num_images", "image_shape", "class_names", "preprocessing", "preprocessing_tensors"),
    *("config_hash", *_PLAIN_FIELDS, "digest"),
)


class ArtifactError(MistakeError):
    """A file is not an intact distilled dataset, or the values given cannot make one."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DistilledDataset(Dataset[tuple[Tensor, Tensor]]):
    """Distilled images and labels, with all that is needed to train on them and to test the result.

    Item i is (image float32 [C, H, W], label probabilities float32 [K]).
    Raises: ArtifactError for values of wrong shape or type, or not finite.
    """

    images_NCHW: Tensor
    """float32, in the preprocessed space: networks train on them as they are."""
    labels_NK: Tensor
    """float32 target probabilities; learnt rows need not sum to 1."""
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    """As fitted on the real training images; real test images need it too."""
    protocol: dict[str, Any]
    """How to train on the set: network, optimiser, learning rate, steps, augmentation, batch."""
    config: dict[str, Any]
    """The run that made it."""
    config_hash: str
    provenance: dict[str, Any]
    """Versions, time, seed, outer steps; see `provenance`."""

    def __post_init__(self) -> None:
        for name, tensor, ndim in (("images_NCHW", self.images_NCHW, 4), ("labels_NK", self.labels_NK, 2)):
            if tensor.dtype != torch.float32 or tensor.ndim != ndim or tensor.numel() == 0:
                raise ArtifactError(
                    f"{name} is {tensor.dtype} {list(tensor.shape)}; it must be float32 with {ndim} axes, not empty"
                )
            if not bool(torch.isfinite(tensor).all()):
                raise ArtifactError(f"{name} holds values that are not finite")
        num_images, num_classes = self.labels_NK.shape
        if len(self.images_NCHW) != num_images or len(self.class_names) != num_classes:
            raise ArtifactError(
                f"{len(self.images_NCHW)} images, {num_images} rows of {num_classes} label probabilities and "
                f"{len(self.class_names)} class names do not belong together"
            )
        for name in _PLAIN_FIELDS:
            _check_plain(name, getattr(self, name))
        try:
            self.preprocessing.check_shape(self.images_NCHW)
        except ValueError as error:
            raise ArtifactError(f"the preprocessing does not fit: {error}") from error

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images_NCHW[index], self.labels_NK[index]

    def __repr__(self) -> str:
        shape = "x".join(str(n) for n in self.images_NCHW.shape)
        return (
            f"<DistilledDataset {shape}, {len(self.class_names)} classes, preprocessing "
            f"{self.preprocessing.kind}; print() it to see how to use it>"
        )

    def __str__(self) -> str:
        return self.describe()

    def describe(self) -> str:
        """What the set is, how to train on it and how to preprocess test images: one screen of text."""
        num_images, channels, height, width = self.images_NCHW.shape
        names = ", ".join(self.class_names[:10]) + (", ..." if len(self.class_names) > 10 else "")
        sums = self.labels_NK.sum(dim=1)
        lines = [
            f"Distilled dataset: {num_images} images of {channels}x{height}x{width}",
            f"Classes: {len(self.class_names)} ({names})",
            f"Labels: target probabilities of the cross entropy; rows sum to {sums.min():.3g} .. {sums.max():.3g}",
            f"Preprocessing: {self.preprocessing.describe()}",
            "  The images here are preprocessed already: train on them as they are.",
            "  Real images, those of the test too: preprocess(pixels in [0, 1], NCHW), and nothing else.",
            "  To look at the images: to_pixels().",
            "Train a fresh network on it like this:",
            *(f"  {key}: {value}" for key, value in self.protocol.items()),
            "Made by:",
            *(f"  {key}: {value}" for key, value in self.provenance.items()),
            f"  config hash: {self.config_hash}",
        ]
        # A stranger's words must not steer the terminal.
        return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)

    def preprocess(self, images_NCHW: Tensor) -> Tensor:
        """Real images with pixels in [0, 1], as networks trained on this set need them: float32 NCHW."""
        return self.preprocessing.apply(images_NCHW)

    def to_pixels(self) -> Tensor:
        """The distilled images to look at: float32 in [0, 1], NCHW (see the preprocessing's `to_pixels`)."""
        return self.preprocessing.to_pixels(self.images_NCHW)

    def save(self, path: str | Path) -> None:
        """Write the file; a reader sees the whole of it or what was there before.

        Raises: ArtifactError if it cannot be written.
        """
        import pyarrow.parquet as pq

        path = Path(path)
        try:
            with written_whole(path) as file:
                # Statistics would copy chunks of the preprocessing into the footer.
                pq.write_table(
                    _to_table(self),
                    file,
                    compression="none",
                    use_dictionary=False,
                    write_statistics=False,
                    write_page_checksum=True,
                )
        except OSError as error:
            if not is_mistake(error):
                raise
            raise ArtifactError(f"{path} cannot be written: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> "DistilledDataset":
        """Read a file that `save` wrote.

        Raises: ArtifactError for a file that is missing, truncated, changed, of another format version, or
            not a distilled dataset.
        """
        path = Path(path)
        if not path.is_file():
            raise ArtifactError(f"{path} is not a file")
        with _errors_named(path):
            return _read(path)


def provenance(**facts: Any) -> dict[str, Any]:
    """The facts given (seed, outer steps, ...), the versions that run here, and the time: plain data."""
    return {
        **facts,
        "ray_distill": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _check_plain(name: str, value: dict[str, Any]) -> None:
    """Raises: ArtifactError unless JSON gives the value back as it was."""
    try:
        same = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{name} is not plain data: {error}") from error
    if not same or not isinstance(value, dict):
        raise ArtifactError(f"{name} is not plain data: use string keys, lists for tuples, finite numbers")


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Turns whatever reading a file raises into an ArtifactError that names it, in one line."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ArtifactError(f"{path} is not an intact distilled dataset: {reason}") from error


def _to_table(dataset: DistilledDataset) -> Any:
    """The pyarrow table to write, its metadata included."""
    import pyarrow as pa

    description, tensors = dataset.preprocessing.to_record()
    payload = b"".join(_floats(tensor).tobytes() for tensor in tensors.values())
    images, labels_NK = _floats(dataset.images_NCHW), _floats(dataset.labels_NK)
    labels = np.argmax(labels_NK, axis=1)
    header = {
        "format": FORMAT,
        "num_images": len(dataset),
        "image_shape": list(dataset.images_NCHW.shape[1:]),
        "class_names": list(dataset.class_names),
        "preprocessing": description,
        "preprocessing_tensors": [[name, list(tensor.shape)] for name, tensor in tensors.items()],
        "config_hash": dataset.config_hash,
        **{name: getattr(dataset, name) for name in _PLAIN_FIELDS},
    }
    header["digest"] = _digest(header, [images.tobytes(), labels_NK.tobytes(), payload])
    step = -(-len(payload) // len(dataset))
    chunks = [payload[i * step : (i + 1) * step] for i in range(len(dataset))]
    schema = _schema(pa, dataset.images_NCHW.shape[1:], len(dataset.class_names))
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
    """The tensor's numbers as little-endian float32, whatever its device and the machine."""
    array: NDArray[np.float32] = np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype="<f4")
    return array


def _digest(header: dict[str, Any], payload: list[bytes]) -> str:
    """BLAKE2b of the header without its digest, in canonical JSON, and of the columns' bytes."""
    digest = hashlib.blake2b(digest_size=32)
    without = {key: value for key, value in header.items() if key != "digest"}
    digest.update(json.dumps(without, sort_keys=True, allow_nan=False).encode())
    for part in payload:
        digest.update(part)
    return digest.hexdigest()


def _read(path: Path) -> DistilledDataset:
    """Raises: any exception, for `_errors_named` to turn into one that names the file."""
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
            raise ArtifactError("it declares more than it holds")
        if not parquet.schema_arrow.equals(_schema(pa, image_shape, num_classes)):
            raise ArtifactError("its columns are not those that its metadata declare")
        if parquet.metadata.num_rows != num_images:
            raise ArtifactError(f"it has {parquet.metadata.num_rows} rows, its metadata declare {num_images}")
        table = parquet.read()
    images = _tensor_column(table, "image", (num_images, *image_shape))
    labels_NK = _tensor_column(table, "label_probabilities", (num_images, num_classes))
    payload = b"".join(table.column("preprocessing_chunk").to_pylist())
    if header["digest"] != _digest(header, [images.tobytes(), labels_NK.tobytes(), payload]):
        raise ArtifactError("its contents do not match their digest; it was changed or damaged")
    if not np.array_equal(table.column("label").to_numpy(), np.argmax(labels_NK, axis=1)):
        raise ArtifactError("its column `label` is not the most probable class")
    return DistilledDataset(
        images_NCHW=torch.from_numpy(images),
        labels_NK=torch.from_numpy(labels_NK),
        class_names=tuple(header["class_names"]),
        preprocessing=preprocessing_from_record(header["preprocessing"], _cut(payload, shapes)),
        config_hash=header["config_hash"],
        **{name: header[name] for name in _PLAIN_FIELDS},
    )


def _read_header(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """The JSON under the key. Raises: ArtifactError for a file that is not ours, or not of this format."""
    if _KEY not in metadata:
        raise ArtifactError("a Parquet file, but its metadata have no `ray_distill`")
    header = json.loads(metadata[_KEY])
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else None
        raise ArtifactError(f"it has format version {found}; this ray_distill reads {FORMAT}")
    missing = [name for name in _HEADER_FIELDS if name not in header]
    if missing:
        raise ArtifactError(f"its metadata have no {', '.join(missing)}")
    names = header["class_names"]
    if not isinstance(names, list) or not all(
        isinstance(text, str) for text in (*names, header["config_hash"])
    ):
        raise ArtifactError("its class names or its hash are no texts")
    return header


def _sizes(values: Any, count: int) -> tuple[int, ...]:
    """Raises: ArtifactError unless the values are `count` positive integers."""
    if not isinstance(values, list) or len(values) != count:
        raise ArtifactError(f"{values!r} is not a shape of {count} axes")
    if not all(type(value) is int and value > 0 for value in values):
        raise ArtifactError(f"the shape {values!r} has an axis that is not a positive integer")
    return tuple(values)


def _tensor_column(table: Any, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A column of fixed-shape tensors as one array of its own. Raises: ArtifactError for missing values."""
    values = table.column(name).combine_chunks().storage.flatten()
    if values.null_count > 0 or len(values) != math.prod(shape):
        raise ArtifactError(f"its column `{name}` has missing values")
    array: NDArray[np.float32] = values.to_numpy().astype("<f4", copy=True).reshape(shape)
    return array


def _cut(payload: bytes, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of the preprocessing out of their bytes. Raises: ArtifactError for bytes over or missing."""
    if len(payload) != 4 * sum(map(math.prod, shapes.values())):
        raise ArtifactError(f"its preprocessing is {len(payload)} bytes long, not as its metadata declare")
    tensors, start = {}, 0
    for name, shape in shapes.items():
        values = np.frombuffer(payload, dtype="<f4", count=math.prod(shape), offset=start)
        # A copy of its own: aligned as any tensor, so that products with it round as before saving.
        tensors[name] = torch.from_numpy(values.copy()).reshape(shape)
        start += 4 * math.prod(shape)
    return tensors
