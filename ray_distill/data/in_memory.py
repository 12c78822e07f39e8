"""Data given in Python, as arrays or a torch Dataset, stored where the workers of a run can open them.

They become an `npz:` source whose name is the digest of its content: the same data are the same source, in a later
process and on `resume` too.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_distill.data.labelled_images import DataError
from ray_distill.utils.atomic import atomic_write

CHANNELS = (1, 3, 4)
"""How many channels an axis has that is taken for that of the channels."""
MAX_ROUNDING = 0.02
"""By how much floats in [0, 1], times 255, may differ from whole pixel values: more is not 8-bit data."""


def store_in_memory(train: Any, test: Any, folder: Path) -> str:
    """Write training and test data into `folder`, unless they are there already.

    Args:
        train: a torch Dataset of (image, label), or a pair (images, labels). Images are uint8, or floats in [0, 1]:
            NumPy arrays [N, H, W] or [N, H, W, C], tensors [N, H, W] or [N, C, H, W], or PIL images. Labels are
            integers 0 .. K-1 or strings. Class names are those of the dataset's `classes`, if it has any.
        test: the test split, likewise; None if there is none, in which case nothing can be evaluated on it.

    Returns: the value for `data.source`. Raises: DataError for data of any other form.
    """
    images, labels, classes = _arrays(train, "train")
    arrays: dict[str, NDArray[Any]] = {"x_train": images}
    splits = {"y_train": labels}
    if test is not None:
        arrays["x_test"], splits["y_test"], _ = _arrays(test, "test")
        if arrays["x_test"].shape[1:] != images.shape[1:]:
            raise DataError(
                f"test images are {_shape(arrays['x_test'])}, training images {_shape(images)}; they must be alike"
            )
    if labels.dtype.kind == "U":
        classes = classes or sorted({str(name) for split in splits.values() for name in split})
        splits = {name: _numbers(split, classes) for name, split in splits.items()}
    if classes is not None:
        arrays["class_names"] = np.array(classes, dtype=np.str_)
    arrays |= splits
    file = folder / f"{_digest(arrays)}.npz"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **arrays)
        with atomic_write(file) as out:
            out.write(content.getbuffer())
    return f"npz:{file.absolute()}"


def _digest(arrays: dict[str, NDArray[Any]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _arrays(data: Any, split: str) -> tuple[NDArray[np.uint8], NDArray[Any], list[str] | None]:
    """Images uint8 [N, H, W, C], labels [N], and the names of the classes, if the data have them."""
    if isinstance(data, tuple | list) and len(data) == 2:
        images, labels = data
        names = None
    elif hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        if len(data) == 0:
            raise DataError(f"the {split} dataset is empty")
        images, labels = zip(*(_item(data, i, split) for i in range(len(data))), strict=True)
        classes = getattr(data, "classes", None)
        names = None if classes is None else [str(name) for name in classes]
    else:
        raise DataError(
            f"{split} data must be a pair (images, labels) or a dataset of such pairs, got {type(data).__name__}"
        )
    pixels, targets = _images(images, split), _labels(labels, split)
    if len(pixels) != len(targets):
        raise DataError(f"{split}: {len(pixels)} images, but {len(targets)} labels")
    return pixels, targets, names


def _item(data: Any, index: int, split: str) -> tuple[Any, Any]:
    item = data[index]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(
            f"item {index} of the {split} dataset must be (image, label), got {type(item).__name__}"
        )
    return item[0], item[1]


def _images(images: Any, split: str) -> NDArray[np.uint8]:
    """uint8 [N, H, W, C], or [N, H, W]."""
    is_tensor = isinstance(images, torch.Tensor)
    if isinstance(images, Sequence):
        is_tensor = bool(images) and isinstance(images[0], torch.Tensor)
        sides = [np.asarray(image) for image in images]
        if len({side.shape for side in sides}) > 1:
            raise DataError(f"{split} images have different shapes; resize them to one")
        images = np.stack(sides) if sides else np.empty(0)
    array = images.detach().cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    if array.ndim not in (3, 4) or array.size == 0:
        raise DataError(
            f"{split} images must be [N, H, W] or have an axis of channels beside, got {_shape(array)}"
        )
    if array.ndim == 4:
        array = _channels_last(array, split, is_tensor=is_tensor)
    return _eight_bit(array, split)


def _channels_last(array: NDArray[Any], split: str, *, is_tensor: bool) -> NDArray[Any]:
    """[N, H, W, C]: tensors hold channels first, other arrays last. Raises: DataError for what looks like the opposite."""
    expected, other = (1, 3) if is_tensor else (3, 1)
    if array.shape[expected] not in CHANNELS and array.shape[other] in CHANNELS:
        order, fix = (
            ("[N, C, H, W]", "permute(0, 3, 1, 2)")
            if is_tensor
            else ("[N, H, W, C]", "transpose(0, 2, 3, 1)")
        )
        kind = "tensors" if is_tensor else "NumPy arrays"
        raise DataError(
            f"{split} images are {_shape(array)}; {kind} of images must be {order}: use images.{fix}"
        )
    return array.transpose(0, 2, 3, 1) if is_tensor else array


def _eight_bit(array: NDArray[Any], split: str) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{split} images are {array.dtype}; they must be uint8, or floats in [0, 1]")
    scaled = array * 255
    rounded = scaled.round()
    if not np.isfinite(scaled).all() or rounded.min() < 0 or rounded.max() > 255:
        raise DataError(
            f"{split} images are floats from {array.min():.3g} to {array.max():.3g}; they must be pixels in [0, 1]: "
            "leave out the normalisation, data.preprocessing does that"
        )
    if abs(scaled - rounded).max() > MAX_ROUNDING:
        raise DataError(
            f"{split} images are floats that are no multiples of 1/255, and would be rounded; round them yourself: "
            "(255 * images).round() as uint8"
        )
    return rounded.astype(np.uint8)


def _labels(labels: Any, split: str) -> NDArray[Any]:
    if isinstance(labels, torch.Tensor):
        labels = labels.detach().cpu().numpy()
    array = np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        raise DataError(f"{split} labels must be integers or strings [N], got {array.dtype} {_shape(array)}")
    return array if array.dtype.kind == "U" else array.astype(np.int64)


def _numbers(names: NDArray[Any], classes: Sequence[str]) -> NDArray[np.int64]:
    unknown = sorted({str(name) for name in names} - set(classes))
    if unknown:
        raise DataError(f"labels {', '.join(unknown[:8])} are none of the classes {', '.join(classes[:8])}")
    place = {name: k for k, name in enumerate(classes)}
    return np.array([place[str(name)] for name in names], dtype=np.int64)


def _shape(array: NDArray[Any]) -> str:
    return "x".join(map(str, array.shape))
