"""Files on this machine or in a store such as s3://, through pyarrow's file systems: one way to list, read and write both.

A path without a scheme is on this machine; with one (`s3://`, `gs://`, `file://`, ..) it is a URI, whose credentials
pyarrow finds as the store's own tools do: in the environment, in files of the home folder, by the machine's role.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from ray_distill.utils.atomic import atomic_write

FS_ERRORS = (OSError, ValueError, pa.ArrowException)
"""What `resolve` raises for a URI that pyarrow cannot use."""


def resolve(uri: str) -> tuple[FileSystem, str]:
    """The file system and the path in it that a path or a URI names. Raises: FS_ERRORS."""
    if "://" in uri or uri.startswith("file:/"):
        filesystem, path = FileSystem.from_uri(uri)
        return filesystem, path
    return LocalFileSystem(), str(Path(uri).expanduser().absolute())


@contextmanager
def translated(failure: Callable[[Exception], Exception]) -> Iterator[None]:
    """Raises, in place of an error of a file system, what `failure` makes of it."""
    try:
        yield
    except (OSError, pa.ArrowException) as e:
        raise failure(e) from e


@dataclass(frozen=True)
class Location:
    """A path in a file system; nothing needs to be there. Names are paths below it, with `/`; the empty one is itself.

    What a file system raises comes as it is, unless a subclass translates it in `errors`.
    """

    filesystem: Any
    path: str

    def errors(self) -> AbstractContextManager[None]:
        """Around each call of the file system."""
        return nullcontext()

    @property
    def is_local(self) -> bool:
        """Whether it is a path of this machine, or mounted by it."""
        return isinstance(self.filesystem, LocalFileSystem)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> Self:
        """The folder that it is in."""
        return replace(self, path=self.path.rstrip("/").rpartition("/")[0] or "/")

    def __truediv__(self, name: str) -> Self:
        return replace(self, path=self.path_of(name))

    def path_of(self, name: str) -> str:
        """The path in the file system."""
        return f"{self.path.rstrip('/')}/{name}" if name else self.path

    def info(self, name: str = "") -> Any:
        """Pyarrow's FileInfo."""
        with self.errors():
            return self.filesystem.get_file_info(self.path_of(name))

    def entries(self, name: str = "", *, recursive: bool = False, missing_ok: bool = False) -> list[Any]:
        """Pyarrow's FileInfo of all that is in a folder; nothing, if one may be missing and is."""
        selector = FileSelector(self.path_of(name), allow_not_found=missing_ok, recursive=recursive)
        with self.errors():
            return list(self.filesystem.get_file_info(selector))

    def stream(self, name: str = "") -> Any:
        """An open file, as pyarrow's NativeFile; errors come as they are."""
        # Left to itself, pyarrow unpacks what is called .gz.
        return self.filesystem.open_input_stream(self.path_of(name), compression=None)

    def read(self, name: str = "") -> bytes | None:
        """A file; None if there is none."""
        if not self.info(name).is_file:
            return None
        with self.errors():
            try:
                with self.stream(name) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                # Deleted in between.
                return None

    def put(self, name: str, content: bytes) -> None:
        """Write or replace a file atomically: a reader sees all of the old one or all of the new one."""
        with self.errors():
            if self.is_local:
                path = Path(self.path_of(name))
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as file:
                    file.write(content)
                return
            # An object is there when its stream is closed, and not before.
            with self.filesystem.open_output_stream(self.path_of(name), compression=None) as out:
                out.write(content)

    def delete(self, name: str) -> None:
        """Delete a file, or a folder with all that is in it, if there is one; of a link, the link alone."""
        with self.errors():
            if self.is_local:
                path = Path(self.path_of(name))
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
                return
            match self.filesystem.get_file_info(self.path_of(name)).type:
                case FileType.Directory:
                    self.filesystem.delete_dir(self.path_of(name))
                case FileType.File:
                    self.filesystem.delete_file(self.path_of(name))
