"""A folder for each class, with the class's images anywhere below it: torchvision's ImageFolder, ImageNet.

The classes are the folders, sorted by name. Which folder is read is decided by `sources` and `held_out`.
"""

from collections.abc import Sequence

from ray_distill.data.labelled_images import DataError
from ray_distill.data.listing import Listing, file_listing
from ray_distill.data.paths import DataFile, FsPath

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)


def read_class_folders(folder: FsPath, class_names: Sequence[str] | None = None) -> Listing:
    """The images below a folder's class folders.

    Args:
        class_names: the classes that there may be, in their order. None: those that there are.

    Raises: DataError for no images, or images of a class that there may not be.
    """
    found = [(name, file) for name, file in _images_below(folder) if name]
    present = sorted({name for name, _ in found})
    names = present if class_names is None else list(class_names)
    strange = sorted(set(present) - set(names))
    if strange:
        raise DataError(
            f"{folder} has images of {', '.join(strange[:8])}, classes that are not among the development data's"
        )
    if not found:
        there = ", ".join(folder.names()[:8]) or "nothing"
        raise DataError(
            f"{folder} has no folders with images (a folder for each class, files {' '.join(IMAGE_SUFFIXES[:4])} ..); "
            f"in it: {there}"
        )
    place = {name: k for k, name in enumerate(names)}
    return file_listing([file for _, file in found], [place[name] for name, _ in found], names)


def class_names_of(folder: FsPath) -> list[str]:
    """The classes that have images below a folder, sorted."""
    return sorted({name for name, _ in _images_below(folder) if name})


def _images_below(folder: FsPath) -> list[tuple[str, DataFile]]:
    """(class folder, image), sorted; the class is empty for an image that is in no folder of its own."""
    if not folder.is_folder():
        raise DataError(f"there is no folder {folder}")
    images = []
    for file in folder.files(recursive=True):
        parts = file.place.path[len(folder.path.rstrip("/")) + 1 :].split("/")
        hidden = any(part.startswith(".") for part in parts)
        if file.place.name.lower().endswith(IMAGE_SUFFIXES) and not hidden:
            images.append((parts[0] if len(parts) > 1 else "", file))
    return images
