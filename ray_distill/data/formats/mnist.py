"""The files of MNIST and of Fashion-MNIST (IDX), as they are published or unpacked.

A file is two zero bytes, the type (8: bytes), the number of axes, the length of each (4 bytes, big-endian), and the
values. Source: yann.lecun.com/exdb/mnist. `sources` and `test_split` say which files are read.
"""

import gzip
import zlib

import numpy as np
from numpy.typing import NDArray

from ray_distill.data.downloads import Download, ensure_downloaded
from ray_distill.data.labelled_images import DataError
from ray_distill.data.listing import Listing, array_listing
from ray_distill.data.paths import DataFile, FsPath, existing_file, fs_path
from ray_distill.data.spec import DataSpec

FOLDERS = {"mnist": "MNIST/raw", "fashion-mnist": "FashionMNIST/raw"}
"""In data.root, where torchvision puts them too."""

CLASS_NAMES = {
    "mnist": tuple(map(str, range(10))),
    "fashion-mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag"),
        "Ankle boot",
    ),
}


def idx_files(spec: DataSpec, names: tuple[str, str]) -> tuple[DataFile, DataFile]:
    """The files with these names (images, labels), unpacked or as published; downloaded if missing.

    Raises: DataError that says which files to put where.
    """
    images, labels = (_idx_file(spec, fs_path(spec.root) / FOLDERS[spec.source], name) for name in names)
    return images, labels


def _idx_file(spec: DataSpec, folder: FsPath, name: str) -> DataFile:
    if (folder / name).is_file():
        return existing_file(folder / name)
    packed = f"{name}.gz"
    return ensure_downloaded(spec, folder, packed, lambda: _download(spec.source, packed))


def _download(source: str, name: str) -> Download:
    from torchvision.datasets import MNIST, FashionMNIST

    dataset = MNIST if source == "mnist" else FashionMNIST
    return Download(tuple(f"{mirror}{name}" for mirror in dataset.mirrors), dict(dataset.resources)[name])


def read_idx(spec: DataSpec, files: tuple[DataFile, DataFile]) -> Listing:
    """The images and labels of two files. Raises: DataError for damaged files."""
    images, labels = (_array(file, axes) for file, axes in zip(files, (3, 1), strict=True))
    return array_listing(images[:, None], labels, CLASS_NAMES[spec.source], files)


def _array(file: DataFile, num_axes: int) -> NDArray[np.uint8]:
    content = file.read()
    try:
        content = gzip.decompress(content) if file.place.name.endswith(".gz") else content
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{file} cannot be unpacked: {e}; remove it and download it again") from e
    begin = 4 + 4 * num_axes
    shape = np.frombuffer(content[4:begin], dtype=">u4").tolist()
    valid = content[:4] == bytes([0, 0, 8, num_axes]) and len(content) == begin + int(np.prod(shape))
    if not valid:
        raise DataError(
            f"{file} is damaged, or not an IDX file of bytes with {num_axes} axes; remove it and download it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=begin).reshape(shape)
