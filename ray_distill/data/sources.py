"""Sources of real data, and their development data: everything but the test split.

| source | development data | test data |
|---|---|---|
| `digits` | four fifths of scikit-learn's 1,797 grey 8x8 digits | the other fifth |
| `mnist`, `fashion-mnist` | the published training files | the published test files |
| `cifar10`, `cifar100` | the training batches | the test batch |
| `tiny-imagenet` | `train` | `val` |
| `cub200` | the images marked 1 in the split | those marked 0 |
| `imagenet` | `train`, a folder for each class | `val`, likewise |
| `folder:PATH` | `train` in it, a folder for each class; or class folders alone | `test`, or else `val`, in it |
| `parquet:FOLDER` | `train*.parquet` in it | `test*.parquet` in it |
| `parquet:FILE`, `parquet:PATTERN` | the file, the files that match | `data.test_source` |
| `npz:FILE`, `torch:FILE` | `x_train`, `y_train` (or `train_images`, `train_labels`) | `x_test`, `y_test` (..) |
| | `images`, `labels` | `data.test_source` |

Named sources are read from `data.root`; `mnist`, `fashion-mnist`, `cifar10` and `cifar100` are downloaded into it. PATH may
be a URI that pyarrow reads (s3://, gs:// ..). The modules in `formats` describe the layouts.

Nothing here returns a test image: each reader is given the folder, files, rows or keys to read, and those of the test split
are named in `test_split` alone.
"""

from collections.abc import Callable

import torch

from ray_distill.data.decoded import cached_pixels
from ray_distill.data.decoding import Progress
from ray_distill.data.formats.arrays import Keys, read_arrays
from ray_distill.data.formats.cifar import cifar_files, read_cifar
from ray_distill.data.formats.class_folders import read_class_folders
from ray_distill.data.formats.cub200 import read_cub
from ray_distill.data.formats.digits import development_rows, read_digits
from ray_distill.data.formats.mnist import idx_files, read_idx
from ray_distill.data.formats.parquet import read_parquet
from ray_distill.data.labelled_images import DataError, LabelledImages
from ray_distill.data.listing import Listing
from ray_distill.data.paths import DataFile, FsPath, fs_path, matching_files
from ray_distill.data.spec import DataSpec

CIFAR_FILES = {
    "cifar10": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "cifar100": ("train.bin",),
}
DEVELOPMENT_KEYS: Keys = (("x_train", "y_train"), ("train_images", "train_labels"), ("images", "labels"))
TEST_SPLIT_NAMES = ("test", "val", "valid", "validation")
"""Names of folders that are not development data."""


def load_development(spec: DataSpec, progress: Progress | None = None) -> LabelledImages:
    """All real data of a source that a distillation may see: train and validation, never test.

    From the cache; decoded into it first if necessary.

    Raises: DataError for an unknown source or unusable data.
    """
    if spec.limit is not None and spec.limit < 1:
        raise DataError(f"limit must be at least 1, or None for all images; got {spec.limit}")
    images = cached_pixels(development_listing(spec), spec, "development", progress)
    _check_every_class(spec.source, images)
    return images


def development_listing(spec: DataSpec) -> Listing:
    """The development data before decoding. Raises: DataError."""
    return find_reader(spec, READERS)(spec)


def find_reader(
    spec: DataSpec, readers: dict[str, Callable[[DataSpec], Listing]]
) -> Callable[[DataSpec], Listing]:
    """The reader of a source. Raises: DataError for an unknown source."""
    reader = readers.get(spec.kind)
    by_path = spec.kind in PATH_KINDS
    if reader is None or by_path != bool(spec.path):
        names = ", ".join(f"{kind}:PATH" if kind in PATH_KINDS else kind for kind in readers)
        raise DataError(f"unknown source of data {spec.source!r}; must be one of {names}")
    return reader


def development_files(path: str) -> list[DataFile]:
    """The files of the development data. Raises: DataError for files whose name says test."""
    files = matching_files(fs_path(path), "train*.parquet")
    for file in files:
        if file.place.name.startswith("test"):
            raise DataError(
                f"{file} is test data by its name, which a distillation must not see; choose training files"
            )
    return files


def development_folder(path: str) -> FsPath:
    """The folder with the class folders of the development data: `train` in it if it exists, else the folder itself.

    Raises: DataError for a folder that is or contains test data by its name.
    """
    folder = fs_path(path)
    if not folder.is_folder():
        raise DataError(f"folder {folder} does not exist")
    if (folder / "train").is_folder():
        return folder / "train"
    test_names = [name for name in (folder.name, *folder.names()) if name in TEST_SPLIT_NAMES]
    if test_names:
        raise DataError(
            f"{folder}: has no folder train, and {test_names[0]} is test data by its name, which a distillation must not "
            "see; put the training images in a folder train"
        )
    return folder


def _digits(spec: DataSpec) -> Listing:
    digits = read_digits()
    return digits.take(development_rows(digits.labels_N))


def _idx(spec: DataSpec) -> Listing:
    return read_idx(spec, idx_files(spec, ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")))


def _cifar(spec: DataSpec) -> Listing:
    return read_cifar(spec, cifar_files(spec, CIFAR_FILES[spec.source]))


def unpacked_folder(spec: DataSpec, folder: str, advice: str) -> FsPath:
    """The folder of a source that is not downloaded. Raises: DataError with the advice if it does not exist."""
    place = fs_path(spec.root) / folder
    if not place.is_folder():
        raise DataError(
            f"{spec.source}: folder {place} does not exist; {advice}, or set data.root to the folder that has it"
        )
    return place


def tiny_imagenet_folder(spec: DataSpec) -> FsPath:
    """The folder of Tiny-ImageNet. Raises: DataError."""
    return unpacked_folder(
        spec, "tiny-imagenet-200", "unpack tiny-imagenet-200.zip (cs231n.stanford.edu) in its parent folder"
    )


def imagenet_folder(spec: DataSpec) -> FsPath:
    """The folder of ImageNet. Raises: DataError."""
    advice = (
        "put ILSVRC2012 there as train/WNID/*.JPEG and val/WNID/*.JPEG (from image-net.org, with an account)"
    )
    return unpacked_folder(spec, "imagenet", advice)


def _arrays(spec: DataSpec) -> Listing:
    return read_arrays(spec.kind, spec.path, DEVELOPMENT_KEYS)


READERS: dict[str, Callable[[DataSpec], Listing]] = {
    "digits": _digits,
    "mnist": _idx,
    "fashion-mnist": _idx,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "tiny-imagenet": lambda spec: read_class_folders(tiny_imagenet_folder(spec) / "train"),
    "cub200": lambda spec: read_cub(spec, mark="1"),
    "imagenet": lambda spec: read_class_folders(imagenet_folder(spec) / "train"),
    "folder": lambda spec: read_class_folders(development_folder(spec.path)),
    "parquet": lambda spec: read_parquet(development_files(spec.path)),
    "npz": _arrays,
    "torch": _arrays,
}
PATH_KINDS = ("folder", "parquet", "npz", "torch")


def _check_every_class(source: str, images: LabelledImages) -> None:
    """Raises: DataError for a class without images, for which nothing could be distilled."""
    counts = torch.bincount(images.labels_N, minlength=images.num_classes)
    empty = [images.class_names[k] for k in torch.nonzero(counts == 0).flatten().tolist()]
    if empty:
        raise DataError(
            f"{source}: no images of class(es) {', '.join(empty[:8])}; every class needs one (labels must cover 0 .. K-1)"
        )
