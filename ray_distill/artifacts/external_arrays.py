"""Selects the images and labels among a file's arrays, and determines the images' axes and values.

Anything ambiguous is an error that names the option which settles it. `external_labels` reads the labels.

Legend: N images, C channels, H height, W width.
"""

import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_distill.artifacts.external_files import ExternalContents, read_contents
from ray_distill.artifacts.types import Layout
from ray_distill.data.labelled_images import DataError

NO_LABELS = "none"
"""In place of a key: the file has no labels."""
CLASSES = "classes"
"""The array with the class that each image was made for: learnt labels may favour another."""

IMAGE_NAMES = (
    *("images", "image", "imgs", "x", "x_train", "train_images", "images_train", "data", "pixels"),
    *(
        "distilled_images",
        "images_distilled",
        "syn_images",
        "images_syn",
        "image_syn",
        "x_distilled",
        "x_syn",
    ),
)
LABEL_NAMES = (
    *("labels", "label", "y", "y_train", "train_labels", "labels_train", "targets", "target"),
    *(
        "distilled_labels",
        "labels_distilled",
        "syn_labels",
        "labels_syn",
        "label_syn",
        "y_distilled",
        "y_syn",
    ),
)

MAX_LISTED = 12
_ROUNDING = 1e-3
"""How far values may lie outside the range of pixels."""


class ArraySelection(NamedTuple):
    """A file's images and labels (None if it has none), with their keys."""

    images: NDArray[Any]
    images_name: str
    labels: NDArray[Any] | tuple[str, ...] | None
    labels_name: str
    classes: NDArray[Any] | None
    """The class that each image was made for, where the file has it beside its labels."""


def select_arrays(
    contents: ExternalContents, images: str | None = None, labels: str | None = None
) -> ArraySelection:
    """The images and the labels of a file.

    Args:
        images: the key of the images, where there are several arrays.
        labels: the key of the labels, or a file that contains nothing else, or NO_LABELS.

    Raises: DataError for a key that does not exist, or if several arrays fit.
    """
    images_name = _images_name(contents, images)
    labels_array, labels_name = _labels(contents, images_name, labels)
    classes = contents.arrays.get(CLASSES) if labels_name not in (CLASSES, NO_LABELS) else None
    return ArraySelection(contents.arrays[images_name], images_name, labels_array, labels_name, classes)


def describe_arrays(contents: ExternalContents) -> str:
    """The arrays with their dtypes and shapes, for messages."""
    shown = [f"{name} ({a.dtype} {list(a.shape)})" for name, a in list(contents.arrays.items())[:MAX_LISTED]]
    more = f" and {len(contents.arrays) - MAX_LISTED} more" if len(contents.arrays) > MAX_LISTED else ""
    return (", ".join(shown) or "no arrays of numbers") + more


def _images_name(contents: ExternalContents, wanted: str | None) -> str:
    arrays = contents.arrays
    if wanted is not None:
        if wanted not in arrays:
            raise DataError(
                f"--images {wanted}: {contents.path} has no such array; it has {describe_arrays(contents)}"
            )
        return wanted
    if len(arrays) == 1:
        return next(iter(arrays))
    named = [name for name in arrays if _leaf_name(name) in IMAGE_NAMES]
    pairs = list(_pairs(arrays))
    candidates = named or pairs
    if len(candidates) == 1:
        return candidates[0]
    what = f"could be {' or '.join(candidates[:MAX_LISTED])}" if candidates else "have no usual name"
    raise DataError(
        f"{contents.path}: the images {what}; choose with --images KEY. It has {describe_arrays(contents)}"
    )


def _leaf_name(name: str) -> str:
    """The last part of a nested key or path."""
    return re.split(r"[./]", name)[-1].lower()


def _pairs(arrays: dict[str, NDArray[Any]]) -> dict[str, str]:
    """First and second key of each container of just two arrays that can be images and labels."""
    firsts = [name for name in arrays if re.fullmatch(r"(.*\.|arr_)?0", name)]
    pairs = {name: f"{name[:-1]}1" for name in firsts if f"{name[:-1]}2" not in arrays}
    return {
        first: second
        for first, second in pairs.items()
        if second in arrays
        and arrays[first].ndim >= 2
        and _could_be_labels(arrays[second], len(arrays[first]))
    }


def _could_be_labels(array: NDArray[Any], num_images: int) -> bool:
    return array.ndim in (1, 2) and len(array) == num_images


def _labels(
    contents: ExternalContents, images: str, wanted: str | None
) -> tuple[NDArray[Any] | tuple[str, ...] | None, str]:
    values: dict[str, NDArray[Any] | tuple[str, ...]] = {**contents.arrays, **contents.strings}
    if wanted == NO_LABELS:
        return None, NO_LABELS
    if wanted is not None:
        if wanted in values:
            return values[wanted], wanted
        return _labels_file(contents, wanted)
    partner = _pairs(contents.arrays).get(images)
    others = {name: v for name, v in values.items() if name != images}
    named = [partner] if partner else [name for name in others if _leaf_name(name) in LABEL_NAMES]
    if not named and CLASSES in others:
        named = [CLASSES]
    if len(named) == 1:
        return values[named[0]], named[0]
    num_images = len(contents.arrays[images])
    candidates = named or [
        name for name, v in contents.arrays.items() if name != images and _could_be_labels(v, num_images)
    ]
    if candidates:
        raise DataError(
            f"{contents.path}: the labels could be {' or '.join(candidates[:MAX_LISTED])}; choose with --labels KEY, or "
            f"--labels {NO_LABELS} if it has none. It has {describe_arrays(contents)}"
        )
    return None, NO_LABELS


def _labels_file(contents: ExternalContents, wanted: str) -> tuple[NDArray[Any], str]:
    path = type(contents.path)(wanted)
    if not path.exists():
        raise DataError(
            f"--labels {wanted}: neither an array of {contents.path} nor a file; it has {describe_arrays(contents)}"
        )
    other = read_contents(path)
    if len(other.arrays) != 1:
        raise DataError(
            f"--labels {wanted}: the file must contain one array; it has {describe_arrays(other)}"
        )
    return next(iter(other.arrays.values())), path.name


def as_NCHW(
    images: NDArray[Any], image_shape: tuple[int, int, int], layout: Layout | None
) -> tuple[NDArray[Any], str]:
    """Images with their axes in order, and how they were read; the values do not change.

    Args:
        images: [N, C, H, W], [N, H, W, C], [N, H, W] where C is 1, or [N, C * H * W] in either order.
        image_shape: (C, H, W) of the source.
        layout: which of the orders, where the shape is ambiguous.

    Raises: DataError for another shape, or one that fits both orders.
    """
    channels, height, width = image_shape
    inside = images.shape[1:]
    source = f"the source's images are {channels}x{height}x{width} (channels, height, width)"
    orders: dict[Layout, tuple[int, ...]] = {
        "channels-first": (channels, height, width),
        "channels-last": (height, width, channels),
    }
    if inside == (channels * height * width,) or (channels == 1 and inside == (height, width)):
        fitting = list(orders)
    else:
        fitting = [name for name, shape in orders.items() if inside == shape]
    if not fitting:
        raise DataError(
            f"images of shape {list(images.shape)}: {source}; allowed are [N, {channels}, {height}, {width}], "
            f"[N, {height}, {width}, {channels}] and [N, {channels * height * width}]"
        )
    if layout is not None and layout not in fitting:
        raise DataError(f"--layout {layout}: images of shape {list(images.shape)} are {fitting[0]}; {source}")
    # With one channel both orders are the same numbers in the same places.
    order = layout or (fitting[0] if len(fitting) == 1 or channels == 1 else None)
    if order is None:
        raise DataError(
            f"images of shape {list(images.shape)} could be in either order; {source}; choose with --layout "
            f"{' or --layout '.join(orders)}"
        )
    shaped = images.reshape(len(images), *orders[order])
    read_as = f"{images.dtype} {list(images.shape)}" + ("" if channels == 1 else f" {order}")
    return (shaped if order == "channels-first" else shaped.transpose(0, 3, 1, 2)), read_as


def check_values(images: NDArray[Any], where: str) -> None:
    """Raises: DataError for no images, or values that are not finite."""
    if images.size == 0 or not bool(np.isfinite(images).all()):
        raise DataError(f"{where}: its images are empty, or have values that are not finite")


def unit_pixels(images: NDArray[Any], where: str) -> tuple[NDArray[np.float32], str]:
    """Pixels in [0, 1], and how they were read.

    Floats are in [0, 1] or in [0, 255]; with a maximum between 1 and 16 they could be either.
    Raises: DataError for values outside.
    """
    low, high = float(images.min()), float(images.max())
    values = f"{where}: its images have values in {low:.4g} .. {high:.4g}"
    if low < -_ROUNDING or high > 255 + _ROUNDING:
        raise DataError(
            f"{values}; pixels lie in 0 .. 1 or in 0 .. 255. If they are already whitened or normalised, use "
            "--space whitened; otherwise clamp them first"
        )
    integers = images.dtype.kind in "iub"
    if high <= 1 + _ROUNDING and not integers:
        return np.ascontiguousarray(images, dtype=np.float32), f"pixels 0 .. 1, got {low:.3g} .. {high:.3g}"
    if high <= 16 and not integers:
        raise DataError(
            f"{values}: too large for pixels in 0 .. 1, too small for 0 .. 255; scale or clamp them to one of the two"
        )
    if high <= 1:
        raise DataError(
            f"{values}, as {images.dtype}: integers are read as pixels in 0 .. 255; save pixels in 0 .. 1 as floats"
        )
    scaled = np.ascontiguousarray(images, dtype=np.float32) / np.float32(255)
    return scaled, f"pixels 0 .. 255, got {low:.3g} .. {high:.3g}"


def preprocessed_values(images: NDArray[Any], where: str) -> tuple[NDArray[np.float32], str]:
    """Whitened or normalised images in float32. Raises: DataError if no value is negative."""
    low, high = float(images.min()), float(images.max())
    if low >= 0.0:
        raise DataError(
            f"{where}: no value of its images is negative (they lie in {low:.4g} .. {high:.4g}), but whitened or "
            "normalised images have both signs. If these are pixels, use --space pixels"
        )
    return np.ascontiguousarray(images, dtype=np.float32), "already preprocessed"
