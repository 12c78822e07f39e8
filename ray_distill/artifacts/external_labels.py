"""What a file of another method says of its labels, as rows of target probabilities, sorted by class.

Legend: N images, K classes of the source.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ray_distill.artifacts.external_arrays import CLASSES, ArraySelection
from ray_distill.data.labelled_images import DataError

_SHOWN = 12


class Labels(NamedTuple):
    """Target probabilities of each image, the class that it was made for, and what was taken for what."""

    rows_NK: NDArray[np.float32]
    classes_N: NDArray[np.int64]
    said: str


def label_rows(chosen: ArraySelection, class_names: Sequence[str], where: str) -> Labels:
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


def by_class(labels: Labels, class_names: Sequence[str], where: str) -> tuple[NDArray[np.int64], str]:
    """The rows in the order of their classes, and whether that is another. Raises: DataError for unequal counts."""
    counts = np.bincount(labels.classes_N, minlength=len(class_names))
    if len(set(counts.tolist())) > 1:
        shown = ", ".join(f"{name} {count}" for name, count in zip(class_names, counts, strict=True))
        learnt = (
            "; classes are those of the largest target: where labels are learnt, add an array `classes` with the "
            "class that each image was made for"
            if "rows" in labels.said
            else ""
        )
        raise DataError(f"{where} has not as many images of each class ({shown}){learnt}")
    rows_N = labels.classes_N.argsort(kind="stable")
    return rows_N, "" if bool((rows_N == np.arange(len(rows_N))).all()) else ", sorted by class"
