"""Choices of rows that treat every class alike: the split with one share of each, and the balanced few.

Apart from `splits`, because `sources` needs them to set the test rows of a source aside.
"""

import math

import torch
from torch import Tensor

from ray_distill.core.rng import Stream
from ray_distill.data.labelled_images import DataError


def stratified_split(labels_N: Tensor, fraction: float, stream: Stream) -> tuple[Tensor, Tensor]:
    """Set a random `fraction` of each class aside: (rows kept, rows set aside), int64, ascending.

    Of a class with n images, n * fraction to the nearest integer are set aside, at least one; with
    fraction 0 none are. The draw is a function of the stream and of the labels in their order.
    Raises: ValueError for a fraction outside [0, 1); DataError for a class so small that nothing of it
    would be kept.
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"fraction is {fraction}; it must lie in [0, 1)")
    aside_N = torch.zeros(len(labels_N), dtype=torch.bool)
    if fraction > 0.0:
        order = stream.permutation(len(labels_N))[0]
        for k in _classes(labels_N):
            of_class = order[labels_N[order] == k]
            num_aside = max(1, math.floor(len(of_class) * fraction + 0.5))
            if num_aside >= len(of_class):
                raise DataError(
                    f"class {k} has {len(of_class)} image(s): setting a fraction of {fraction} aside would "
                    f"keep none of it; use a smaller fraction, more images, or fraction 0"
                )
            aside_N[of_class[:num_aside]] = True
    return torch.nonzero(~aside_N).flatten(), torch.nonzero(aside_N).flatten()


def balanced_rows(labels_N: Tensor, num_rows: int, stream: Stream) -> Tensor:
    """`num_rows` random rows with class counts as equal as the data allow: int64, ascending.

    A smaller choice is a part of every larger one. All rows if there are no more than `num_rows`.
    Raises: DataError if that is fewer than one row for each class.
    """
    classes = _classes(labels_N)
    if num_rows < len(classes):
        raise DataError(
            f"data.limit: is fewer than one image for each of the {len(classes)} classes (found {num_rows}); raise it"
        )
    order = stream.permutation(len(labels_N))[0]
    turn_N = torch.empty_like(labels_N)
    for k in classes:
        of_class = order[labels_N[order] == k]
        turn_N[of_class] = torch.arange(len(of_class))
    # First the first of every class, then the second of every class, and so on.
    by_turn = order[turn_N[order].argsort(stable=True)]
    return by_turn[:num_rows].sort().values


def _classes(labels_N: Tensor) -> list[int]:
    """The classes that occur, ascending."""
    return torch.nonzero(torch.bincount(labels_N)).flatten().tolist()
