"""CUB-200-2011 (birds) as its archive unpacks: images, and three lists that say what each of them is.

`images.txt`: number and path; `image_class_labels.txt`: number and class (from 1); `classes.txt`: class and name;
`train_test_split.txt`: number and mark. Which mark is read is decided by `sources` and `held_out`.
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
    """The images with this mark in the split. Raises: DataError for lists or images that are not there."""
    lists = cub_lists(spec)
    paths, labels, classes, marks = (_pairs(file) for file in lists)
    folder = _folder(spec) / "images"
    there = {file.place.path: file for file in folder.files(recursive=True)}
    names = list(classes.values())
    index = {number: k for k, number in enumerate(classes)}
    files, of = [], []
    try:
        for number, path in paths.items():
            if marks[number] == mark:
                files.append(there[(folder / path).path])
                of.append(index[labels[number]])
    except KeyError as e:
        raise DataError(
            f"{_folder(spec)}: its lists name {e.args[0]}, which is not there; unpack it again"
        ) from e
    return file_listing(files, of, names, lists)


def _pairs(file: DataFile) -> dict[str, str]:
    """The two words of each line."""
    pairs = [line.split(maxsplit=1) for line in file.read().decode().splitlines() if line.strip()]
    if not all(len(pair) == 2 for pair in pairs):
        raise DataError(f"{file} is not a list of pairs; unpack it again")
    return {first: second.strip() for first, second in pairs}
