"""Reads the arrays and strings in a file of another method, by name. Nothing in it is executed or unpickled.

| | names |
|---|---|
| `.npz` | its keys |
| `.npy` | `array` |
| `.pt`, `.pth` (torch.save) | `array` for a single tensor; keys and indices, as `data.0.1`, in dicts, lists and tuples |
| `.h5`, `.hdf5` | paths in the file, as `group/images`; needs h5py |
| a folder | `images`, and `labels`: the names of the class folders, or of the files if there are none |
| `.parquet` | `images` and `labels`, in the layout of dataset hubs |

`external_arrays` selects the images and the labels.
"""

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_distill.data.decoding import BrokenImages, decode_images
from ray_distill.data.formats.class_folders import IMAGE_SUFFIXES, class_names_of, read_class_folders
from ray_distill.data.formats.parquet import read_parquet
from ray_distill.data.labelled_images import DataError
from ray_distill.data.listing import Listing, file_listing
from ray_distill.data.paths import FsPath, existing_file, fs_path
from ray_distill.errors import first_line

SINGLE_ARRAY = "array"
"""The name of the only array of a file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ExternalContents:
    """The arrays (integers and floats with at least one axis) and the strings of a file."""

    path: Path
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    strings: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Strings, and lists and arrays of them."""


def read_contents(path: Path) -> ExternalContents:
    """Everything in a file or a folder of images.

    Raises: DataError for an unknown type of file, one that cannot be read, or one with pickled objects.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder")
    reader = {
        ".npz": _npz,
        ".npy": _npy,
        ".pt": _torch,
        ".pth": _torch,
        ".h5": _hdf5,
        ".hdf5": _hdf5,
        ".parquet": _parquet,
    }.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: unknown file type; allowed: .npz, .npy, .pt, .pth, .h5, .hdf5, .parquet, or a folder of images"
        )
    return reader(path)


def _contents(path: Path, values: Iterable[tuple[str, Any]]) -> ExternalContents:
    """Named NumPy arrays and tuples of strings, separated; single numbers are left out."""
    contents = ExternalContents(path=path)
    for name, value in values:
        if isinstance(value, tuple):
            contents.strings[name] = value
        elif value.dtype.kind in "US":
            flat = np.char.decode(value.ravel(), "utf-8") if value.dtype.kind == "S" else value.ravel()
            contents.strings[name] = tuple(str(string) for string in flat)
        elif value.dtype.kind in "biuf" and value.ndim > 0:
            contents.arrays[name] = value
    return contents


@contextmanager
def _read_errors(path: Path, what: str, advice: str) -> Iterator[None]:
    """Turns the many errors of the readers into a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as e:
        reason = first_line(e)
        if type(e).__name__ == "UnpicklingError" or "allow_pickle" in reason:
            raise DataError(f"{path} contains pickled objects, which are never read; {advice}") from e
        raise DataError(f"{path} is not {what}: {reason}") from e


_NUMPY_ADVICE = "save arrays of numbers: numpy.savez(path, images=.., labels=..)"
_TORCH_ADVICE = (
    "save tensors, or dicts and lists of them: torch.save({'images': images, 'labels': labels}, path)"
)


def _npz(path: Path) -> ExternalContents:
    with (
        _read_errors(path, "an .npz file of plain arrays", _NUMPY_ADVICE),
        np.load(path, allow_pickle=False) as arrays,
    ):
        return _contents(path, [(name, arrays[name]) for name in arrays.files])


def _npy(path: Path) -> ExternalContents:
    with _read_errors(path, "an .npy file of a plain array", _NUMPY_ADVICE):
        # Not `np.load`, which would read an archive or a pickle under this name too.
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
        return _contents(path, [(SINGLE_ARRAY, array)])


def _torch(path: Path) -> ExternalContents:
    with _read_errors(path, "a file of tensors from torch.save", _TORCH_ADVICE):
        loaded = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
        return _contents(path, _flattened(loaded, ""))


def _flattened(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The tensors, lists of numbers and strings in nested containers, as (key.index.., value)."""
    inside = f"{name}." if name else ""
    if isinstance(value, Tensor):
        plain = value.detach()
        if plain.is_sparse or plain.is_quantized:
            raise DataError(f"the tensor {name or SINGLE_ARRAY} is not dense; save tensor.to_dense()")
        yield name or SINGLE_ARRAY, (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    elif isinstance(value, str):
        yield name or SINGLE_ARRAY, (value,)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _flattened(item, f"{inside}{key}")
    elif isinstance(value, list | tuple):
        if value and all(isinstance(item, str) for item in value):
            yield name or SINGLE_ARRAY, tuple(value)
        elif value and all(isinstance(item, int | float) for item in value):
            yield name or SINGLE_ARRAY, np.array(value)
        else:
            for index, item in enumerate(value):
                yield from _flattened(item, f"{inside}{index}")


def _hdf5(path: Path) -> ExternalContents:
    try:
        import h5py
    except ImportError:
        raise DataError(f"{path}: reading HDF5 files needs h5py: pip install 'ray-distill[h5]'") from None
    values: list[tuple[str, Any]] = []

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if h5py.check_string_dtype(item.dtype) is not None:
            values.append((name, tuple(np.ravel(item.asstr()[()]).tolist())))
        elif item.dtype.kind in "biuf":
            values.append((name, np.asarray(item[()])))

    with _read_errors(path, "an HDF5 file", ""), h5py.File(path, "r") as file:
        file.visititems(visit)
        return _contents(path, values)


def _parquet(path: Path) -> ExternalContents:
    listing = read_parquet([existing_file(fs_path(str(path)))])
    names = listing.class_names
    labels = listing.labels_N.numpy()
    unnamed = names == tuple(str(k) for k in range(len(names)))
    strings = {} if unnamed else {"class_names": names}
    return ExternalContents(
        path=path, arrays={"images": _decoded(listing), "labels": labels}, strings=strings
    )


def _folder(path: Path) -> ExternalContents:
    """The images in class folders; or those in the folder itself, whose names begin with that of a class."""
    place = fs_path(str(path))
    if class_names_of(place):
        listing = read_class_folders(place)
        labels = [listing.class_names[k] for k in listing.labels_N.tolist()]
    else:
        listing, labels = _images_named_by_class(place)
    return ExternalContents(
        path=path, arrays={"images": _decoded(listing)}, strings={"labels": tuple(labels)}
    )


def _images_named_by_class(place: FsPath) -> tuple[Listing, list[str]]:
    files = [file for file in place.files() if file.place.name.lower().endswith(IMAGE_SUFFIXES)]
    if not files:
        raise DataError(
            f"{place} has no images ({' '.join(IMAGE_SUFFIXES[:4])} ..) and no folders with images"
        )
    return file_listing(files, [0] * len(files), ["unknown"]), [
        file.place.name.rpartition(".")[0] for file in files
    ]


def _decoded(listing: Listing) -> NDArray[np.uint8]:
    """The images, uint8 [N, C, H, W]. Raises: DataError for corrupt images or several shapes."""
    images = list(decode_images(listing, image_size=None, broken=BrokenImages.up_to(0, len(listing))))
    first = images[0]
    for image in images:
        if image.pixels_CHW.shape != first.pixels_CHW.shape:
            raise DataError(
                f"{image.location} is {list(image.pixels_CHW.shape)} and {first.location} {list(first.pixels_CHW.shape)}; "
                "all images of a set must have one size and be all grey or all in colour"
            )
    return np.stack([image.pixels_CHW for image in images])
