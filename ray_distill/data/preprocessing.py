"""Preprocessing of real images: none, per-channel normalisation, or ZCA (`whitening`); fitted on train.

All kinds are immutable and have one interface; runs, artefacts and evaluations apply the same instance:

    apply(images in [0, 1])   -> preprocessed images          float32 [N, C, H, W]
    to_pixels(preprocessed)   -> images in [0, 1] to view    float32 [N, C, H, W]
    unclamped_pixels(..)      -> the same before values are clamped to [0, 1]
    check_shape(images)       -> ValueError for images of another shape than it was fitted on
    describe()                -> one line of text
    to_record()               -> (plain data, float32 tensors); inverse: `preprocessing_from_record`
    kind                      -> "none" | "normalise" | "zca"

A fitted one is saved as an Arrow IPC file: a row for each tensor, the rest as JSON in the schema's metadata.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ray_distill.data.labelled_images import DataError
from ray_distill.data.whitening import ZcaWhitening, fit_whitening, whitening_from_record

KINDS = ("none", "normalise", "zca")
FORMAT = 1
_KEY = b"ray_distill"

Record = tuple[dict[str, Any], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True, eq=False)
class NoPreprocessing:
    """Pixels in [0, 1] as they are."""

    kind = "none"

    def check_shape(self, images_NCHW: Tensor) -> None:
        """Accepts any shape."""

    def apply(self, images_NCHW: Tensor) -> Tensor:
        """The same images as float32."""
        return images_NCHW.to(torch.float32)

    def unclamped_pixels(self, images_NCHW: Tensor) -> Tensor:
        """The same images as float32."""
        return images_NCHW.to(torch.float32)

    def to_pixels(self, images_NCHW: Tensor) -> Tensor:
        """The images clamped to [0, 1]."""
        return self.unclamped_pixels(images_NCHW).clamp(0.0, 1.0)

    def describe(self) -> str:
        """One line of text."""
        return "none: pixels in [0, 1]"

    def to_record(self) -> Record:
        """Plain data and tensors to save."""
        return {"kind": self.kind}, {}


@dataclass(frozen=True, kw_only=True, eq=False)
class Normalisation:
    """Each channel minus its training mean, divided by its training standard deviation."""

    mean_C: Tensor
    std_C: Tensor

    kind = "normalise"

    def apply(self, images_NCHW: Tensor) -> Tensor:
        """Normalised float32 images. Raises: ValueError for another number of channels."""
        self.check_shape(images_NCHW)
        mean, std = (v.to(images_NCHW.device)[:, None, None] for v in (self.mean_C, self.std_C))
        normalised: Tensor = (images_NCHW.to(torch.float32) - mean) / std
        return normalised

    def unclamped_pixels(self, images_NCHW: Tensor) -> Tensor:
        """The inverse of `apply`. Raises: ValueError for another number of channels."""
        self.check_shape(images_NCHW)
        mean, std = (v.to(images_NCHW.device)[:, None, None] for v in (self.mean_C, self.std_C))
        pixels: Tensor = images_NCHW.to(torch.float32) * std + mean
        return pixels

    def to_pixels(self, images_NCHW: Tensor) -> Tensor:
        """The inverse of `apply`, clamped to [0, 1]."""
        return self.unclamped_pixels(images_NCHW).clamp(0.0, 1.0)

    def describe(self) -> str:
        """One line of text."""
        mean, std = (", ".join(f"{v:.4f}" for v in t.tolist()) for t in (self.mean_C, self.std_C))
        return f"normalise: (pixels in [0, 1] - mean) / std for each channel; mean ({mean}), std ({std})"

    def to_record(self) -> Record:
        """Plain data and tensors to save."""
        return {"kind": self.kind}, {"mean_C": self.mean_C, "std_C": self.std_C}

    def check_shape(self, images_NCHW: Tensor) -> None:
        """Raises: ValueError for images with another number of channels."""
        if images_NCHW.ndim != 4 or images_NCHW.shape[1] != len(self.mean_C):
            raise ValueError(
                f"the normalisation was fitted on {len(self.mean_C)} channel(s), got images of shape {list(images_NCHW.shape)}"
            )


Preprocessing = NoPreprocessing | Normalisation | ZcaWhitening


def fit_preprocessing(kind: str, pixel_chunks: Iterable[Tensor], *, zca_shrinkage: float) -> Preprocessing:
    """The preprocessing of this kind, fitted on chunks of training images.

    Args:
        pixel_chunks: float tensors [n, C, H, W] in [0, 1], read once; the sums run in float64.
        zca_shrinkage: for `zca` only; above 0.

    Raises: ValueError for an unknown kind or a shrinkage that is not above 0; DataError for no images, or constant
        ones, which cannot be normalised or whitened.
    """
    match kind:
        case "none":
            return NoPreprocessing()
        case "normalise":
            return _fit_normalisation(pixel_chunks)
        case "zca":
            return fit_whitening(pixel_chunks, zca_shrinkage)
    raise ValueError(f"unknown preprocessing {kind!r}; allowed: {', '.join(KINDS)}")


def preprocessing_from_record(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Preprocessing:
    """The preprocessing of a record by `to_record`.

    Raises: ValueError, KeyError or TypeError for any other record.
    """
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"the tensor {name} of the preprocessing must be finite float32")
    match description["kind"]:
        case "none":
            return NoPreprocessing()
        case "normalise":
            mean_C, std_C = tensors["mean_C"], tensors["std_C"]
            if mean_C.ndim != 1 or mean_C.shape != std_C.shape or not bool((std_C > 0).all()):
                raise ValueError("a normalisation needs a mean and a positive std for each channel")
            return Normalisation(mean_C=mean_C, std_C=std_C)
        case "zca":
            return whitening_from_record(description, tensors["whiten_DD"])
        case unknown:
            raise ValueError(f"unknown preprocessing {unknown!r}; allowed: {', '.join(KINDS)}")


def _fit_normalisation(pixel_chunks: Iterable[Tensor]) -> Normalisation:
    count = 0
    total_C, squares_C = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for chunk in pixel_chunks:
        values = chunk.to(torch.float64)
        count += values.shape[0] * values.shape[2] * values.shape[3]
        total_C = total_C + values.sum(dim=(0, 2, 3))
        squares_C = squares_C + (values**2).sum(dim=(0, 2, 3))
    if count == 0:
        raise DataError("there are no training images to fit the normalisation on")
    mean_C = total_C / count
    variance_C = squares_C / count - mean_C**2
    # With float64 sums of squares in [0, 1] the variance of a constant channel is about 1e-16, not 0.
    if bool((variance_C < 1e-12).any()):
        raise DataError("a channel is constant over all training images; set data.preprocessing to none")
    return Normalisation(mean_C=mean_C.to(torch.float32), std_C=variance_C.sqrt().to(torch.float32))


def save_preprocessing(path: Path, preprocessing: Preprocessing) -> None:
    """Write a fitted preprocessing to an Arrow IPC file."""
    import pyarrow as pa

    description, tensors = preprocessing.to_record()
    header = json.dumps({"format": FORMAT, "preprocessing": description})
    columns = {
        "name": pa.array(list(tensors), pa.string()),
        "shape": pa.array([list(t.shape) for t in tensors.values()], pa.list_(pa.int64())),
        "values": pa.array([t.flatten().numpy() for t in tensors.values()], pa.large_list(pa.float32())),
    }
    table = pa.table(columns).replace_schema_metadata({_KEY: header})
    with path.open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def load_preprocessing(path: Path) -> Preprocessing:
    """Read a file by `save_preprocessing`. Raises: DataError for any other file."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as reader:
            table = reader.read_all()
            table.validate(full=True)
        header = json.loads(table.schema.metadata[_KEY])
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']}")
        tensors = {}
        names, shapes = table.column("name").to_pylist(), table.column("shape").to_pylist()
        for name, shape, values in zip(names, shapes, table.column("values"), strict=True):
            # A copy, aligned like any tensor, so that products with it round as before saving.
            flat = np.array(values.values.to_numpy(zero_copy_only=True), copy=True)
            tensors[name] = torch.from_numpy(flat).reshape(shape)
        return preprocessing_from_record(header["preprocessing"], tensors)
    # Arrow and NumPy raise many kinds of errors for damaged files.
    except Exception as e:
        raise DataError(
            f"{path} is not a valid fitted preprocessing ({e}); remove it, and it is fitted again"
        ) from e
