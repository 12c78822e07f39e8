"""A run in its storage: the files of its folder under the same names, by the same rules, and its checkpoints.

`run.json` is the last to come and the last to go, as in the folder.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ray_distill.config import ConfigError
from ray_distill.lease import LEASE, Lease
from ray_distill.run_files import CONFIG, DELETABLE, EVALUATION, IDENTITY, SUMMARY, TRAIN, Identity
from ray_distill.storage import TRIAL, Storage, StorageAwayError
from ray_distill.whole_files import written_whole

WAYS = "Use --resume to go on with the run in it, --force to delete that and start anew, or another cluster.storage."
FOLLOW_S = 10.0
"""Between two looks at a folder that grows."""

logger = logging.getLogger(__name__)


def _files(path: Path) -> list[Path]:
    """Of a folder, those that are there whole."""
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))


@dataclass(frozen=True)
class StoredRun:
    """A run's files in a storage."""

    storage: Storage

    def __str__(self) -> str:
        return f"cluster.storage {self.storage}"

    @cached_property
    def _lease(self) -> Lease:
        return Lease(self.storage)

    def train(self) -> tuple[str, Any]:
        """Ray Train's storage, with the checkpoints: a path, and pyarrow's filesystem."""
        return self.storage.for_ray(TRAIN)

    def check_apart(self, folder: Path) -> None:
        """Raises: ConfigError for a storage that is the run's folder, or one of the two in the other."""
        if not self.storage.is_local:
            return
        here, there = folder.resolve(), self.storage.folder.resolve()
        if here == there:
            raise ConfigError(f"{self}: is the run's folder, in which all is kept anyway; remove the key")
        if here.is_relative_to(there) or there.is_relative_to(here):
            raise ConfigError(f"{self}: one of it and the run's folder {folder} is in the other; use another")

    def check_free(self) -> None:
        """Raises: ConfigError if there is anything."""
        if self._names():
            raise ConfigError(f"{self}: is not empty; nothing was written. {WAYS}")

    def check_replaceable(self) -> None:
        """Raises: ConfigError unless it is free, or holds a run and nothing else."""
        names = self._names()
        if not names:
            return
        self.identity()
        if strange := sorted(names - set(DELETABLE)):
            raise ConfigError(
                f"{self}: holds {', '.join(strange)}, which no run wrote; nothing was deleted. Move that away, or use "
                "another"
            )

    def clear(self) -> None:
        """Delete the run in a storage that is held. Raises: ConfigError for one that was not `check_replaceable`."""
        self.check_replaceable()
        for name in DELETABLE:
            self.storage.delete(name)

    def _names(self) -> set[str]:
        return {name for name in self.storage.names() if name != LEASE and not name.startswith(TRIAL)}

    def identity(self) -> Identity:
        """Which run is there. Raises: ConfigError if none is."""
        try:
            return Identity.read(self.storage.read(IDENTITY) or b"")
        except ValueError:
            raise ConfigError(f"{self}: holds no run of ours (no readable {IDENTITY})") from None

    def is_finished(self) -> bool:
        """Whether it is one that has come to its end."""
        return SUMMARY in self._names()

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

    def claim(self, config_yaml: str, identity: Identity) -> None:
        """Make it one of a new run."""
        self.storage.put(CONFIG, config_yaml.encode())
        self.storage.put(IDENTITY, identity.text().encode())

    def put(self, root: Path, path: Path) -> None:
        """A file in the run's folder `root`, or all files of a folder in it."""
        self.check_held()
        for file in _files(path):
            self.storage.put(file.relative_to(root).as_posix(), file.read_bytes())

    @contextmanager
    def followed(self, root: Path, path: Path) -> Iterator[None]:
        """What changes in a folder in `root` is put every now and then, as long as the block lasts. What the storage
        does not take is put later; the end is `put`'s."""
        over, known = threading.Event(), dict[Path, int]()

        def follow() -> None:
            while not over.wait(FOLLOW_S):
                try:
                    changed = {f: t for f in _files(path) if known.get(f) != (t := f.stat().st_mtime_ns)}
                    for file, changed_ns in changed.items():
                        self.put(root, file)
                        known[file] = changed_ns
                except (StorageAwayError, OSError) as e:
                    logger.warning("%s is not kept for now: %s", path, e)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def fetch(self, root: Path) -> None:
        """What a run goes on with, into a folder that is to be its own; checkpoints stay where they are."""
        for name in (CONFIG, *self.storage.files(EVALUATION), IDENTITY):
            content, target = self.storage.read(name), root / name
            if content is None:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(target) as file:
                file.write(content)
