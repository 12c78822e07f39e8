"""Files on this machine or in a store such as s3://, through pyarrow's filesystems: one way to list and read both.

A path without a scheme is one of this machine; with one (`s3://`, `gs://`, `file://` ..) it is a URI, whose
credentials pyarrow finds as the store's own tools do.
"""

import fnmatch
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ray_distill.data.labelled_images import DataError
from ray_distill.utils.secrets import redact

_SHOWN_NAMES = 8


@dataclass(frozen=True)
class FsPath:
    """A path in a filesystem; there need be nothing."""

    filesystem: Any
    path: str
    prefix: str = ""
    """What stands before the path when it is shown: the scheme, empty on this machine."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return not self.prefix

    def __str__(self) -> str:
        return f"{self.prefix}{self.path}"

    def __truediv__(self, name: str) -> "FsPath":
        return FsPath(self.filesystem, f"{self.path.rstrip('/')}/{name}", self.prefix)

    @property
    def parent(self) -> "FsPath":
        """The folder that it is in."""
        return FsPath(self.filesystem, self.path.rstrip("/").rpartition("/")[0] or "/", self.prefix)

    def is_folder(self) -> bool:
        """Whether a folder is there."""
        return self._is("Directory")

    def is_file(self) -> bool:
        """Whether a file is there."""
        return self._is("File")

    def _is(self, kind: str) -> bool:
        with read_errors(self):
            return bool(self.filesystem.get_file_info(self.path).type.name == kind)

    def names(self) -> list[str]:
        """What is in the folder, sorted."""
        return sorted(p.name for p, _ in self._inside(recursive=False))

    def files(self, pattern: str = "*", *, recursive: bool = False) -> list["DataFile"]:
        """The files in the folder whose name matches the pattern, sorted by path."""
        found = self._inside(recursive=recursive)
        files = (
            DataFile(place, info.size, info.mtime_ns)
            for place, info in found
            if info.is_file and fnmatch.fnmatchcase(place.name, pattern)
        )
        return sorted(files, key=lambda file: file.place.path)

    def _inside(self, *, recursive: bool) -> list[tuple["FsPath", Any]]:
        from pyarrow.fs import FileSelector

        with read_errors(self):
            infos = self.filesystem.get_file_info(FileSelector(self.path, recursive=recursive))
        return [(FsPath(self.filesystem, info.path, self.prefix), info) for info in infos]


class DataFile(NamedTuple):
    """A file that is there."""

    place: FsPath
    size: int
    mtime_ns: int | None

    def __str__(self) -> str:
        return str(self.place)

    def stamp(self) -> str:
        """What changes when the file does."""
        return f"{self.place}\t{self.size}\t{self.mtime_ns}\n"

    def read(self) -> bytes:
        """All of it. Raises: DataError."""
        # Left to itself, pyarrow unpacks what is called .gz.
        opened = self.place.filesystem.open_input_stream
        with read_errors(self.place), opened(self.place.path, compression=None) as stream:
            content: bytes = stream.read()
        return content


@contextmanager
def read_errors(place: FsPath) -> Iterator[None]:
    """Turns what a filesystem raises into a DataError that names the place."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as e:
        raise DataError(f"{place} cannot be read: {e}") from e


def fs_path(path: str) -> FsPath:
    """The place that a path or a URI names. Raises: DataError for a URI that pyarrow cannot use."""
    import pyarrow as pa
    from pyarrow.fs import FileSystem, LocalFileSystem

    scheme, separator, _ = path.partition("://")
    if not separator:
        return FsPath(LocalFileSystem(), str(Path(path).expanduser().absolute()))
    try:
        filesystem, inside = FileSystem.from_uri(path)
    except (pa.ArrowException, ValueError, OSError) as e:
        raise DataError(redact(f"{path} names no place that can be reached: {e}")) from e
    # Options and credentials of the URI are kept out of messages and of keys.
    return FsPath(filesystem, inside, "" if scheme == "file" else f"{scheme}://")


def existing_file(place: FsPath, advice: str = "") -> DataFile:
    """The file at a place. Raises: DataError with the advice if there is none."""
    with read_errors(place):
        info = place.filesystem.get_file_info(place.path)
    if not info.is_file:
        raise DataError(f"there is no file {place}{advice and '; '}{advice}")
    return DataFile(place, info.size, info.mtime_ns)


def matching_files(place: FsPath, pattern: str) -> list[DataFile]:
    """The files that a path names, sorted: those that match `pattern` in a folder, itself, or its matches.

    Raises: DataError if there is none.
    """
    if place.is_folder():
        files = place.files(pattern)
        if not files:
            there = ", ".join(place.names()[:_SHOWN_NAMES]) or "nothing"
            raise DataError(f"the folder {place} has no {pattern}; in it: {there}")
        return files
    if place.is_file():
        return [existing_file(place)]
    files = place.parent.files(place.name) if place.parent.is_folder() else []
    if not files:
        raise DataError(f"there is no file or folder {place}, and nothing matches it as a pattern")
    return files
