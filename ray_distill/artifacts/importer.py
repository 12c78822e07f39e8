"""Import of distilled sets that other methods saved.

A file of images says neither how real images are preprocessed nor how networks are trained on it. A configuration of
ours says both: its source, `data.preprocessing` fitted on that source's training images, its network and inner training.
The user also states whether the values in the file are preprocessed already.

How the file was read, and figures by which a wrong statement would show, go into the set's provenance.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_distill.artifacts.dataset import DistilledDataset, build_dataset
from ray_distill.artifacts.external_arrays import (
    as_NCHW,
    check_values,
    preprocessed_values,
    select_arrays,
    unit_pixels,
)
from ray_distill.artifacts.external_files import ExternalContents, read_contents
from ray_distill.artifacts.external_labels import read_labels, sort_by_class
from ray_distill.artifacts.types import Layout, Space
from ray_distill.builders.data import data_spec
from ray_distill.builders.experiment import load_development_data
from ray_distill.config.config import Config, ConfigError
from ray_distill.config.load import parse_config
from ray_distill.data.decoding import Progress
from ray_distill.data.labelled_images import DataError, LabelledImages
from ray_distill.data.preprocessing import Preprocessing
from ray_distill.data.sources import load_development
from ray_distill.data.splits import DevelopmentData

MAX_NORM_RATIO = 100.0
"""Images whose mean norm differs from that of real ones by this factor were preprocessed otherwise."""
WARN_NORM_RATIO = 5.0
"""From this factor on the figures come with a warning. (Images that start as unit noise are 1/25 of whitened CIFAR.)"""
NUM_REAL_IMAGES = 500
"""How many real images the norms are compared with."""


@dataclass(frozen=True, kw_only=True)
class ExternalSpec:
    """What the user states about a set that another method saved."""

    config: Config
    """Source, preprocessing, network and protocol; the images per class come from the file."""
    space: Space
    layout: Layout | None = None
    """Where the shape is ambiguous."""
    images: str | None = None
    """Key of the images in the file, where that is ambiguous."""
    labels: str | None = None
    """Key of the labels, or a file with them, or `none`."""


def is_artifact(path: Path) -> bool:
    """Whether a file is a distilled.parquet, which describes itself."""
    if path.suffix != ".parquet" or not path.is_file():
        return False
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return b"ray_distill" in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def load_set(
    path: Path, spec: ExternalSpec | None = None, progress: Progress | None = None
) -> DistilledDataset:
    """A distilled set from an artefact, or from another method's file and what the user states about it.

    Its images are sorted by class, with the same number of each, in the preprocessed space.

    Args:
        spec: ignored for an artefact.
        progress: of preparing the real images.

    Raises: ArtifactError for a damaged artefact; DataError for a file that cannot be read, is ambiguous, or contradicts
        `spec`; ConfigError for a configuration that its images per class do not fit.
    """
    if is_artifact(path):
        return DistilledDataset.load(path)
    if spec is None:
        raise DataError(
            f"{path} does not describe how to use it; pass --like CONFIG.yaml (source, preprocessing, training) and "
            "--space whitened or --space pixels"
        )
    config = spec.config
    if spec.space == "whitened" and config.data.preprocessing == "none":
        raise DataError(
            "--space whitened: data.preprocessing is none, so there are only pixels; use --space pixels"
        )
    contents = read_contents(path)
    # Everything that can be checked before the preprocessing is fitted, which may take minutes.
    imported = _read_images(contents, spec, load_development(data_spec(config), progress))
    config = _with_ipc(config, len(imported.images_NCHW) // imported.labels_NK.shape[1], path)
    data = load_development_data(config, None, progress)
    if spec.space == "pixels":
        images_NCHW, figures = data.preprocessing.apply(imported.images_NCHW), "then preprocessed"
    else:
        _check_preprocessing(contents, data.preprocessing)
        images_NCHW, figures = imported.images_NCHW, _compare_norms(imported.images_NCHW, data, path)
    facts = {"imported_from": path.name, "read_as": f"{imported.read_as}; {figures}"}
    return build_dataset(config, data, images_NCHW, imported.labels_NK, **facts)


class _ImportedImages(NamedTuple):
    """Images in the stated space with their labels, sorted by class, and how they were read."""

    images_NCHW: Tensor
    labels_NK: Tensor
    read_as: str


def _read_images(contents: ExternalContents, spec: ExternalSpec, source: LabelledImages) -> _ImportedImages:
    """Everything but the preprocessing. Raises: DataError."""
    where = str(contents.path)
    arrays = select_arrays(contents, spec.images, spec.labels)
    _check_declared(contents, source.class_names, spec.space)
    check_values(arrays.images, where)
    ordered, layout = as_NCHW(arrays.images, source.image_shape, spec.layout)
    values, space = (unit_pixels if spec.space == "pixels" else preprocessed_values)(ordered, where)
    labels = read_labels(arrays, source.class_names, where)
    rows_N, order = sort_by_class(labels, source.class_names, where)
    return _ImportedImages(
        torch.from_numpy(values[rows_N]),
        torch.from_numpy(labels.rows_NK[rows_N]),
        f"images `{arrays.images_name}` {layout}; {labels.read_as}{order}; {space}",
    )


def _with_ipc(config: Config, ipc: int, path: Path) -> Config:
    """The configuration with the set's images per class. Raises: ConfigError if it does not allow them."""
    values = config.to_dict()
    values["distilled"]["ipc"] = ipc
    try:
        return parse_config(values)
    except ConfigError as e:
        raise ConfigError(
            f"{path} has {ipc} image(s) per class, which the configuration refuses: {e}"
        ) from None


def _check_declared(contents: ExternalContents, class_names: tuple[str, ...], space: Space) -> None:
    """Raises: DataError for a file that declares other classes or another space."""
    path, strings = contents.path, contents.strings
    names = strings.get("class_names")
    if names is not None and names != class_names:
        raise DataError(
            f"{path} has the classes {', '.join(names)}; the configuration's source has {', '.join(class_names)}: they "
            "must be the same, in the same order (see data.classes)"
        )
    if strings.get("space", (space,)) != (space,):
        raise DataError(f"--space {space}: {path} declares --space {', '.join(strings['space'])}")


def _check_preprocessing(contents: ExternalContents, fitted: Preprocessing) -> None:
    """Raises: DataError for a file that declares or contains another preprocessing than the fitted one."""
    if "preprocessing" not in contents.strings:
        return
    expected, tensors = fitted.to_record()
    try:
        declared = json.loads(contents.strings["preprocessing"][0])
    except ValueError as e:
        raise DataError(f"{contents.path}: its `preprocessing` is not JSON: {e}") from e
    if not isinstance(declared, dict) or declared.get("kind") != expected["kind"]:
        raise DataError(
            f"{contents.path} declares the preprocessing {declared}; the configuration's is {expected}"
        )
    for name, tensor in tensors.items():
        array = contents.arrays.get(f"preprocessing_{name}")
        if array is not None and not _close(array, tensor.numpy()):
            raise DataError(
                f"{contents.path} has another {name} than the one fitted to the configuration's training images: it was "
                "fitted to other images, or other rows of them (data.validation_fraction, seed, data.limit, "
                "data.zca_shrinkage)"
            )


def _close(array: NDArray[Any], fitted: NDArray[np.float32]) -> bool:
    """Up to the rounding of a fit on another machine."""
    if array.shape != fitted.shape:
        return False
    return float(np.linalg.norm(array - fitted)) <= 1e-3 * float(np.linalg.norm(fitted))


def _compare_norms(images_NCHW: Tensor, data: DevelopmentData, path: Path) -> str:
    """The mean norm beside that of real images. Raises: DataError if they differ by MAX_NORM_RATIO."""
    real = data.train.images(torch.arange(min(NUM_REAL_IMAGES, data.train.num_images)))
    norm, real_norm = (float(x.flatten(1).norm(dim=1).mean()) for x in (images_NCHW, real))
    ratio = norm / real_norm
    figures = f"mean norm {norm:.4g}, of real images {real_norm:.4g}"
    if not 1 / MAX_NORM_RATIO < ratio < MAX_NORM_RATIO:
        raise DataError(
            f"{path}: {figures}: its images were not preprocessed with the configuration's data.preprocessing "
            f"{data.preprocessing.kind}"
        )
    return figures if 1 / WARN_NORM_RATIO < ratio < WARN_NORM_RATIO else f"WARNING: {figures}"
