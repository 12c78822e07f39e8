"""Images and labels in one Arrow IPC file, written image by image and opened by mapping it into memory.

| column | type |
|---|---|
| `image` | fixed_shape_tensor<uint8 or float, [C, H, W]> |
| `label` | int64 |

One record batch, uncompressed: the images are contiguous in the file, so a tensor over the mapped file is all of them.
Class names and the rest are JSON under the metadata key `ray_distill`. The number of images is only known at the end
(broken ones are skipped), so they are first written to a raw file next to the target, which is then copied behind
Arrow's header: temporarily twice the disk space, never twice the memory.
"""

import hashlib
import json
import math
import mmap
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_distill.data.labelled_images import DataError, LabelledImages

FORMAT = 1
_KEY = b"ray_distill"
_TORCH_DTYPES = {np.dtype(np.uint8): torch.uint8, np.dtype(np.float32): torch.float32}


class ArrowImageWriter:
    """Writes images to a file at `path`. Call `close` in any case: it removes the raw file."""

    def __init__(self, path: Path) -> None:
        self._path, self._raw_path = path, path.with_name(f"{path.name}.raw")
        self._raw = self._raw_path.open("wb")
        self._digest = hashlib.blake2b(digest_size=16)
        self._dtype: np.dtype[Any] = np.dtype(np.uint8)
        self.image_shape: tuple[int, ...] = ()
        """(C, H, W) of the images so far; empty before the first."""
        self.num_images = 0

    def add(self, images_NCHW: NDArray[Any]) -> None:
        """Append images; all must have one shape and dtype."""
        self.image_shape, self._dtype = images_NCHW.shape[1:], images_NCHW.dtype
        content = np.ascontiguousarray(images_NCHW).data
        self._raw.write(content)
        self._digest.update(content)
        self.num_images += len(images_NCHW)

    def finish(self, labels_N: Tensor, metadata: dict[str, Any]) -> None:
        """Write the Arrow file.

        Args:
            labels_N: the class of each image.
            metadata: `class_names` and `white` as in LabelledImages, and `broken` if there are any.
        """
        import pyarrow as pa

        assert len(labels_N) == self.num_images > 0
        self._raw.flush()
        labels = labels_N.numpy()
        self._digest.update(labels.tobytes())
        described = [metadata["class_names"], metadata["white"], self.image_shape, str(self._dtype)]
        self._digest.update(json.dumps(described).encode())
        raw = np.memmap(self._raw_path, dtype=self._dtype, mode="r")
        tensor = pa.fixed_shape_tensor(pa.from_numpy_dtype(self._dtype), self.image_shape)
        values = pa.Array.from_buffers(tensor.value_type, len(raw), [None, pa.py_buffer(raw)])
        stored = pa.FixedSizeListArray.from_arrays(values, len(raw) // self.num_images)
        header = metadata | {"format": FORMAT, "digest": self._digest.hexdigest()}
        schema = pa.schema([("image", tensor), ("label", pa.int64())], {_KEY: json.dumps(header).encode()})
        batch = pa.record_batch(
            [pa.ExtensionArray.from_storage(tensor, stored), pa.array(labels)], schema=schema
        )
        with self._path.open("wb") as file:
            # ImageNet at 64x64 has more values than a 32-bit count holds.
            options = pa.ipc.IpcWriteOptions(allow_64bit=True)
            with pa.ipc.new_file(file, schema, options=options) as writer:
                writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Remove the raw file."""
        self._raw.close()
        self._raw_path.unlink(missing_ok=True)


def open_images(path: Path) -> LabelledImages:
    """The images of a file by `ArrowImageWriter`, mapped into memory. Raises: DataError for any other file."""
    import pyarrow as pa

    try:
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with pa.ipc.open_file(pa.py_buffer(mapping)) as reader:
            header = json.loads(reader.schema.metadata[_KEY])
            if header["format"] != FORMAT:
                raise ValueError(f"format {header['format']}")
            (batch,) = (reader.get_batch(i) for i in range(reader.num_record_batches))
        batch.validate()
        tensor, stored, labels = (
            batch.schema.field("image").type,
            batch.column("image").storage,
            batch.column("label"),
        )
        dtype = np.dtype(tensor.value_type.to_pandas_dtype())
        shape = (len(stored), *tensor.shape)
        if (
            dtype not in _TORCH_DTYPES
            or len(tensor.shape) != 3
            or min(shape) < 1
            or stored.offset
            or stored.null_count
        ):
            raise ValueError(f"{dtype} images of shape {shape}")
        if labels.type != pa.int64() or labels.offset or labels.null_count:
            raise ValueError(f"labels of type {labels.type}")
        images = np.frombuffer(stored.values.buffers()[1], dtype=dtype, count=math.prod(shape))
        labels_N = np.frombuffer(labels.buffers()[1], dtype=np.int64, count=len(stored))
        _check_header(header, labels_N)
        return LabelledImages(
            images_NCHW=_read_only_tensor(images).view(shape),
            labels_N=torch.from_numpy(labels_N.copy()),
            class_names=tuple(header["class_names"]),
            white=header["white"],
            digest=header["digest"],
            path=path,
            mapping=mapping,
            broken=tuple(header.get("broken", ())),
        )
    # Arrow and NumPy raise many kinds of errors for damaged files.
    except Exception as e:
        raise DataError(
            f"{path} is not a valid file of prepared images ({e}); remove it, and it is rebuilt"
        ) from e


def _check_header(header: dict[str, Any], labels_N: NDArray[np.int64]) -> None:
    """Raises: ValueError for values that `ArrowImageWriter` never writes; KeyError for missing ones."""
    texts = [header["digest"], *header["class_names"], *header.get("broken", ())]
    if not all(type(text) is str for text in texts) or not isinstance(header["class_names"], list):
        raise ValueError("names are not strings")
    if type(header["white"]) is not int or not 1 <= header["white"] <= 255:
        raise ValueError(f"white is {header['white']}")
    if labels_N.min() < 0 or labels_N.max() >= len(header["class_names"]):
        raise ValueError("labels without a class name")


def _read_only_tensor(array: NDArray[Any]) -> Tensor:
    """A tensor over read-only memory; nothing writes to real images."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
