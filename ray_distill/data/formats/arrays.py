"""Images and labels as arrays in one file: NumPy's .npz, or a dict of tensors that torch.save wrote.

| | images, uint8 | labels, integers |
|---|---|---|
| npz | [N, H, W] or [N, H, W, C], as usual in NumPy | [N] or [N, 1] |
| torch | [N, H, W] or [N, C, H, W], as usual in torch | [N] or [N, 1] |

The file may also have `class_names`, an array of strings (npz) or a list of them (torch). Reading cannot run code: object
arrays, and anything but tensors, numbers, strings and containers of them, are refused. `sources` and `test_split` say which
keys are read.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_distill.data.labelled_images import DataError
from ray_distill.data.listing import Listing, array_listing
from ray_distill.data.paths import DataFile, existing_file, fs_path

Keys = Sequence[tuple[str, str]]
"""Pairs of keys (images, labels); the first pair in the file is used."""

MOST_CHANNELS = 64
"""A longer axis is taken for a side of the image, in an unexpected order."""


def read_arrays(kind: str, path: str, keys: Keys, class_names: Sequence[str] | None = None) -> Listing:
    """The images and labels of an `npz` or `torch` file under the first pair of keys that it has.

    Args:
        class_names: for a file without them. None: the numbers up to the largest label.

    Raises: DataError for a file without such keys, or with arrays of another shape or type.
    """
    file = existing_file(fs_path(path))
    arrays = _open(kind, file)
    pair = _pair(file, list(arrays), keys)
    images_NCHW = _images(arrays[pair[0]], f"{file}, `{pair[0]}`", channels_last=kind == "npz")
    labels_N = _labels(arrays[pair[1]], f"{file}, `{pair[1]}`")
    names = arrays.get("class_names")
    if names is None:
        names = range(int(labels_N.max(initial=0)) + 1) if class_names is None else class_names
    return array_listing(images_NCHW, labels_N, [str(name) for name in names], [file])


def check_arrays(kind: str, path: str, keys: Keys) -> None:
    """Raises: DataError for a file without any of the pairs of keys."""
    file = existing_file(fs_path(path))
    if kind != "npz":
        _pair(file, list(_open(kind, file)), keys)
        return
    with (
        _errors_named(kind, file),
        _seekable(file) as content,
        np.load(content, allow_pickle=False) as arrays,
    ):
        names = list(arrays.files)
    _pair(file, names, keys)


def _pair(file: DataFile, names: Sequence[str], keys: Keys) -> tuple[str, str]:
    """The first pair of keys in the file. Raises: DataError if there is none."""
    pair = next((pair for pair in keys if pair[0] in names and pair[1] in names), None)
    if pair is None:
        required = ", or ".join(f"`{images}` and `{labels}`" for images, labels in keys)
        raise DataError(f"{file} must have the arrays {required}; got {', '.join(names) or 'none'}")
    return pair


@contextmanager
def _errors_named(kind: str, file: DataFile) -> Iterator[None]:
    """Turns the many errors that damaged files raise into a DataError that names the file."""
    try:
        yield
    except Exception as e:
        what = "an .npz file of plain arrays" if kind == "npz" else "a file of tensors that torch.save wrote"
        reason = str(e).splitlines()[0] if str(e) else repr(e)
        # Both libraries suggest reading the file in a way that can run code from it.
        if "weights_only" in reason or "allow_pickle" in reason:
            reason = "it contains other objects, which could run code when read, or is another kind of file"
        raise DataError(f"{file} is not {what}: {reason}") from e


def _seekable(file: DataFile) -> Any:
    return file.place.filesystem.open_input_file(file.place.path)


def _open(kind: str, file: DataFile) -> Mapping[str, Any]:
    with _errors_named(kind, file):
        if kind == "npz":
            with _seekable(file) as content, np.load(content, allow_pickle=False) as arrays:
                return {key: arrays[key] for key in arrays.files}
        loaded = torch.load(io.BytesIO(file.read()), map_location="cpu", weights_only=True)
    if not isinstance(loaded, dict):
        raise DataError(f"{file} must hold a dict of tensors, got a {type(loaded).__name__}")
    return {str(key): v.numpy() if isinstance(v, torch.Tensor) else v for key, v in loaded.items()}


def _images(images: Any, where: str, *, channels_last: bool) -> NDArray[np.uint8]:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        got = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
        raise DataError(
            f"{where}: images must be uint8 from 0 to 255, got {got} (convert floats in [0, 1] by (255 * x).round())"
        )
    if images.ndim == 3:
        return images[:, None]
    order = "[N, H, W, C]" if channels_last else "[N, C, H, W]"
    if images.ndim != 4 or images.shape[3 if channels_last else 1] > MOST_CHANNELS:
        raise DataError(f"{where}: images must have shape [N, H, W] or {order}, got {list(images.shape)}")
    return images.transpose(0, 3, 1, 2) if channels_last else images


def _labels(labels: Any, where: str) -> NDArray[np.integer]:
    if not isinstance(labels, np.ndarray) or not np.issubdtype(labels.dtype, np.integer):
        got = labels.dtype if isinstance(labels, np.ndarray) else type(labels).__name__
        raise DataError(f"{where}: labels must be integers, got {got}")
    if labels.ndim == 2 and labels.shape[1] == 1:
        return labels[:, 0]
    if labels.ndim != 1:
        raise DataError(f"{where}: labels must have shape [N], got {list(labels.shape)}")
    return labels
