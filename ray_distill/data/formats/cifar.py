"""CIFAR-10 and CIFAR-100 from their binary archives.

The archives for Python are pickles, which can run code when opened; the binary ones have the same images. A record is one
label (CIFAR-10), or the coarse and the fine one (CIFAR-100), and 3 x 32 x 32 bytes, the planes of red, green and blue.
Source: www.cs.toronto.edu/~kriz/cifar.html. `sources` and `test_split` say which files are read.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ray_distill.data.downloads import Download, ensure_downloaded
from ray_distill.data.labelled_images import DataError
from ray_distill.data.listing import Listing, array_listing
from ray_distill.data.paths import DataFile, fs_path
from ray_distill.data.spec import DataSpec

_SHAPE = (3, 32, 32)
_SITE = "https://www.cs.toronto.edu/~kriz"


class Layout(NamedTuple):
    """An archive and the layout of its files."""

    archive: str
    md5: str
    folder: str
    """The folder that it unpacks to, in data.root."""
    names_file: str
    label_bytes: int
    """Bytes before the pixels of each image; the last is the label."""


LAYOUTS = {
    "cifar10": Layout(
        archive="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        names_file="batches.meta.txt",
        label_bytes=1,
    ),
    "cifar100": Layout(
        archive="cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder="cifar-100-binary",
        names_file="fine_label_names.txt",
        label_bytes=2,
    ),
}


def cifar_files(spec: DataSpec, names: Sequence[str]) -> list[DataFile]:
    """The files with these names; the archive is downloaded and unpacked if they are missing.

    Raises: DataError that says which file to put where.
    """
    return [_file(spec, name) for name in names]


def _file(spec: DataSpec, name: str) -> DataFile:
    layout = LAYOUTS[spec.source]

    def download() -> Download:
        return Download((f"{_SITE}/{layout.archive}",), layout.md5)

    root = fs_path(spec.root)
    return ensure_downloaded(spec, root, layout.archive, download, unpacked=f"{layout.folder}/{name}")


def read_cifar(spec: DataSpec, files: Sequence[DataFile]) -> Listing:
    """The images and labels of these files. Raises: DataError for damaged files."""
    layout = LAYOUTS[spec.source]
    names_file = _file(spec, layout.names_file)
    class_names = names_file.read().decode().split()
    record = layout.label_bytes + int(np.prod(_SHAPE))
    parts = []
    for file in files:
        content = np.frombuffer(file.read(), dtype=np.uint8)
        if len(content) == 0 or len(content) % record:
            raise DataError(
                f"{file} is damaged: its size must be a multiple of {record} bytes; remove it and download it again"
            )
        parts.append(content.reshape(-1, record))
    table = np.concatenate(parts)
    images = table[:, layout.label_bytes :].reshape(-1, *_SHAPE)
    return array_listing(images, table[:, layout.label_bytes - 1], class_names, [*files, names_file])
