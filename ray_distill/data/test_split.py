"""The test split. This is the only module that reads it; the evaluation imports it, and `data prepare`, to decode it.

A contract in pyproject.toml keeps distillation and search from importing it, directly or through others. Which files,
folders, rows and keys are test data is written here and nowhere else (see `sources`).
"""

from collections.abc import Callable

import torch

from ray_distill.data.decoded import cached_pixels
from ray_distill.data.decoding import Progress
from ray_distill.data.formats.arrays import Keys, check_arrays, read_arrays
from ray_distill.data.formats.cifar import cifar_files, read_cifar
from ray_distill.data.formats.class_folders import class_names_of, read_class_folders
from ray_distill.data.formats.cub200 import cub_lists, read_cub
from ray_distill.data.formats.digits import development_rows, read_digits
from ray_distill.data.formats.mnist import idx_files, read_idx
from ray_distill.data.formats.parquet import read_parquet
from ray_distill.data.labelled_images import DataError, LabelledImages
from ray_distill.data.listing import Listing, file_listing
from ray_distill.data.paths import DataFile, FsPath, existing_file, fs_path, matching_files
from ray_distill.data.sources import (
    PATH_KINDS,
    development_files,
    development_folder,
    development_listing,
    find_reader,
    imagenet_folder,
    tiny_imagenet_folder,
)
from ray_distill.data.spec import DataSpec

_CIFAR_FILES = {"cifar10": ("test_batch.bin",), "cifar100": ("test.bin",)}
_IDX_FILES = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_KEYS: Keys = (("x_test", "y_test"), ("test_images", "test_labels"))
_KEYS_OF_TEST_FILE: Keys = (*_KEYS, ("images", "labels"))
_FOLDERS = ("test", "val")


def load_test(spec: DataSpec, progress: Progress | None = None) -> LabelledImages:
    """The test split of a source, of the spec's classes; `limit` does not apply.

    From the cache; decoded into it first if necessary.

    Raises: DataError for an unknown source, missing or unusable test data, or test data that are also development data.
    """
    return cached_pixels(_reader(spec)(spec), spec, "test", progress)


def check_test(spec: DataSpec) -> None:
    """Raises: DataError if there is no test split. Reads none of its images."""
    _reader(spec)
    match spec.kind:
        case "mnist" | "fashion-mnist":
            idx_files(spec, _IDX_FILES)
        case "cifar10" | "cifar100":
            cifar_files(spec, _CIFAR_FILES[spec.source])
        case "tiny-imagenet":
            _annotations(spec)
        case "cub200":
            cub_lists(spec)
        case "imagenet":
            _imagenet_val(spec)
        case "folder":
            _test_folder(spec)
        case "parquet":
            _test_files(spec)
        case "npz" | "torch":
            path, keys = _array_file(spec)
            check_arrays(spec.kind, path, keys)


def _reader(spec: DataSpec) -> Callable[[DataSpec], Listing]:
    reader = find_reader(spec, _READERS)
    if spec.test_source is not None and spec.kind not in PATH_KINDS:
        raise DataError(f"{spec.source} has its own test data; remove the test source {spec.test_source!r}")
    return reader


def _digits(spec: DataSpec) -> Listing:
    digits = read_digits()
    is_test = torch.ones(len(digits), dtype=torch.bool)
    is_test[development_rows(digits.labels_N)] = False
    return digits.take(is_test.nonzero().flatten())


def _annotations(spec: DataSpec) -> DataFile:
    return existing_file(
        tiny_imagenet_folder(spec) / "val" / "val_annotations.txt", "unpack tiny-imagenet-200.zip again"
    )


def _tiny_imagenet(spec: DataSpec) -> Listing:
    """Tiny-ImageNet's own test images have no labels, so its val folder is the test split.

    A line of the annotations has file, class and bounding box, separated by tabs.
    """
    annotations, folder = _annotations(spec), tiny_imagenet_folder(spec)
    names = class_names_of(folder / "train")
    images = {file.place.name: file for file in (folder / "val" / "images").files()}
    lines = [line.split("\t")[:2] for line in annotations.read().decode().splitlines() if line.strip()]
    try:
        files = [images[name] for name, _ in lines]
        labels = [names.index(wnid) for _, wnid in lines]
    except (KeyError, ValueError) as e:
        raise DataError(f"{annotations}: has an unknown file or class ({e}); unpack the archive again") from e
    return file_listing(files, labels, names, [annotations])


def _imagenet_val(spec: DataSpec) -> FsPath:
    val = imagenet_folder(spec) / "val"
    if not val.is_folder():
        raise DataError(
            f"imagenet: folder {val} does not exist; put the validation images there as WNID/*.JPEG"
        )
    return val


def _imagenet(spec: DataSpec) -> Listing:
    return read_class_folders(_imagenet_val(spec), class_names_of(imagenet_folder(spec) / "train"))


def _test_path(spec: DataSpec) -> str:
    """The PATH of the test source. Raises: DataError if its KIND is not that of the source."""
    assert spec.test_source is not None
    kind, _, path = spec.test_source.partition(":")
    if kind != spec.kind or not path:
        raise DataError(
            f"the test source of {spec.source} must be {spec.kind}:PATH, got {spec.test_source!r}"
        )
    return path


def _test_folder(spec: DataSpec) -> FsPath:
    if spec.test_source is not None:
        folder = fs_path(_test_path(spec))
        test = next((folder / name for name in _FOLDERS if (folder / name).is_folder()), folder)
        if not test.is_folder() or test == development_folder(spec.path):
            raise DataError(f"{test} is not a folder, or is given as test data and as development data")
        return test
    folder = fs_path(spec.path)
    if not folder.is_folder():
        raise DataError(f"folder {folder} does not exist")
    for name in _FOLDERS:
        if (folder / name).is_folder():
            return folder / name
    raise DataError(
        f"{folder} has no folder test or val; set data.test_source to the test data, e.g. folder:PATH"
    )


def _folder(spec: DataSpec) -> Listing:
    return read_class_folders(_test_folder(spec), class_names_of(development_folder(spec.path)))


def _test_files(spec: DataSpec) -> list[DataFile]:
    if spec.test_source is None:
        place = fs_path(spec.path)
        if not place.is_folder():
            development_files(spec.path)
            raise DataError(
                f"{place} has training data only; set data.test_source to the test data, e.g. parquet:test.parquet"
            )
        return matching_files(place, "test*.parquet")
    files = matching_files(fs_path(_test_path(spec)), "test*.parquet")
    development = {_identity(file) for file in development_files(spec.path)}
    for file in files:
        if _identity(file) in development:
            raise DataError(
                f"{file} is given as test data and as development data; they must be different files"
            )
    return files


def _identity(file: DataFile) -> str:
    """The same for two spellings of one path."""
    from pathlib import Path

    return str(Path(file.place.path).resolve()) if file.place.is_local else str(file.place)


def _array_file(spec: DataSpec) -> tuple[str, Keys]:
    """The file of the test arrays, and the keys they may have."""
    if spec.test_source is None:
        return spec.path, _KEYS
    path = _test_path(spec)
    file = existing_file(fs_path(path))
    if _identity(file) == _identity(existing_file(fs_path(spec.path))):
        raise DataError(f"{file} is given as test data and as development data; remove data.test_source")
    return path, _KEYS_OF_TEST_FILE


def _arrays(spec: DataSpec) -> Listing:
    path, keys = _array_file(spec)
    return read_arrays(spec.kind, path, keys, development_listing(spec).class_names)


_READERS: dict[str, Callable[[DataSpec], Listing]] = {
    "digits": _digits,
    "mnist": lambda spec: read_idx(spec, idx_files(spec, _IDX_FILES)),
    "fashion-mnist": lambda spec: read_idx(spec, idx_files(spec, _IDX_FILES)),
    "cifar10": lambda spec: read_cifar(spec, cifar_files(spec, _CIFAR_FILES[spec.source])),
    "cifar100": lambda spec: read_cifar(spec, cifar_files(spec, _CIFAR_FILES[spec.source])),
    "tiny-imagenet": _tiny_imagenet,
    "cub200": lambda spec: read_cub(spec, mark="0"),
    "imagenet": _imagenet,
    "folder": _folder,
    "parquet": lambda spec: read_parquet(_test_files(spec)),
    "npz": _arrays,
    "torch": _arrays,
}
