"""Reads the labels of another method's file as rows of target probabilities, sorted by class.

Legend: N images, K classes of the source.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_distill.artifacts.external_arrays import CLASSES, MAX_LISTED, ArraySelection
from ray_distill.data.labelled_images import DataError


class Labels(NamedTuple):
    """Target probabilities of each image, the class that it was made for, and how they were read."""

    rows_NK: NDArray[np.float32]
    classes_N: NDArray[np.int64]
    read_as: str


def read_labels(arrays: ArraySelection, class_names: Sequence[str], where: str) -> Labels:
    """A file's labels as rows of target probabilities.

    Class indices, class names, one row of K targets for each image, or nothing: then the images must be sorted by class,
    with the same number of each.

    Raises: DataError for labels of another shape, outside 0 .. K-1, or negative targets.
    """
    num_images, K = len(arrays.images), len(class_names)
    labels = arrays.labels
    if labels is None:
        if num_images % K != 0:
            raise DataError(
                f"{where} has no labels, and its {num_images} images cannot be split evenly into {K} classes; pass "
                "--labels KEY or --labels FILE"
            )
        classes_N = np.arange(K).repeat(num_images // K)
        return Labels(_one_hot(classes_N, K), classes_N, "no labels: images assumed to be sorted by class")
    if len(labels) != num_images:
        raise DataError(f"{where}: {num_images} images and {len(labels)} labels (`{arrays.labels_name}`)")
    if isinstance(labels, tuple):
        classes_N = np.array([match_class(name, class_names, where) for name in labels])
        return Labels(_one_hot(classes_N, K), classes_N, "labels by name")
    if labels.ndim == 1 or labels.shape[1:] == (1,):
        classes_N = _class_indices(labels.reshape(-1), K, f"{where}, `{arrays.labels_name}`")
        return Labels(_one_hot(classes_N, K), classes_N, "labels by number")
    rows_NK = _targets(labels, K, f"{where}, `{arrays.labels_name}`")
    if arrays.classes is None:
        classes_N = rows_NK.argmax(axis=1)
    elif len(arrays.classes) == num_images:
        classes_N = _class_indices(arrays.classes.reshape(-1), K, f"{where}, `{CLASSES}`")
    else:
        raise DataError(f"{where}: {num_images} images and {len(arrays.classes)} `{CLASSES}`")
    sums = rows_NK.sum(axis=1)
    kind = (
        "one-hot labels"
        if _is_one_hot(rows_NK)
        else f"label rows summing to {sums.min():.3g} .. {sums.max():.3g}"
    )
    return Labels(rows_NK, classes_N, kind)


def _one_hot(classes_N: NDArray[np.int64], num_classes: int) -> NDArray[np.float32]:
    return np.eye(num_classes, dtype=np.float32)[classes_N]


def _is_one_hot(rows_NK: NDArray[np.float32]) -> bool:
    return bool(((rows_NK == 0) | (rows_NK == 1)).all() and (rows_NK.sum(axis=1) == 1).all())


def _class_indices(labels_N: NDArray[Any], num_classes: int, where: str) -> NDArray[np.int64]:
    if labels_N.dtype.kind == "f" and not bool((labels_N == np.floor(labels_N)).all()):
        raise DataError(f"{where}: class labels must be integers; got {labels_N[0]:g} in the first row")
    indices_N = labels_N.astype(np.int64)
    wrong = ((indices_N < 0) | (indices_N >= num_classes)).nonzero()[0]
    if len(wrong) > 0:
        raise DataError(
            f"{where}, row {wrong[0]}: the label must lie in 0 .. {num_classes - 1}, since the source has {num_classes} "
            f"classes; got {indices_N[wrong[0]]}"
        )
    return indices_N


def _targets(labels: NDArray[Any], num_classes: int, where: str) -> NDArray[np.float32]:
    if labels.ndim != 2 or labels.shape[1] != num_classes:
        raise DataError(
            f"{where}: the shape must be [N], or [N, {num_classes}] with a target for each class of the source; got "
            f"{list(labels.shape)}"
        )
    if not bool((labels >= 0).all()):
        raise DataError(
            f"{where}: label rows are cross-entropy targets and must not be negative; got {np.nanmin(labels):g}. Apply a "
            "softmax to logits; add the mean back to rows centred for a regression"
        )
    return labels.astype(np.float32)


def match_class(name: str, class_names: Sequence[str], where: str) -> int:
    """The class that a folder or an image file is named after: the name begins with the class's name, or its index.

    Whatever follows must not begin with a letter or a digit. The longest class name wins. Raises: DataError if none fits.
    """
    matches = [k for k, class_name in enumerate(class_names) if _begins_with(name, class_name)]
    if matches:
        return max(matches, key=lambda k: len(class_names[k]))
    index = re.match(r"\d+(?![^\W_])", name)
    if index is not None and int(index.group()) < len(class_names):
        return int(index.group())
    names = ", ".join(class_names[:MAX_LISTED]) + (", .." if len(class_names) > MAX_LISTED else "")
    raise DataError(
        f"{where}: {name!r} must begin with a class of the source ({names}) or its index (0 .. {len(class_names) - 1})"
    )


def _begins_with(name: str, class_name: str) -> bool:
    rest = name[len(class_name) :]
    return name.lower().startswith(class_name.lower()) and not rest[:1].isalnum()


def sort_by_class(labels: Labels, class_names: Sequence[str], where: str) -> tuple[NDArray[np.int64], str]:
    """The rows sorted by class, and a note if that changes their order. Raises: DataError for unequal counts."""
    counts = np.bincount(labels.classes_N, minlength=len(class_names))
    if len(set(counts.tolist())) > 1:
        shown = ", ".join(f"{name} {count}" for name, count in zip(class_names, counts, strict=True))
        hint = (
            "; an image's class is that of its largest target: for learnt labels add an array `classes` with the class "
            "that each image was made for"
            if "rows" in labels.read_as
            else ""
        )
        raise DataError(f"{where} must have the same number of images of each class; got {shown}{hint}")
    rows_N = labels.classes_N.argsort(kind="stable")
    return rows_N, "" if bool((rows_N == np.arange(len(rows_N))).all()) else ", sorted by class"
