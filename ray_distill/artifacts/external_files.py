"""What a file of another method holds, by name: arrays of numbers, and words. Nothing in it is run or unpickled.

| | names |
|---|---|
| `.npz` | its keys |
| `.npy` | `array` |
| `.pt`, `.pth` (torch.save) | `array` for a tensor alone; keys and places, as `data.0.1`, in dicts, lists and tuples |
| `.h5`, `.hdf5` | paths in the file, as `group/images`; needs h5py |
| a folder | `images`, and `labels`: the class folders' names, or, of images without, the files' own |
| `.parquet` | `images` and `labels`, in the hubs' image layout |

Which of them are the images and the labels is decided in `foreign_arrays`.
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

ALONE = "array"
"""The name of an array in a file that holds nothing else."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ExternalContents:
    """The arrays (integers and floats, one axis or more) and the words of a file."""

    path: Path
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Strings, and lists and arrays of them."""


def read_contents(path: Path) -> ExternalContents:
    """All that a file or a folder of images holds.

    Raises: DataError for a kind of file that is not known, one that cannot be read, or one with pickled objects.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise DataError(f"there is no file or folder {path}")
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
            f"{path}: what kind of file it is is read from its name; allowed: .npz, .npy, .pt, .pth, .h5, .hdf5, "
            ".parquet, or a folder of images"
        )
    return reader(path)


def _of_values(path: Path, values: Iterable[tuple[str, Any]]) -> ExternalContents:
    """Named NumPy arrays and tuples of strings, sorted out; single numbers are left aside."""
    contents = ExternalContents(path=path)
    for name, value in values:
        if isinstance(value, tuple):
            contents.words[name] = value
        elif value.dtype.kind in "US":
            flat = np.char.decode(value.ravel(), "utf-8") if value.dtype.kind == "S" else value.ravel()
            contents.words[name] = tuple(str(word) for word in flat)
        elif value.dtype.kind in "biuf" and value.ndim > 0:
            contents.arrays[name] = value
    return contents


@contextmanager
def _errors_named(path: Path, what: str, advice: str) -> Iterator[None]:
    """What readers raise is many things: all become a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as e:
        reason = (str(e).splitlines() or [repr(e)])[0]
        pickled = type(e).__name__ == "UnpicklingError" or "allow_pickle" in reason
        if pickled:
            raise DataError(f"{path} holds pickled objects, which are never read; {advice}") from e
        raise DataError(f"{path} is not {what}: {reason}") from e


_NUMPY_ADVICE = "save arrays of numbers: numpy.savez(path, images=.., labels=..)"
_TORCH_ADVICE = (
    "save tensors, or dicts and lists of them: torch.save({'images': images, 'labels': labels}, path)"
)


def _npz(path: Path) -> ExternalContents:
    with (
        _errors_named(path, "an .npz file of plain arrays", _NUMPY_ADVICE),
        np.load(path, allow_pickle=False) as arrays,
    ):
        return _of_values(path, [(name, arrays[name]) for name in arrays.files])


def _npy(path: Path) -> ExternalContents:
    with _errors_named(path, "an .npy file of a plain array", _NUMPY_ADVICE):
        # The array's own reader: `np.load` would take an archive or a pickle under this name too.
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
        return _of_values(path, [(ALONE, array)])


def _torch(path: Path) -> ExternalContents:
    with _errors_named(path, "a file of tensors that torch.save wrote", _TORCH_ADVICE):
        loaded = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
        return _of_values(path, _flattened(loaded, ""))


def _flattened(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The tensors, lists of numbers and words in containers of them, as (key.place.., value)."""
    inside = f"{name}." if name else ""
    if isinstance(value, Tensor):
        plain = value.detach()
        if plain.is_sparse or plain.is_quantized:
            raise DataError(f"the tensor {name or ALONE} is not dense; save tensor.to_dense()")
        yield name or ALONE, (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    elif isinstance(value, str):
        yield name or ALONE, (value,)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _flattened(item, f"{inside}{key}")
    elif isinstance(value, list | tuple):
        if value and all(isinstance(item, str) for item in value):
            yield name or ALONE, tuple(value)
        elif value and all(isinstance(item, int | float) for item in value):
            yield name or ALONE, np.array(value)
        else:
            for place, item in enumerate(value):
                yield from _flattened(item, f"{inside}{place}")


def _hdf5(path: Path) -> ExternalContents:
    try:
        import h5py
    except ImportError:
        raise DataError(f"{path}: to read HDF5 files install h5py: pip install 'ray-distill[h5]'") from None
    found: list[tuple[str, Any]] = []

    def take(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if h5py.check_string_dtype(item.dtype) is not None:
            found.append((name, tuple(np.ravel(item.asstr()[()]).tolist())))
        elif item.dtype.kind in "biuf":
            found.append((name, np.asarray(item[()])))

    with _errors_named(path, "an HDF5 file", ""), h5py.File(path, "r") as file:
        file.visititems(take)
        return _of_values(path, found)


def _parquet(path: Path) -> ExternalContents:
    listing = read_parquet([existing_file(fs_path(str(path)))])
    names = listing.class_names
    labels = listing.labels_N.numpy()
    unnamed = names == tuple(str(k) for k in range(len(names)))
    words = {} if unnamed else {"class_names": names}
    return ExternalContents(path=path, arrays={"images": _decoded(listing), "labels": labels}, words=words)


def _folder(path: Path) -> ExternalContents:
    """The images of class folders; or those in the folder itself, whose names begin with that of a class."""
    place = fs_path(str(path))
    if class_names_of(place):
        listing = read_class_folders(place)
        labels = [listing.class_names[k] for k in listing.labels_N.tolist()]
    else:
        listing, labels = _images_named_by_class(place)
    return ExternalContents(path=path, arrays={"images": _decoded(listing)}, words={"labels": tuple(labels)})


def _images_named_by_class(place: FsPath) -> tuple[Listing, list[str]]:
    files = [file for file in place.files() if file.place.name.lower().endswith(IMAGE_SUFFIXES)]
    if not files:
        raise DataError(f"{place} has no images ({' '.join(IMAGE_SUFFIXES[:4])} ..), and no folders with any")
    return file_listing(files, [0] * len(files), ["unknown"]), [
        file.place.name.rpartition(".")[0] for file in files
    ]


def _decoded(listing: Listing) -> NDArray[np.uint8]:
    """The images, uint8 [N, C, H, W]. Raises: DataError for broken ones, or images of several shapes."""
    images = list(decode_images(listing, image_size=None, broken=BrokenImages.up_to(0, len(listing))))
    first = images[0]
    for image in images:
        if image.pixels_CHW.shape != first.pixels_CHW.shape:
            raise DataError(
                f"{image.place} is {list(image.pixels_CHW.shape)} and {first.place} {list(first.pixels_CHW.shape)}; "
                "the images of a set have one size and are all grey or all in colour"
            )
    return np.stack([image.pixels_CHW for image in images])
