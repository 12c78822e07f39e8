"""Parquet files as the hubs lay them out, made on the spot."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

WriteImages = Callable[..., Path]


def encode(pixels: NDArray[np.uint8], file_format: str = "PNG") -> bytes:
    """An image file: pixels [H, W] are greyscale, [H, W, 3] RGB."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, file_format)
    return file.getvalue()


@pytest.fixture
def write_images(tmp_path: Path) -> WriteImages:
    """write_images(name, encoded images, labels, metadata=..., column=..., row_group_size=...) -> path."""

    def write(
        name: str,
        encoded: list[bytes | None],
        labels: list[int | None],
        *,
        metadata: dict[str, str] | None = None,
        column: str = "image",
        row_group_size: int = 4,
    ) -> Path:
        images = pa.array(
            [{"bytes": b, "path": f"{i}.png"} for i, b in enumerate(encoded)],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
        table = pa.table({column: images, "label": pa.array(labels, pa.int64())})
        path = tmp_path / name
        pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=row_group_size)
        return path

    return write


@pytest.fixture
def plain_images() -> list[NDArray[np.uint8]]:
    """Ten RGB images of 3x5 whose every value is 10 * i + channel: the row can be read off the pixels."""
    return [np.full((3, 5, 3), 10 * i, np.uint8) + np.arange(3, dtype=np.uint8) for i in range(10)]
