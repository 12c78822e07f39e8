"""Which arrays of a file are the images and their labels, and what their axes mean: settled, or asked for.

What could be meant in two ways that give other numbers is an error that names the option which settles it.

Legend: N images, K classes of the source, C channels, H height, W width.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_distill.data.labelled_images import DataError
from ray_distill.exchange_words import Layout
from ray_distill.foreign_files import Contents, read_contents

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


class Chosen(NamedTuple):
    """A file's images, what it says of their labels (None: nothing), and where each was found."""

    images: NDArray[Any]
    images_name: str
    labels: NDArray[Any] | tuple[str, ...] | None
    labels_name: str
    classes: NDArray[Any] | None
    """The class that each image was made for, where the file says so beside its labels."""


def choose(contents: Contents, images: str | None = None, labels: str | None = None) -> Chosen:
    """The images and the labels of a file.

    Args:
        images: the name of the images, where there are several arrays.
        labels: that of the labels, or a file that holds them alone, or NO_LABELS.

    Raises: DataError for a name that there is not, or names of which more than one may be meant.
    """
    name = _images_name(contents, images)
    found, labels_name = _labels(contents, name, labels)
    classes = contents.arrays.get(CLASSES) if labels_name not in (CLASSES, NO_LABELS) else None
    return Chosen(contents.arrays[name], name, found, labels_name, classes)


def listed(contents: Contents) -> str:
    """The arrays with their types and shapes, for people."""
    shown = [f"{name} ({a.dtype} {list(a.shape)})" for name, a in list(contents.arrays.items())[:_SHOWN]]
    more = f" and {len(contents.arrays) - _SHOWN} more" if len(contents.arrays) > _SHOWN else ""
    return (", ".join(shown) or "no arrays of numbers") + more


def _images_name(contents: Contents, wanted: str | None) -> str:
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
    contents: Contents, images: str, wanted: str | None
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


def _labels_in_a_file(contents: Contents, wanted: str) -> tuple[NDArray[Any], str]:
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


class Labels(NamedTuple):
    """Target probabilities of each image, the class that it was made for, and what was taken for what."""

    rows_NK: NDArray[np.float32]
    classes_N: NDArray[np.int64]
    said: str


def label_rows(chosen: Chosen, class_names: Sequence[str], where: str) -> Labels:
    """What a file says of its labels, as rows of target probabilities.

    Class numbers, class names, one row of K targets for each image, or nothing: then the images must be as many of
    each class, one class after the other.

    Raises: DataError for labels of another shape, outside 0 .. K-1, or negative targets.
    """
    num_images, K = len(chosen.images), len(class_names)
    labels = chosen.labels
    if labels is None:
        if num_images % K != 0:
            raise DataError(
                f"{where} has no labels, and {num_images} images are not as many of each of {K} classes; "
                "give them with --labels KEY, or --labels FILE"
            )
        classes_N = np.arange(K).repeat(num_images // K)
        return Labels(_one_hot(classes_N, K), classes_N, "no labels: images taken to be sorted by class")
    if len(labels) != num_images:
        raise DataError(f"{where}: {num_images} images and {len(labels)} labels (`{chosen.labels_name}`)")
    if isinstance(labels, tuple):
        classes_N = np.array([class_of(name, class_names, where) for name in labels])
        return Labels(_one_hot(classes_N, K), classes_N, "labels by name")
    if labels.ndim == 1 or labels.shape[1:] == (1,):
        classes_N = _class_numbers(labels.reshape(-1), K, f"{where}, `{chosen.labels_name}`")
        return Labels(_one_hot(classes_N, K), classes_N, "labels by number")
    rows_NK = _targets(labels, K, f"{where}, `{chosen.labels_name}`")
    if chosen.classes is None:
        made_for_N = rows_NK.argmax(axis=1)
    elif len(chosen.classes) == num_images:
        made_for_N = _class_numbers(chosen.classes.reshape(-1), K, f"{where}, `{CLASSES}`")
    else:
        raise DataError(f"{where}: {num_images} images and {len(chosen.classes)} `{CLASSES}`")
    sums = rows_NK.sum(axis=1)
    kind = (
        "one-hot labels"
        if _is_one_hot(rows_NK)
        else f"label rows summing to {sums.min():.3g} .. {sums.max():.3g}"
    )
    return Labels(rows_NK, made_for_N, kind)


def _one_hot(classes_N: NDArray[np.int64], num_classes: int) -> NDArray[np.float32]:
    return np.eye(num_classes, dtype=np.float32)[classes_N]


def _is_one_hot(rows_NK: NDArray[np.float32]) -> bool:
    return bool(((rows_NK == 0) | (rows_NK == 1)).all() and (rows_NK.sum(axis=1) == 1).all())


def _class_numbers(labels_N: NDArray[Any], num_classes: int, where: str) -> NDArray[np.int64]:
    if labels_N.dtype.kind == "f" and not bool((labels_N == np.floor(labels_N)).all()):
        raise DataError(
            f"{where}: one number for each image that is not whole is no class; found {labels_N[0]:g}"
        )
    numbers_N = labels_N.astype(np.int64)
    wrong = ((numbers_N < 0) | (numbers_N >= num_classes)).nonzero()[0]
    if len(wrong) > 0:
        raise DataError(
            f"{where}, row {wrong[0]}: the label is {numbers_N[wrong[0]]}; with the source's {num_classes} classes it "
            f"must lie in 0 .. {num_classes - 1}"
        )
    return numbers_N


def _targets(labels: NDArray[Any], num_classes: int, where: str) -> NDArray[np.float32]:
    if labels.ndim != 2 or labels.shape[1] != num_classes:
        raise DataError(
            f"{where} has the shape {list(labels.shape)}; it must be [N], or [N, {num_classes}] with a target for each "
            "class of the source"
        )
    if not bool((labels >= 0).all()):
        raise DataError(
            f"{where}: label rows are targets of the cross entropy, at least 0; found {np.nanmin(labels):g}. Logits "
            "become targets by a softmax; rows centred for a regression by adding what was taken away"
        )
    return labels.astype(np.float32)


def class_of(name: str, class_names: Sequence[str], where: str) -> int:
    """The class that a folder or an image file is named after: by a class's name, or else by its number.

    After it may stand what is no letter and no digit, and then anything. The longest name that fits counts.
    Raises: DataError if none does.
    """
    fitting = [k for k, known in enumerate(class_names) if _begins_with(name, known)]
    if fitting:
        return max(fitting, key=lambda k: len(class_names[k]))
    number = re.match(r"\d+(?![^\W_])", name)
    if number is not None and int(number.group()) < len(class_names):
        return int(number.group())
    names = ", ".join(class_names[:_SHOWN]) + (", .." if len(class_names) > _SHOWN else "")
    raise DataError(
        f"{where}: {name!r} begins with no class of the source ({names}) and no number of one (0 .. {len(class_names) - 1})"
    )


def _begins_with(name: str, known: str) -> bool:
    rest = name[len(known) :]
    return name.lower().startswith(known.lower()) and not rest[:1].isalnum()
