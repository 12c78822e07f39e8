"""Stratified selection of rows: a split with the same fraction of each class, and a class-balanced subset."""

import math

import torch
from torch import Tensor

from ray_distill.core.rng import Stream
from ray_distill.data.labelled_images import DataError


def stratified_split(labels_N: Tensor, fraction: float, stream: Stream) -> tuple[Tensor, Tensor]:
    """Hold out a random `fraction` of each class: (other rows, held-out rows), int64, ascending.

    Of a class with n images, n * fraction to the nearest integer are held out, at least one; with fraction 0 none are.
    The result is a function of the stream and of the labels in order.
    Raises: ValueError for a fraction outside [0, 1); DataError for a class so small that all of it would be held out.
    """
    if not 0.0 <= fraction < 1.0:
        raise ValueError(f"fraction must be in [0, 1), got {fraction}")
    held_out_N = torch.zeros(len(labels_N), dtype=torch.bool)
    if fraction > 0.0:
        order = stream.permutation(len(labels_N))[0]
        for k in _classes(labels_N):
            of_class = order[labels_N[order] == k]
            num_held_out = max(1, math.floor(len(of_class) * fraction + 0.5))
            if num_held_out >= len(of_class):
                raise DataError(
                    f"class {k} has {len(of_class)} image(s): holding out a fraction of {fraction} would leave none; use a "
                    "smaller fraction, 0, or more images"
                )
            held_out_N[of_class[:num_held_out]] = True
    return torch.nonzero(~held_out_N).flatten(), torch.nonzero(held_out_N).flatten()


def balanced_rows(labels_N: Tensor, num_rows: int, stream: Stream) -> Tensor:
    """`num_rows` random rows with class counts as equal as possible: int64, ascending.

    A smaller selection is a subset of every larger one. All rows if there are at most `num_rows`.
    Raises: DataError for fewer than one row per class.
    """
    classes = _classes(labels_N)
    if num_rows < len(classes):
        raise DataError(
            f"data.limit: must be at least one image for each of the {len(classes)} classes (got {num_rows}); raise it"
        )
    order = stream.permutation(len(labels_N))[0]
    rank_N = torch.empty_like(labels_N)
    for k in classes:
        of_class = order[labels_N[order] == k]
        rank_N[of_class] = torch.arange(len(of_class))
    # First the first of every class, then the second of every class, and so on.
    by_rank = order[rank_N[order].argsort(stable=True)]
    return by_rank[:num_rows].sort().values


def _classes(labels_N: Tensor) -> list[int]:
    """The classes that occur, ascending."""
    return torch.nonzero(torch.bincount(labels_N)).flatten().tolist()
