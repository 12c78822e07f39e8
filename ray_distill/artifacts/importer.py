"""Distilled sets that another method saved, as ours: with the preprocessing and protocol that the user states.

A file of images says neither how real images are to be prepared nor how networks are trained on it. A configuration
of ours says both: its source, `data.preprocessing` fitted on that source's training images, its network and inner
training. Whether the values in the file are already so prepared is the other thing that only the user knows.

What was taken for what, and the figures by which a wrong statement would show, are kept in the set's provenance.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_distill.artifacts.dataset import DistilledDataset, provenance
from ray_distill.artifacts.external_arrays import (
    as_NCHW,
    check_values,
    choose,
    preprocessed_values,
    unit_pixels,
)
from ray_distill.artifacts.external_files import ExternalContents, read_contents
from ray_distill.artifacts.external_labels import by_class, label_rows
from ray_distill.artifacts.types import Layout, Space
from ray_distill.builders.data import data_spec
from ray_distill.builders.experiment import load_development_data
from ray_distill.builders.settings import training_protocol
from ray_distill.config.config import Config, ConfigError
from ray_distill.config.load import parse_config
from ray_distill.data.decoding import Progress
from ray_distill.data.labelled_images import DataError, LabelledImages
from ray_distill.data.preprocessing import Preprocessing
from ray_distill.data.sources import load_development
from ray_distill.data.splits import DevelopmentData

MOST_TIMES = 100.0
"""Images whose mean norm is this many times that of real ones, or this part of it, were prepared otherwise."""
ODD_TIMES = 5.0
"""From here on the figures are given as a warning. (Images that start as unit noise are 1/25 of whitened CIFAR.)"""
REAL_IMAGES = 500
"""Whose norms are compared with."""


@dataclass(frozen=True, kw_only=True)
class ExternalSpec:
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


def load_set(
    path: Path, stated: ExternalSpec | None = None, progress: Progress | None = None
) -> DistilledDataset:
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
    config = stated.config
    if stated.space == "whitened" and config.data.preprocessing == "none":
        raise DataError(
            "--space whitened: data.preprocessing is none, so there are only pixels; use --space pixels"
        )
    contents = read_contents(path)
    # The preprocessing may take minutes to fit: before that, all mistakes that can be told without it.
    read = _read(contents, stated, load_development(data_spec(config), progress))
    config = _with_ipc(config, len(read.images_NCHW) // read.labels_NK.shape[1], path)
    data = load_development_data(config, None, progress)
    if stated.space == "pixels":
        images_NCHW, figures = data.preprocessing.apply(read.images_NCHW), "then preprocessed"
    else:
        _check_own_preprocessing(contents, data.preprocessing)
        images_NCHW, figures = read.images_NCHW, _norms(read.images_NCHW, data, path)
    return _dataset(
        config, data, images_NCHW, read.labels_NK, imported_from=path.name, read_as=f"{read.said}; {figures}"
    )


class _Read(NamedTuple):
    """Images in the stated space and their labels, sorted by class, and what was taken for what."""

    images_NCHW: Tensor
    labels_NK: Tensor
    said: str


def _read(contents: ExternalContents, stated: ExternalSpec, source: LabelledImages) -> _Read:
    """What can be told without the preprocessing. Raises: DataError."""
    where = str(contents.path)
    chosen = choose(contents, stated.images, stated.labels)
    _check_own_words(contents, source.class_names, stated.space)
    check_values(chosen.images, where)
    ordered, layout = as_NCHW(chosen.images, source.image_shape, stated.layout)
    values, space = (unit_pixels if stated.space == "pixels" else preprocessed_values)(ordered, where)
    labels = label_rows(chosen, source.class_names, where)
    rows_N, order = by_class(labels, source.class_names, where)
    return _Read(
        torch.from_numpy(values[rows_N]),
        torch.from_numpy(labels.rows_NK[rows_N]),
        f"images `{chosen.images_name}` {layout}; {labels.said}{order}; {space}",
    )


def _dataset(
    config: Config, data: DevelopmentData, images_NCHW: Tensor, labels_NK: Tensor, **facts: str
) -> DistilledDataset:
    return DistilledDataset(
        images_NCHW=images_NCHW,
        labels_NK=labels_NK,
        class_names=data.class_names,
        preprocessing=data.preprocessing,
        protocol=training_protocol(config, data.num_classes),
        config=config.experiment(),
        config_hash=config.hash,
        provenance=provenance(**facts),
    )


def _with_ipc(config: Config, ipc: int, path: Path) -> Config:
    """The configuration with the images per class of a set. Raises: ConfigError if it does not allow them."""
    values = config.to_dict()
    values["distilled"]["ipc"] = ipc
    try:
        return parse_config(values)
    except ConfigError as e:
        raise ConfigError(f"{path} has {ipc} image(s) per class, and in the configuration {e}") from None


def _check_own_words(contents: ExternalContents, class_names: tuple[str, ...], space: Space) -> None:
    """Raises: DataError for a file that says of itself other classes, or another space."""
    path, words = contents.path, contents.words
    names = words.get("class_names")
    if names is not None and names != class_names:
        raise DataError(
            f"{path} has the classes {', '.join(names)}; the source of the configuration {', '.join(class_names)}: "
            "they must be the same, in the same order (data.classes says which)"
        )
    if words.get("space", (space,)) != (space,):
        raise DataError(f"--space {space}: {path} says of itself {', '.join(words['space'])}")


def _check_own_preprocessing(contents: ExternalContents, fitted: Preprocessing) -> None:
    """Raises: DataError for a file that names, or holds, another preprocessing than the fitted one."""
    if "preprocessing" not in contents.words:
        return
    here, tensors = fitted.to_record()
    try:
        there = json.loads(contents.words["preprocessing"][0])
    except ValueError as e:
        raise DataError(f"{contents.path}: its `preprocessing` is not JSON: {e}") from e
    if not isinstance(there, dict) or there.get("kind") != here["kind"]:
        raise DataError(
            f"{contents.path} says of itself the preprocessing {there}; the configuration's is {here}"
        )
    for name, tensor in tensors.items():
        own = contents.arrays.get(f"preprocessing_{name}")
        if own is not None and not _alike(own, tensor.numpy()):
            raise DataError(
                f"{contents.path} has another {name} than is fitted to the configuration's training images: it was "
                "made from other images, or another part of them (data.validation_fraction, seed, data.limit, "
                "data.zca_shrinkage)"
            )


def _alike(own: NDArray[Any], fitted: NDArray[np.float32]) -> bool:
    """Up to the rounding of another machine's fit."""
    if own.shape != fitted.shape:
        return False
    return float(np.linalg.norm(own - fitted)) <= 1e-3 * float(np.linalg.norm(fitted))


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
