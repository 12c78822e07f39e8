"""Image classification datasets in Parquet files, as the public hubs lay them out.

One row is one image: a column `image` (or `img`), a struct whose `bytes` are an encoded image file, and
an integer column `label` (or `labels`, or `fine_label`). The names of the classes are taken from the schema's
metadata: `class_names`, separated by commas, or the `ClassLabel` names in the JSON under `huggingface`.

`sources` and `test_split` say which files are read.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_distill.data.labelled_images import DataError
from ray_distill.data.listing import EncodedBatch, Listing, check_labels
from ray_distill.data.paths import DataFile

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_BATCH_ROWS = 1024


@contextmanager
def _opened(file: DataFile) -> Iterator[Any]:
    """The Parquet file; errors of its reader become a DataError that names it."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file.place.path, filesystem=file.place.filesystem) as parquet:
            yield parquet
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{file} cannot be read as a Parquet file: {error}") from error


@dataclass(frozen=True, kw_only=True)
class _Contents:
    """A file without its images."""

    file: DataFile
    image_column: str
    labels_N: Tensor
    class_names: tuple[str, ...] | None


def read_parquet(files: Sequence[DataFile]) -> Listing:
    """The images of these files, one file after the other.

    Raises: DataError for a file of another layout, or labels outside 0 .. K-1; it names file and row.
    """
    contents = [_read_contents(file) for file in files]
    labels_N = torch.cat([c.labels_N for c in contents])
    if len(labels_N) == 0:
        raise DataError(f"{', '.join(map(str, files))}: there are no images")
    class_names = _agreed_class_names(contents)
    for c in contents:
        check_labels(c.labels_N, len(class_names), str(c.file))
    return Listing(
        labels_N=labels_N,
        class_names=class_names,
        files=tuple(files),
        batches=lambda rows: _batches(contents, rows),
    )


def _read_contents(file: DataFile) -> _Contents:
    """The labels of a file, its image column and class names. Raises: DataError for missing or wrong columns."""
    import pyarrow as pa

    with _opened(file) as parquet:
        schema = parquet.schema_arrow
        image_column = next((name for name in _IMAGE_COLUMNS if name in schema.names), None)
        label_column = next((name for name in _LABEL_COLUMNS if name in schema.names), None)
        if image_column is None or label_column is None:
            raise DataError(
                f"{file} must have the columns `image` (or `img`) and `label` (or `labels`, `fine_label`); got "
                f"{', '.join(schema.names)}"
            )
        image_type = schema.field(image_column).type
        if not pa.types.is_struct(image_type) or image_type.get_field_index("bytes") < 0:
            raise DataError(
                f"{file}: column `{image_column}` must be struct<bytes: binary, path: string>, got {image_type}"
            )
        label_type = schema.field(label_column).type
        if not pa.types.is_integer(label_type):
            raise DataError(f"{file}: column `{label_column}` must be int64, got {label_type}")
        label = parquet.read(columns=[label_column]).column(label_column)
        if label.null_count > 0:
            raise DataError(f"{file}: {label.null_count} row(s) have no label; remove them")
        return _Contents(
            file=file,
            image_column=image_column,
            labels_N=torch.from_numpy(label.cast(pa.int64()).to_numpy().copy()),
            class_names=_named_classes(file, schema, label_column),
        )


def _named_classes(file: DataFile, schema: Any, label_column: str) -> tuple[str, ...] | None:
    """The class names in the schema's metadata; None if there are none."""
    metadata: dict[bytes, bytes] = schema.metadata or {}
    if b"class_names" in metadata:
        return tuple(metadata[b"class_names"].decode().split(","))
    if b"huggingface" not in metadata:
        return None
    try:
        label = json.loads(metadata[b"huggingface"])["info"]["features"][label_column]
        # A label declared as a plain integer has no names.
        return tuple(str(name) for name in label["names"]) if "names" in label else None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: the `huggingface` metadata do not describe column `{label_column}`"
        ) from error


def _agreed_class_names(contents: list[_Contents]) -> tuple[str, ...]:
    """The class names, which all files must share; without names, the numbers up to the largest label."""
    first = contents[0]
    for other in contents[1:]:
        if other.class_names != first.class_names:
            raise DataError(
                f"{first.file} and {other.file} have different class names: {first.class_names}, {other.class_names}"
            )
    if first.class_names is not None:
        return first.class_names
    largest = max(int(c.labels_N.max()) for c in contents if len(c.labels_N) > 0)
    return tuple(str(k) for k in range(largest + 1))


def _batches(contents: list[_Contents], rows: NDArray[np.int64]) -> Iterator[EncodedBatch]:
    """The encoded images at these rows (counted through all files, ascending), a batch of rows at a time."""
    first_row = 0
    for c in contents:
        in_file = rows[(rows >= first_row) & (rows < first_row + len(c.labels_N))] - first_row
        first_row += len(c.labels_N)
        if len(in_file) > 0:
            yield from _batches_of(c, in_file)


def _batches_of(c: _Contents, rows: NDArray[np.int64]) -> Iterator[EncodedBatch]:
    import pyarrow as pa

    with _opened(c.file) as parquet:
        first_row = 0
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=[f"{c.image_column}.bytes"]):
            start, stop = np.searchsorted(rows, (first_row, first_row + len(batch)))
            column = batch.column(0).field("bytes").take(pa.array(rows[start:stop] - first_row))
            places = (f"{c.file}, row {row}" for row in rows[start:stop])
            yield list(zip(places, column.to_pylist(), strict=True))
            first_row += len(batch)
