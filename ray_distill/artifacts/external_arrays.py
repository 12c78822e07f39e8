"""Which arrays of a file are the images and their labels, and what the images' axes and values are.

What could be meant in two ways that give other numbers is an error that names the option which settles it. What the
labels say is told in `foreign_labels`.

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
"""The array, beside labels, of the class that each image was made for: learnt labels may favour another."""

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

_SHOWN = 12
_ROUNDING = 1e-3
"""That values may lie outside of pixels' bounds."""


class ArraySelection(NamedTuple):
    """A file's images, what it says of their labels (None: nothing), and where each was found."""

    images: NDArray[Any]
    images_name: str
    labels: NDArray[Any] | tuple[str, ...] | None
    labels_name: str
    classes: NDArray[Any] | None
    """The class that each image was made for, where the file says so beside its labels."""


def choose(
    contents: ExternalContents, images: str | None = None, labels: str | None = None
) -> ArraySelection:
    """The images and the labels of a file.

    Args:
        images: the name of the images, where there are several arrays.
        labels: that of the labels, or a file that holds them alone, or NO_LABELS.

    Raises: DataError for a name that there is not, or names of which more than one may be meant.
    """
    name = _images_name(contents, images)
    found, labels_name = _labels(contents, name, labels)
    classes = contents.arrays.get(CLASSES) if labels_name not in (CLASSES, NO_LABELS) else None
    return ArraySelection(contents.arrays[name], name, found, labels_name, classes)


def listed(contents: ExternalContents) -> str:
    """The arrays with their types and shapes, for people."""
    shown = [f"{name} ({a.dtype} {list(a.shape)})" for name, a in list(contents.arrays.items())[:_SHOWN]]
    more = f" and {len(contents.arrays) - _SHOWN} more" if len(contents.arrays) > _SHOWN else ""
    return (", ".join(shown) or "no arrays of numbers") + more


def _images_name(contents: ExternalContents, wanted: str | None) -> str:
    arrays = contents.arrays
    if wanted is not None:
        if wanted not in arrays:
            raise DataError(
                f"--images {wanted}: {contents.path} has no such array; it has {listed(contents)}"
            )
        return wanted
    if len(arrays) == 1:
        return next(iter(arrays))
    named = [name for name in arrays if _last(name) in IMAGE_NAMES]
    pairs = list(_pairs(arrays))
    candidates = named or pairs
    if len(candidates) == 1:
        return candidates[0]
    what = f"could be {' or '.join(candidates[:_SHOWN])}" if candidates else "are not named as such"
    raise DataError(
        f"{contents.path}: the images {what}; choose with --images KEY. It has {listed(contents)}"
    )


def _last(name: str) -> str:
    """The last part of a name with keys or folders before it."""
    return re.split(r"[./]", name)[-1].lower()


def _pairs(arrays: dict[str, NDArray[Any]]) -> dict[str, str]:
    """The first and the second of containers of just two arrays, where those can be images and labels."""
    firsts = [name for name in arrays if re.fullmatch(r"(.*\.|arr_)?0", name)]
    pairs = {name: f"{name[:-1]}1" for name in firsts if f"{name[:-1]}2" not in arrays}
    return {
        first: second
        for first, second in pairs.items()
        if second in arrays and arrays[first].ndim >= 2 and _may_be_labels(arrays[second], len(arrays[first]))
    }


def _may_be_labels(array: NDArray[Any], num_images: int) -> bool:
    return array.ndim in (1, 2) and len(array) == num_images


def _labels(
    contents: ExternalContents, images: str, wanted: str | None
) -> tuple[NDArray[Any] | tuple[str, ...] | None, str]:
    known: dict[str, NDArray[Any] | tuple[str, ...]] = {**contents.arrays, **contents.words}
    if wanted == NO_LABELS:
        return None, NO_LABELS
    if wanted is not None:
        if wanted in known:
            return known[wanted], wanted
        return _labels_in_a_file(contents, wanted)
    partner = _pairs(contents.arrays).get(images)
    others = {name: v for name, v in known.items() if name != images}
    named = [partner] if partner else [name for name in others if _last(name) in LABEL_NAMES]
    if not named and CLASSES in others:
        named = [CLASSES]
    if len(named) == 1:
        return known[named[0]], named[0]
    num_images = len(contents.arrays[images])
    unclear = named or [
        name for name, v in contents.arrays.items() if name != images and _may_be_labels(v, num_images)
    ]
    if unclear:
        raise DataError(
            f"{contents.path}: the labels could be {' or '.join(unclear[:_SHOWN])}; choose with --labels KEY, or "
            f"--labels {NO_LABELS} if it has none. It has {listed(contents)}"
        )
    return None, NO_LABELS


def _labels_in_a_file(contents: ExternalContents, wanted: str) -> tuple[NDArray[Any], str]:
    path = type(contents.path)(wanted)
    if not path.exists():
        raise DataError(
            f"--labels {wanted}: neither an array of {contents.path} nor a file; it has {listed(contents)}"
        )
    other = read_contents(path)
    if len(other.arrays) != 1:
        raise DataError(f"--labels {wanted}: must hold one array; it has {listed(other)}")
    return next(iter(other.arrays.values())), path.name


def as_NCHW(
    images: NDArray[Any], image_shape: tuple[int, int, int], layout: Layout | None
) -> tuple[NDArray[Any], str]:
    """Images with their axes in order, and what was taken for what; the values stay as they are.

    Args:
        images: [N, C, H, W], [N, H, W, C], [N, H, W] where C is 1, or [N, C * H * W] in either order.
        image_shape: (C, H, W) of the source.
        layout: which of the orders, where the shape alone does not say.

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
            f"images of shape {list(images.shape)} could be in either order; {source}; say which with --layout "
            f"{' or --layout '.join(orders)}"
        )
    shaped = images.reshape(len(images), *orders[order])
    said = f"{images.dtype} {list(images.shape)}" + ("" if channels == 1 else f" {order}")
    return (shaped if order == "channels-first" else shaped.transpose(0, 3, 1, 2)), said


def check_values(images: NDArray[Any], where: str) -> None:
    """Raises: DataError for no images, or values that are not finite."""
    if images.size == 0 or not bool(np.isfinite(images).all()):
        raise DataError(f"{where}: its images are empty, or hold values that are not finite")


def unit_pixels(images: NDArray[Any], where: str) -> tuple[NDArray[np.float32], str]:
    """Pixels in [0, 1], and what they were.

    Floats are in [0, 1] or in [0, 255]. Those of which the largest lies between, up to 16, could be either.
    Raises: DataError for values outside.
    """
    low, high = float(images.min()), float(images.max())
    found = f"{where}: values of its images lie in {low:.4g} .. {high:.4g}"
    if low < -_ROUNDING or high > 255 + _ROUNDING:
        raise DataError(
            f"{found}; pixels lie in 0 .. 1 or in 0 .. 255. If they are whitened or normalised already, use "
            "--space whitened; if they ran over the edges, clamp them first"
        )
    whole = images.dtype.kind in "iub"
    if high <= 1 + _ROUNDING and not whole:
        return np.ascontiguousarray(images, dtype=np.float32), f"pixels 0 .. 1, found {low:.3g} .. {high:.3g}"
    if high <= 16 and not whole:
        raise DataError(
            f"{found}: too large for pixels of 0 .. 1, too small for 0 .. 255; scale or clamp them to one of the two"
        )
    if high <= 1:
        raise DataError(
            f"{found}, as {images.dtype}: whole numbers are pixels of 0 .. 255; save 0 .. 1 as floats"
        )
    scaled = np.ascontiguousarray(images, dtype=np.float32) / np.float32(255)
    return scaled, f"pixels 0 .. 255, found {low:.3g} .. {high:.3g}"


def preprocessed_values(images: NDArray[Any], where: str) -> tuple[NDArray[np.float32], str]:
    """Whitened or normalised images as they are, in float32. Raises: DataError if they have not both signs."""
    low, high = float(images.min()), float(images.max())
    if low >= 0.0:
        raise DataError(
            f"{where}: no value of its images is below 0 (they lie in {low:.4g} .. {high:.4g}): whitened or normalised "
            "images have both signs. If these are pixels, use --space pixels"
        )
    return np.ascontiguousarray(images, dtype=np.float32), "already preprocessed"
