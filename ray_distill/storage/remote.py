"""A place for what must outlive the machine of a run's driver: a folder of any of pyarrow's filesystems.

`cluster.storage` names it, by a path that all nodes see (NFS) or by a URI (`s3://bucket/prefix`, `gs://..`). A run lies
in it as in its folder (`run_folder`), with `train/`, Ray Train's checkpoints, which the workers write there and nowhere
else, and with `.driver.json` while a driver is at work (`lease`).

Credentials are found by pyarrow, in each process for itself, as the store's own tools find them: in the environment, in
files of the home folder, by the machine's role. None are ever sent to a worker, nor may the URI hold any.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from ray_distill.errors import RunError, UserError, first_line
from ray_distill.utils.atomic import atomic_write
from ray_distill.utils.secrets import redact
from ray_distill.utils.timeout import call_with_timeout

TRIAL = ".ray-distill-"
"""How the name of a file begins that is there to try the place out; one stays where nothing may be deleted."""
PATIENCE_S = 60
"""For a place to answer when it is tried out."""
CLOUD = (
    "; is it written as it should be, is it there (a bucket must be), do its credentials and its endpoint stand in the "
    "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL; GOOGLE_APPLICATION_CREDENTIALS), and do they "
    "allow to write there?"
)
"""What to look at where a store in a cloud does not do."""


class StorageError(UserError):
    """A place that the user named and that cannot be used."""


class StorageAwayError(RunError):
    """The place does not take, or does not give, what it should. What is on this machine's disk does not depend on it."""


@dataclass(frozen=True)
class Storage:
    """The place of one run. Names are paths in it, with `/`."""

    uri: str
    """As it was given; shown masked."""
    filesystem: Any
    path: str

    @classmethod
    def at(cls, uri: str) -> "Storage":
        """The place that a path or a URI names; there need be nothing.

        Raises: StorageError for one that pyarrow cannot use, or that does not take a file, by what it answers.
        """
        try:
            return call_with_timeout(lambda: cls._tried(uri), PATIENCE_S)
        except (OSError, ValueError, pa.ArrowException, RunError) as e:
            said = f"{uri}: cannot be used as storage: {first_line(e).removeprefix(f'{uri}: ')}"
            raise StorageError(redact(said) + (CLOUD if "://" in uri else "")) from None

    @classmethod
    def _tried(cls, uri: str) -> "Storage":
        if ":/" in uri:
            storage = cls(uri, *fs.FileSystem.from_uri(uri))
        else:
            storage = cls(uri, fs.LocalFileSystem(), str(Path(uri).expanduser().absolute()))
        storage.try_out()
        return storage

    def __str__(self) -> str:
        return redact(self.uri)

    @property
    def is_local(self) -> bool:
        """Whether it is a folder, of this machine or mounted by it."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @property
    def folder(self) -> Path:
        """It, where it is local."""
        return Path(self.path)

    def nearest(self) -> Path:
        """Where it is local: it, or the first folder above it that is there."""
        return next(path for path in (self.folder, *self.folder.parents) if path.exists())

    def inside(self, name: str) -> "Storage":
        """A place in it, as one of its own."""
        uri, mark, query = self.uri.partition("?")
        return Storage(f"{uri.rstrip('/')}/{name}{mark}{query}", self.filesystem, self._at(name))

    def for_ray(self, name: str) -> tuple[str, Any]:
        """A folder in it as Ray takes one: a path, and pyarrow's filesystem."""
        return self._at(name), self.filesystem

    def try_out(self) -> None:
        """Write a small file, read it, delete it: beside what is there, or, where no folder is there yet, in the one that
        it would be made in. Raises: StorageAwayError."""
        there = self
        if self.is_local:
            there = Storage(self.uri, self.filesystem, str(self.nearest()))
        name, content = f"{TRIAL}{uuid.uuid4().hex}", os.urandom(100)
        there.put(name, content)
        if (back := there.read(name)) != content:
            raise StorageAwayError(
                f"what was written {'is not there' if back is None else 'came back changed'}"
            )
        there.delete(name)

    def names(self, folder: str = "") -> set[str]:
        """What is in a folder; nothing in one that is not there. Raises: StorageAwayError."""
        return {Path(info.path).name for info in self._inside(folder, recursive=False)}

    def files(self, folder: str) -> list[str]:
        """All files in a folder and in those inside it, by their names in the storage. Raises: StorageAwayError."""
        start = len(self._at("")) + 1
        return sorted(info.path[start:] for info in self._inside(folder, recursive=True) if info.is_file)

    def _inside(self, folder: str, *, recursive: bool) -> list[Any]:
        select = fs.FileSelector(self._at(folder), allow_not_found=True, recursive=recursive)
        with self._asked():
            return list(self.filesystem.get_file_info(select))

    def read(self, name: str) -> bytes | None:
        """A file; None if there is none. Raises: StorageAwayError."""
        with self._asked():
            if not self.filesystem.get_file_info(self._at(name)).is_file:
                return None
            try:
                with self.filesystem.open_input_stream(self._at(name), compression=None) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                # Deleted in between.
                return None

    def put(self, name: str, content: bytes) -> None:
        """Write a file whole, in place of one of its name: a reader sees the one or the other. Raises: StorageAwayError."""
        with self._asked():
            if self.is_local:
                path = Path(self._at(name))
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as file:
                    file.write(content)
                return
            # An object is there when its stream is closed, and not before.
            with self.filesystem.open_output_stream(self._at(name), compression=None) as out:
                out.write(content)

    def delete(self, name: str) -> None:
        """A file, or a folder with all that is in it; nothing, if there is neither. Raises: StorageAwayError."""
        with self._asked():
            info = self.filesystem.get_file_info(self._at(name))
            if info.type == fs.FileType.Directory:
                self.filesystem.delete_dir(info.path)
            elif info.type != fs.FileType.NotFound:
                self.filesystem.delete_file(info.path)

    def _at(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}".rstrip("/")

    @contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as e:
            raise StorageAwayError(redact(f"{self}: {first_line(e)}")) from e
