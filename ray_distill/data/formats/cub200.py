"""CUB-200-2011 (birds) as unpacked from its archive: images, and lists of their classes and split.

`images.txt`: number and path; `image_class_labels.txt`: number and class (from 1); `classes.txt`: class and name;
`train_test_split.txt`: number and mark. `sources` and `test_split` say which mark is read.
Source: www.vision.caltech.edu/datasets/cub_200_2011.
"""

from ray_distill.data.labelled_images import DataError
from ray_distill.data.listing import Listing, file_listing
from ray_distill.data.paths import DataFile, FsPath, existing_file, fs_path
from ray_distill.data.spec import DataSpec

FOLDER = "CUB_200_2011"
LISTS = ("images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt")


def cub_lists(spec: DataSpec) -> list[DataFile]:
    """The four lists. Raises: DataError that says which archive to put where."""
    folder = _folder(spec)
    advice = f"unpack CUB_200_2011.tgz (CaltechDATA, record 65de6-vp158) in {spec.root}"
    return [existing_file(folder / name, advice) for name in LISTS]


def _folder(spec: DataSpec) -> FsPath:
    return fs_path(spec.root) / FOLDER


def read_cub(spec: DataSpec, mark: str) -> Listing:
    """The images with this mark in the split. Raises: DataError for missing lists or images."""
    lists = cub_lists(spec)
    paths, labels, classes, marks = (_pairs(file) for file in lists)
    folder = _folder(spec) / "images"
    on_disk = {file.place.path: file for file in folder.files(recursive=True)}
    names = list(classes.values())
    index = {number: k for k, number in enumerate(classes)}
    files, targets = [], []
    try:
        for number, path in paths.items():
            if marks[number] == mark:
                files.append(on_disk[(folder / path).path])
                targets.append(index[labels[number]])
    except KeyError as e:
        raise DataError(
            f"{_folder(spec)}: {e.args[0]} is in its lists, but missing; unpack the archive again"
        ) from e
    return file_listing(files, targets, names, lists)


def _pairs(file: DataFile) -> dict[str, str]:
    """The pairs in the lines: the first word, and the rest."""
    pairs = [line.split(maxsplit=1) for line in file.read().decode().splitlines() if line.strip()]
    if not all(len(pair) == 2 for pair in pairs):
        raise DataError(f"{file} is damaged: each line must have two values; unpack the archive again")
    return {first: second.strip() for first, second in pairs}
