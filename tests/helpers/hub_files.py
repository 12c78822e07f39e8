"""Parquet files as the hubs lay them out, made on the spot."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image


def encode(pixels: NDArray[Any], file_format: str = "PNG") -> bytes:
    """An image file: pixels [H, W] are greyscale, [H, W, 3] RGB."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format)
    return file.getvalue()


def write_images(
    path: Path,
    encoded: Sequence[bytes | None],
    labels: Sequence[int | None],
    *,
    metadata: dict[str, str] | None = None,
    column: str = "image",
    row_group_size: int = 4,
) -> Path:
    """Write the rows (encoded image, label) to a file; returns its path."""
    images = pa.array(
        [{"bytes": b, "path": f"{i}.png"} for i, b in enumerate(encoded)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({column: images, "label": pa.array(labels, pa.int64())})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=row_group_size)
    return path


def plain_images() -> list[bytes]:
    """Ten RGB images of 3x5 whose every value is 10 * i + channel: the row can be read off the pixels."""
    channels = np.arange(3, dtype=np.uint8)
    return [encode(np.full((3, 5, 3), 10 * i, np.uint8) + channels) for i in range(10)]
