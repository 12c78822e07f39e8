"""Distilled sets that another method saved, as ours: with the preprocessing and protocol that the user states.

A file of images says neither how real images are to be prepared nor how networks are trained on it. A configuration
of ours says both: its source, `data.preprocessing` fitted on that source's training images, its network and inner
training. Whether the values in the file are already so prepared is the other thing that only the user knows.

What was taken for what, and the figures by which a wrong statement would show, are kept in the set's provenance.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_distill import build
from ray_distill.artifact import ArtifactError, DistilledDataset, provenance
from ray_distill.config import Config, ConfigError, parse
from ray_distill.data.decoding import Progress
from ray_distill.data.labelled_images import DataError
from ray_distill.data.splits import DevelopmentData
from ray_distill.exchange_words import Layout, Space
from ray_distill.foreign_arrays import Labels, as_NCHW, choose, label_rows
from ray_distill.foreign_files import Contents, read_contents
from ray_distill.protocol import protocol_of

MOST_TIMES = 100.0
"""Images whose mean norm is this many times that of real ones, or this part of it, were prepared otherwise."""
ODD_TIMES = 5.0
"""From here on the figures are given as a warning. (Images that start as unit noise are 1/25 of whitened CIFAR.)"""
REAL_IMAGES = 500
"""Whose norms are compared with."""
_ROUNDING = 1e-3


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What only the user knows of a set that another method saved."""

    config: Config
    """Its source, preprocessing, network and protocol; the images per class are the file's."""
    space: Space
    layout: Layout | None = None
    """Where the shape does not say it."""
    images: str | None = None
    """The images' name in the file, where that does not say it."""
    labels: str | None = None
    """The labels' name, or their file, or `none`."""


def is_ours(path: Path) -> bool:
    """Whether a file is a distilled.parquet, which says all about itself."""
    if path.suffix != ".parquet" or not path.is_file():
        return False
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return b"ray_distill" in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def read_set(path: Path, stated: Stated | None = None, progress: Progress | None = None) -> DistilledDataset:
    """A distilled set from a file of ours, or from one of another method with what the user states of it.

    Its images are sorted by class, each class has as many, and they are in the preprocessed space.

    Args:
        stated: not used for a file of ours.
        progress: of preparing the real images.

    Raises: ArtifactError for a damaged file of ours; DataError for a file that cannot be read, that leaves open what
        is meant, or whose values are not what is stated; ConfigError for a configuration that its images per class
        do not fit.
    """
    if is_ours(path):
        return DistilledDataset.load(path)
    if stated is None:
        raise DataError(
            f"{path} does not say how it is used; state it with --like CONFIG.yaml (source, preprocessing, training) "
            "and --space whitened or --space pixels"
        )
    kind = stated.config.data.preprocessing
    if stated.space == "whitened" and kind == "none":
        raise DataError(
            "--space whitened: data.preprocessing is none, so there are only pixels; use --space pixels"
        )
    contents = read_contents(path)
    chosen = choose(contents, stated.images, stated.labels)
    data = build.development_data(stated.config, None, progress)
    _check_own_words(contents, data, stated.space)
    ordered, layout = as_NCHW(chosen.images, data.image_shape, stated.layout)
    images_NCHW, space = _in_space(ordered, stated.space, data, path)
    labels = label_rows(chosen, data.class_names, str(path))
    rows_N, order = _by_class(labels, data.class_names, path)
    read_as = f"images `{chosen.images_name}` {layout}; {space}; {labels.said}{order}"
    return _dataset(path, stated.config, data, images_NCHW[rows_N], labels.rows_NK[rows_N], read_as)


def _dataset(
    path: Path,
    config: Config,
    data: DevelopmentData,
    images_NCHW: Tensor,
    labels_NK: NDArray[np.float32],
    read_as: str,
) -> DistilledDataset:
    config = _with_ipc(config, len(images_NCHW) // data.num_classes, path)
    try:
        return DistilledDataset(
            images_NCHW=images_NCHW,
            labels_NK=torch.from_numpy(labels_NK),
            class_names=data.class_names,
            preprocessing=data.preprocessing,
            protocol=protocol_of(config, data.num_classes),
            config=config.experiment(),
            config_hash=config.hash,
            provenance=provenance(imported_from=path.name, read_as=read_as),
        )
    except ArtifactError as e:
        raise DataError(f"{path}: {e}") from e


def _with_ipc(config: Config, ipc: int, path: Path) -> Config:
    """The configuration with the images per class of a set. Raises: ConfigError if it does not allow them."""
    values = config.to_dict()
    values["distilled"]["ipc"] = ipc
    try:
        return parse(values)
    except ConfigError as e:
        raise ConfigError(f"{path} has {ipc} image(s) per class, and in the configuration {e}") from None


def _check_own_words(contents: Contents, data: DevelopmentData, space: Space) -> None:
    """Raises: DataError for a file that says of itself what is not so here."""
    path, words = contents.path, contents.words
    names = words.get("class_names")
    if names is not None and names != data.class_names:
        raise DataError(
            f"{path} has the classes {', '.join(names)}; the source of the configuration {', '.join(data.class_names)}: "
            "they must be the same, in the same order (data.classes says which)"
        )
    if words.get("space", (space,)) != (space,):
        raise DataError(f"--space {space}: {path} says of itself {', '.join(words['space'])}")
    if space == "pixels" or "preprocessing" not in words:
        return
    here, tensors = data.preprocessing.to_record()
    try:
        there = json.loads(words["preprocessing"][0])
    except ValueError as e:
        raise DataError(f"{path}: its `preprocessing` is not JSON: {e}") from e
    if not isinstance(there, dict) or there.get("kind") != here["kind"]:
        raise DataError(f"{path} says of itself the preprocessing {there}; the configuration's is {here}")
    for name, tensor in tensors.items():
        own = contents.arrays.get(f"preprocessing_{name}")
        if own is not None and not _alike(own, tensor.numpy()):
            raise DataError(
                f"{path} has another {name} than is fitted to the configuration's training images: it was made from "
                "other images, or another part of them (data.validation_fraction, seed, data.limit, data.zca_shrinkage)"
            )


def _alike(own: NDArray[Any], fitted: NDArray[np.float32]) -> bool:
    """Up to the rounding of another machine's fit."""
    if own.shape != fitted.shape:
        return False
    return float(np.linalg.norm(own - fitted)) <= 1e-3 * float(np.linalg.norm(fitted))


def _in_space(images: NDArray[Any], space: Space, data: DevelopmentData, path: Path) -> tuple[Tensor, str]:
    """Images [N, C, H, W] as networks take them, float32, and what they were. Raises: DataError."""
    if images.size == 0 or not bool(np.isfinite(images).all()):
        raise DataError(f"{path}: its images are empty, or hold values that are not finite")
    if space == "pixels":
        pixels, said = _unit_pixels(images, path)
        return data.preprocessing.apply(torch.from_numpy(pixels)), f"{said}, then preprocessed"
    low, high = float(images.min()), float(images.max())
    if low >= 0.0:
        raise DataError(
            f"{path}: no value of its images is below 0 (they lie in {low:.4g} .. {high:.4g}): whitened or normalised "
            "images have both signs. If these are pixels, use --space pixels"
        )
    # A copy in their own order: axes that were turned round would make products round otherwise.
    images_NCHW = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
    return images_NCHW, f"already preprocessed; {_norms(images_NCHW, data, path)}"


def _unit_pixels(images: NDArray[Any], path: Path) -> tuple[NDArray[np.float32], str]:
    """Pixels in [0, 1], and what they were.

    Floats are in [0, 1] or in [0, 255]. Those of which the largest lies between, up to 16, could be either.
    Raises: DataError for values outside.
    """
    low, high = float(images.min()), float(images.max())
    found = f"{path}: values of its images lie in {low:.4g} .. {high:.4g}"
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


def _norms(images_NCHW: Tensor, data: DevelopmentData, path: Path) -> str:
    """The mean norm beside that of real images. Raises: DataError if they are MOST_TIMES apart."""
    real = data.train.images(torch.arange(min(REAL_IMAGES, data.train.num_images)))
    own_norm, real_norm = (float(x.flatten(1).norm(dim=1).mean()) for x in (images_NCHW, real))
    times = own_norm / real_norm
    said = f"mean norm {own_norm:.4g}, of real images {real_norm:.4g}"
    if not 1 / MOST_TIMES < times < MOST_TIMES:
        raise DataError(
            f"{path}: {said}: its images were preprocessed otherwise than data.preprocessing "
            f"{data.preprocessing.kind} of the configuration does"
        )
    return said if 1 / ODD_TIMES < times < ODD_TIMES else f"WARNING: {said}"


def _by_class(labels: Labels, class_names: tuple[str, ...], path: Path) -> tuple[NDArray[np.int64], str]:
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
        raise DataError(f"{path} has not as many images of each class ({shown}){learnt}")
    rows_N = labels.classes_N.argsort(kind="stable")
    return rows_N, "" if bool((rows_N == np.arange(len(rows_N))).all()) else ", sorted by class"
