"""The files of datasets, on this machine or in a store such as s3://, by path or URI (`utils.fs`)."""

import fnmatch
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

from ray_distill.data.labelled_images import DataError
from ray_distill.utils.fs import FS_ERRORS, Location, resolve, translated
from ray_distill.utils.secrets import redact

_SHOWN_NAMES = 8


@dataclass(frozen=True)
class FsPath(Location):
    """A path in a file system; nothing needs to be there. Methods raise DataError."""

    prefix: str = ""
    """Shown before the path: the URI's scheme, empty on this machine."""

    def __str__(self) -> str:
        return f"{self.prefix}{self.path}"

    def errors(self) -> AbstractContextManager[None]:
        """Errors of the file system as a DataError that names the path."""
        return translated(lambda e: DataError(f"{self} cannot be read: {e}"))

    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return bool(self.info().type.name == "Directory")

    def is_file(self) -> bool:
        """Whether it is a file."""
        return bool(self.info().is_file)

    def names(self) -> list[str]:
        """What is in the folder, sorted."""
        return sorted(info.base_name for info in self.entries())

    def files(self, pattern: str = "*", *, recursive: bool = False) -> list["DataFile"]:
        """The files in the folder whose name matches the pattern, sorted by path."""
        files = (
            DataFile(FsPath(self.filesystem, info.path, self.prefix), info.size, info.mtime_ns)
            for info in self.entries(recursive=recursive)
            if info.is_file and fnmatch.fnmatchcase(info.base_name, pattern)
        )
        return sorted(files, key=lambda file: file.place.path)


class DataFile(NamedTuple):
    """A file that exists."""

    place: FsPath
    size: int
    mtime_ns: int | None

    def __str__(self) -> str:
        return str(self.place)

    def stamp(self) -> str:
        """Changes when the file does."""
        return f"{self.place}\t{self.size}\t{self.mtime_ns}\n"

    def read(self) -> bytes:
        """All of it. Raises: DataError."""
        with self.place.errors(), self.place.stream() as stream:
            return bytes(stream.read())


def fs_path(path: str) -> FsPath:
    """The path that a path or a URI names. Raises: DataError for a URI that pyarrow cannot use."""
    scheme, separator, _ = path.partition("://")
    try:
        filesystem, inside = resolve(path)
    except FS_ERRORS as e:
        raise DataError(redact(f"{path} is not a usable path or URI: {e}")) from e
    # Options and credentials of the URI are kept out of messages and of keys.
    return FsPath(filesystem, inside, f"{scheme}://" if separator and scheme != "file" else "")


def existing_file(place: FsPath, advice: str = "") -> DataFile:
    """The file. Raises: DataError with the advice if it does not exist."""
    info = place.info()
    if not info.is_file:
        raise DataError(f"file {place} does not exist{advice and '; '}{advice}")
    return DataFile(place, info.size, info.mtime_ns)


def matching_files(place: FsPath, pattern: str) -> list[DataFile]:
    """Sorted files: those that match `pattern` in a folder, a single file, or those that the path matches as a pattern.

    Raises: DataError if there are none.
    """
    if place.is_folder():
        files = place.files(pattern)
        if not files:
            content = ", ".join(place.names()[:_SHOWN_NAMES]) or "nothing"
            raise DataError(f"folder {place} has no {pattern}; it contains: {content}")
        return files
    if place.is_file():
        return [existing_file(place)]
    files = place.parent.files(place.name) if place.parent.is_folder() else []
    if not files:
        raise DataError(f"{place} does not exist, and no file matches it as a pattern")
    return files
