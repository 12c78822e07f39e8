"""Image classification datasets in Parquet files, as the public hubs lay them out.

One row is one image: a column `image` (or `img`), a struct whose `bytes` are an encoded image file, and
an integer column `label`. The names of the classes are taken from the schema's metadata: `class_names`,
separated by commas, or the `ClassLabel` names in the JSON under `huggingface`.

This module reads the files that it is given. Which files may be read is decided by `sources`
(development) and `held_out` (test).
"""

import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_distill.core.rng import Stream
from ray_distill.data.labelled_images import DataError, LabelledImages
from ray_distill.data.strata import balanced_rows

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""

LIMIT_STREAM = Stream(seed=0, name="images kept by a limit")
"""Constant: a limit keeps the same images in every run, whatever its seed."""

_IMAGE_COLUMNS = ("image", "img")
_BATCH_ROWS = 1024
_PART_IMAGES = 128


@contextmanager
def _errors_named(file: Path) -> Iterator[None]:
    """Turns whatever the Parquet reader raises into a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{file} cannot be read as a Parquet file: {error}") from error


@dataclass(frozen=True, kw_only=True)
class _Contents:
    """What a file holds, but for its images."""

    file: Path
    image_column: str
    labels_N: Tensor
    class_names: tuple[str, ...] | None


@dataclass(kw_only=True)
class _Canvas:
    """The images decoded so far. Greyscale unless one of them has colour; then grey ones are spread to RGB."""

    num_images: int
    filled: int = 0
    images_NCHW: NDArray[np.uint8] = field(init=False)

    def add(self, pixels_CHW: NDArray[np.uint8], place: str) -> None:
        """Append an image. Raises: DataError if its size is not that of the first."""
        channels, height, width = pixels_CHW.shape
        if self.filled == 0:
            self.images_NCHW = np.empty((self.num_images, channels, height, width), dtype=np.uint8)
        if (height, width) != self.images_NCHW.shape[2:]:
            raise DataError(
                f"{place}: the image is {height}x{width} (height x width), the ones before it are "
                f"{self.images_NCHW.shape[2]}x{self.images_NCHW.shape[3]}; resize them all to one size"
            )
        if channels > self.images_NCHW.shape[1]:
            self.images_NCHW = np.repeat(self.images_NCHW, channels, axis=1)
        self.images_NCHW[self.filled] = pixels_CHW
        self.filled += 1


def read_parquet_images(
    files: list[Path], *, limit: int | None = None, progress: Progress | None = None
) -> LabelledImages:
    """The images of these files, one file after the other.

    Args:
        limit: keep (and decode) only that many, with class counts as equal as can be.
        progress: called as the decoding goes on.

    Raises: DataError for a file that is not as the module describes, labels outside 0 .. K-1, an image
        that cannot be decoded or has another size than the first; it names the file and the row.
    """
    contents = [_read_contents(file) for file in files]
    labels_N = torch.cat([c.labels_N for c in contents])
    if len(labels_N) == 0:
        raise DataError(f"{', '.join(map(str, files))}: there is no image in it")
    class_names = _agreed_class_names(contents)
    _check_labels(contents, len(class_names))
    rows = torch.arange(len(labels_N))
    if limit is not None:
        rows = balanced_rows(labels_N, limit, LIMIT_STREAM)
    canvas = _decode_rows(contents, rows, progress)
    return LabelledImages(
        images_NCHW=torch.from_numpy(canvas.images_NCHW), labels_N=labels_N[rows], class_names=class_names
    )


def _read_contents(file: Path) -> _Contents:
    """The labels of a file and what its schema says. Raises: DataError for missing or wrong columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _errors_named(file), pq.ParquetFile(file) as parquet:
        schema = parquet.schema_arrow
        image_column = next((name for name in _IMAGE_COLUMNS if name in schema.names), None)
        if image_column is None or "label" not in schema.names:
            raise DataError(
                f"{file} has the columns {', '.join(schema.names)}; needed are `image` (or `img`) and `label`"
            )
        image_type = schema.field(image_column).type
        if not pa.types.is_struct(image_type) or image_type.get_field_index("bytes") < 0:
            raise DataError(
                f"{file}: column `{image_column}` is {image_type}; it must be struct<bytes: binary, path: string>"
            )
        label_type = schema.field("label").type
        if not pa.types.is_integer(label_type):
            raise DataError(f"{file}: column `label` is {label_type}; it must be int64")
        label = parquet.read(columns=["label"]).column("label")
        if label.null_count > 0:
            raise DataError(f"{file}: {label.null_count} of its rows have no label; remove them")
        labels_N = torch.from_numpy(label.cast(pa.int64()).to_numpy().copy())
        return _Contents(
            file=file, image_column=image_column, labels_N=labels_N, class_names=_named_classes(file, schema)
        )


def _named_classes(file: Path, schema: Any) -> tuple[str, ...] | None:
    """The class names in the schema's metadata, None where there are none."""
    metadata: dict[bytes, bytes] = schema.metadata or {}
    if b"class_names" in metadata:
        return tuple(metadata[b"class_names"].decode().split(","))
    if b"huggingface" not in metadata:
        return None
    try:
        label = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]
        # A label may be declared as a plain integer: then it has no names.
        return tuple(str(name) for name in label["names"]) if "names" in label else None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: its `huggingface` metadata do not describe the column `label`") from error


def _agreed_class_names(contents: list[_Contents]) -> tuple[str, ...]:
    """The names that the files agree on; the numbers up to the largest label where they name none."""
    first = contents[0]
    for other in contents[1:]:
        if other.class_names != first.class_names:
            raise DataError(
                f"{first.file} and {other.file} name different classes: {first.class_names}, {other.class_names}"
            )
    if first.class_names is not None:
        return first.class_names
    largest = max(int(c.labels_N.max()) for c in contents if len(c.labels_N) > 0)
    return tuple(str(k) for k in range(largest + 1))


def _check_labels(contents: list[_Contents], num_classes: int) -> None:
    """Raises: DataError for the first label outside 0 .. K-1."""
    for c in contents:
        wrong = torch.nonzero((c.labels_N < 0) | (c.labels_N >= num_classes)).flatten()
        if len(wrong) > 0:
            row = int(wrong[0])
            raise DataError(
                f"{c.file}, row {row}: the label is {int(c.labels_N[row])}; with {num_classes} classes it must "
                f"lie in 0 .. {num_classes - 1}"
            )


def _decode_rows(contents: list[_Contents], rows: Tensor, progress: Progress | None) -> _Canvas:
    """Decode the images at these rows (counted through all files, ascending), a batch of rows at a time."""
    canvas = _Canvas(num_images=len(rows))
    first_row = 0
    with ThreadPoolExecutor() as pool:
        for c in contents:
            in_file = rows[(rows >= first_row) & (rows < first_row + len(c.labels_N))] - first_row
            first_row += len(c.labels_N)
            for encoded in _encoded_batches(c, in_file.numpy()):
                parts = [encoded[i : i + _PART_IMAGES] for i in range(0, len(encoded), _PART_IMAGES)]
                for part, decoded in zip(parts, pool.map(_decode_part, parts), strict=True):
                    for (place, _), pixels_CHW in zip(part, decoded, strict=True):
                        canvas.add(pixels_CHW, place)
                if progress is not None and encoded:
                    progress(canvas.filled, canvas.num_images)
    return canvas


def _encoded_batches(c: _Contents, rows: NDArray[np.int64]) -> Iterator[list[tuple[str, bytes | None]]]:
    """(where it is, encoded image) of the file's wanted rows, batch by batch."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _errors_named(c.file), pq.ParquetFile(c.file) as parquet:
        first_row = 0
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=[f"{c.image_column}.bytes"]):
            start, stop = np.searchsorted(rows, (first_row, first_row + len(batch)))
            column = batch.column(0).field("bytes").take(pa.array(rows[start:stop] - first_row))
            places = (f"{c.file}, row {row}" for row in rows[start:stop])
            yield list(zip(places, column.to_pylist(), strict=True))
            first_row += len(batch)


def _decode_part(part: list[tuple[str, bytes | None]]) -> list[NDArray[np.uint8]]:
    return [_decode(encoded, place) for place, encoded in part]


def _decode(encoded: bytes | None, place: str) -> NDArray[np.uint8]:
    """uint8 [C, H, W]: one channel for a greyscale image, else RGB without alpha."""
    from PIL import Image

    if not encoded:
        raise DataError(f"{place}: there is no image in it (`bytes` is empty); files beside it are not read")
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.mode in ("I", "F") or image.mode.startswith("I;"):
                raise DataError(
                    f"{place}: the image has mode {image.mode}; only 8 bits a channel can be read"
                )
            grey = image.mode in ("1", "L", "LA")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{place}: the image cannot be decoded: {error}") from error
    return pixels[None] if grey else pixels.transpose(2, 0, 1)
