"""A folder for each class, with the class's images anywhere below it: torchvision's ImageFolder, ImageNet.

The classes are the folders, sorted by name. `sources` and `test_split` say which folder is read.
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
        class_names: the allowed classes, in order. None: those in the folder.

    Raises: DataError for no images, or images of another class.
    """
    images = [(name, file) for name, file in _images_below(folder) if name]
    present = sorted({name for name, _ in images})
    names = present if class_names is None else list(class_names)
    unknown = sorted(set(present) - set(names))
    if unknown:
        raise DataError(
            f"{folder} has images of {', '.join(unknown[:8])}, which are not classes of the development data"
        )
    if not images:
        content = ", ".join(folder.names()[:8]) or "nothing"
        raise DataError(
            f"{folder} must have a folder of images ({' '.join(IMAGE_SUFFIXES[:4])} ..) for each class; "
            f"it contains: {content}"
        )
    index = {name: k for k, name in enumerate(names)}
    return file_listing([file for _, file in images], [index[name] for name, _ in images], names)


def class_names_of(folder: FsPath) -> list[str]:
    """The class folders with images in a folder, sorted."""
    return sorted({name for name, _ in _images_below(folder) if name})


def _images_below(folder: FsPath) -> list[tuple[str, DataFile]]:
    """(class folder, image), sorted; the class is empty for an image directly in the folder."""
    if not folder.is_folder():
        raise DataError(f"folder {folder} does not exist")
    images = []
    for file in folder.files(recursive=True):
        parts = file.place.path[len(folder.path.rstrip("/")) + 1 :].split("/")
        hidden = any(part.startswith(".") for part in parts)
        if file.place.name.lower().endswith(IMAGE_SUFFIXES) and not hidden:
            images.append((parts[0] if len(parts) > 1 else "", file))
    return images
