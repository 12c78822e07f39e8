"""What a storage holds of one piece of work, a run or a search: the files of its folder under the same names.

Who may work in it is as sure as a `lease` is. Which files there are is the matter of `stored_run` and `stored_search`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from ray_distill.config.config import ConfigError
from ray_distill.storage.lease import LEASE, Lease
from ray_distill.storage.remote import TRIAL, Storage
from ray_distill.utils.atomic import atomic_write


def whole_files(path: Path) -> list[Path]:
    """Of a folder, the files that are there whole; a file itself."""
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))


@dataclass(frozen=True)
class WorkDir:
    """The files of a run, or of a search, in a storage."""

    storage: Storage
    what: ClassVar[str]
    """It is of, for people."""
    ways: ClassVar[str]
    """What to do where something is already."""

    def __str__(self) -> str:
        return f"cluster.storage {self.storage}"

    @cached_property
    def _lease(self) -> Lease:
        return Lease(self.storage)

    def check_apart(self, folder: Path) -> None:
        """Raises: ConfigError for a storage that is the work's folder, or one of the two in the other."""
        if not self.storage.is_local:
            return
        here, there = folder.resolve(), self.storage.folder.resolve()
        if here == there:
            raise ConfigError(
                f"{self}: is the {self.what}'s folder, in which all is kept anyway; remove the key"
            )
        if here.is_relative_to(there) or there.is_relative_to(here):
            raise ConfigError(
                f"{self}: one of it and the {self.what}'s folder {folder} is in the other; use another"
            )

    def check_free(self) -> None:
        """Raises: ConfigError if there is anything."""
        if self.names():
            raise ConfigError(f"{self}: is not empty; nothing was written. {self.ways}")

    def names(self) -> set[str]:
        """What is there, but for the lease and what tried the place out."""
        return {name for name in self.storage.names() if name != LEASE and not name.startswith(TRIAL)}

    def look(self) -> None:
        """Look for another driver at work, which is known for certain when it is held. Raises: StorageError."""
        self._lease.look()

    @contextmanager
    def held(self) -> Iterator[None]:
        """The storage for this process alone, as sure as a `lease` is. Raises: StorageError."""
        self._lease.take()
        try:
            yield
        finally:
            self._lease.release()

    def check_held(self) -> None:
        """Raises: LostLeaseError if another driver has taken it from this one."""
        self._lease.check()

    def put(self, root: Path, path: Path) -> None:
        """A file in the folder `root`, or all files of a folder in it."""
        self.check_held()
        for file in whole_files(path):
            self.storage.put(file.relative_to(root).as_posix(), file.read_bytes())

    def bring(self, root: Path, names: Iterable[str]) -> None:
        """Those of these files that are there, into a folder of this machine, one after another."""
        for name in names:
            content, target = self.storage.read(name), root / name
            if content is None:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target) as file:
                file.write(content)
