"""The work folder of a run or a search: its lock, its identity, and its mirror in a storage.

`run.json` or `search.json` ties a folder to one configuration, by its hash, and to one MLflow run, so that resumed work
continues both. A password in the store's URI is not saved: it comes from $MLFLOW_TRACKING_URI again. A folder that is not
empty is never written to unless the user asks for it.

With `cluster.storage` everything that the driver writes into the folder is mirrored to the storage, where Ray keeps the
checkpoints. The storage alone is enough to resume, in another folder on another machine. README.md in this package has
the whole protocol.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, NoReturn, Protocol, TypeVar

from pyarrow.fs import LocalFileSystem

from ray_distill.config.config import ConfigError
from ray_distill.storage.lease import LEASE, Lease
from ray_distill.storage.remote import Storage
from ray_distill.tracking.tracker import Tracker
from ray_distill.tracking.uri import store_uri
from ray_distill.utils.fs import Location
from ray_distill.utils.lock import file_lock
from ray_distill.utils.secrets import MASK, redact

LOCK = ".lock"
"""In the folder, locked by the process that works there."""
MLFLOW_FILES = {"mlflow.db", "mlflow.db-journal", "mlflow.db-wal", "mlflow.db-shm", "mlartifacts"}
"""MLflow's store in a folder that was given with --out. On their own they do not make a folder used: the store may be
shared, or left over from a run that was killed at its start."""


class Hashed(Protocol):
    """A configuration, of a run or of a search."""

    @property
    def hash(self) -> str:
        """Of what determines its results."""

    def to_yaml(self) -> str:
        """The resolved configuration."""


ConfigT = TypeVar("ConfigT", bound=Hashed)


class Identity(NamedTuple):
    """Which configuration a folder or storage belongs to, and where that is recorded and stored."""

    hash: str
    uri: str
    """Of the MLflow store, redacted."""
    run_id: str
    """MLflow's."""
    storage: str | None
    """Where the checkpoints are, if not in the folder."""


class WorkDir(ABC, Generic[ConfigT]):
    """A folder that one driver at a time works in, and its mirror in a storage, if it has one."""

    kind: ClassVar[str]
    """What it holds, for messages."""
    config_name: ClassVar[str]
    identity_name: ClassVar[str]
    hash_key: ClassVar[str]
    """In the identity file."""
    ray_folder: ClassVar[str]
    """Ray's part of the folder or storage, with the checkpoints."""
    storage_key: ClassVar[str] = "cluster.storage"
    resume_hint: ClassVar[str] = ""

    def __init__(self, path: Path, storage: Storage | None = None) -> None:
        self.path, self.storage = path, storage

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / self.config_name

    @property
    def identity(self) -> Path:
        """Which configuration and MLflow run the folder belongs to."""
        return self.path / self.identity_name

    @property
    def local(self) -> Location:
        """The folder as the same kind of thing as the storage."""
        return Location(LocalFileSystem(), str(self.path.resolve()))

    @property
    def primary(self) -> Location:
        """Where the work is resumed from, and its checkpoints are: the storage, if there is one, or the folder."""
        return self.places[0]

    @property
    def places(self) -> tuple[Location, ...]:
        """The storage, if there is one, and the folder, in the order of writing and deleting."""
        return (self.storage, self.local) if self.storage else (self.local,)

    def ray_storage(self) -> tuple[str, Any]:
        """Where Ray saves checkpoints: a path, and pyarrow's file system, None for this machine's."""
        return self.primary.path_of(self.ray_folder), self.storage and self.storage.filesystem

    def describe(self, place: Location) -> str:
        """The folder or the storage, for messages."""
        return str(self.path) if place is not self.storage else f"{self.storage_key} {self.storage}"

    def check_empty(self, advice: str) -> None:
        """Raises: ConfigError if the folder has anything but an MLflow store, or cannot be written to, or if the storage
        has anything."""
        self._check_folder_empty(advice)
        if self.storage:
            self._check_apart(self.storage)
            if self._names(self.storage):
                advice = advice.replace("--out", self.storage_key)
                self._fail(self.storage, f"is not empty; nothing was written. {advice}")

    def check_unlocked(self) -> None:
        """Raises: ConfigError if a process has locked the folder; StorageError if a driver has been seen in the storage,
        which only `lock` finds out for certain."""
        if (self.path / LOCK).exists():
            with self._folder_lock():
                pass
        if self.storage:
            self._lease.poll()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder, created if needed, then lease the storage, for this process. Raises: ConfigError, StorageError."""
        with ExitStack() as stack:
            stack.enter_context(self._folder_lock())
            if self.storage:
                self._lease.acquire()
                stack.callback(self._lease.release)
            yield

    def check_lease(self) -> None:
        """Raises: LostLeaseError if another driver has taken over the storage."""
        if self.storage:
            self._lease.check()

    def claim(self, config: ConfigT, tracker: Tracker) -> None:
        """Make the storage, then the folder, those of new work."""
        storage = str(self.storage) if self.storage else None
        values = {self.hash_key: config.hash, "uri": redact(tracker.uri), "run_id": tracker.run_id}
        identity = json.dumps(values | {"storage": storage}, indent=2) + "\n"
        for place in self.places:
            # The identity comes last: with it the claim is complete.
            place.put(self.config_name, config.to_yaml().encode())
            place.put(self.identity_name, identity.encode())

    def tracker_to_resume(self, config: ConfigT) -> Tracker:
        """The tracker of the work to resume.

        Raises: ConfigError if there is nothing to resume, or if it has another configuration or storage.
        """
        if self.storage:
            self._check_apart(self.storage)
        place = self.primary
        identity = self.read_identity(place)
        if self.storage:
            self._check_mirrored(self.storage, identity)
        if identity.hash != config.hash:
            self._fail(
                place,
                f"holds a {self.kind} of another configuration (hash {identity.hash}, yours is {config.hash})"
                f"{self.resume_hint}; compare yours with {self.describe(place)}/{self.config_name}, or use another --out",
            )
        if not self.storage and identity.storage is not None:
            self._fail(
                place, f"its checkpoints are in a storage; add --set {self.storage_key}={identity.storage}"
            )
        return Tracker(self.with_password(identity.uri), identity.run_id)

    def read_identity(self, place: Location) -> Identity:
        """Raises: ConfigError without a readable one."""
        try:
            values = json.loads(place.read(self.identity_name) or b"")
            identity = Identity(values[self.hash_key], values["uri"], values["run_id"], values.get("storage"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            identity = Identity("", "", "", None)
        required = identity if identity.storage is not None else identity[:3]
        if not all(isinstance(value, str) and value for value in required):
            self._fail(place, f"holds no {self.kind} (no readable {self.identity_name})")
        return identity

    def with_password(self, uri: str) -> str:
        """The URI of the MLflow store that the identity has redacted.

        Raises: ConfigError if it had a password that the environment does not have.
        """
        if MASK not in uri:
            return uri
        known = store_uri(None, self.path)
        if redact(known) != uri:
            raise ConfigError(
                f"{self.path}: is recorded at {uri}, and its password is not saved; set $MLFLOW_TRACKING_URI to that URI "
                "with its password"
            )
        return known

    def store(self, *paths: Path) -> None:
        """Mirror files of the folder, and folders in it, to the storage, if there is one. Raises: StorageUnavailableError."""
        if not self.storage:
            return
        for path in paths:
            self.check_lease()
            for file in complete_files(path):
                self.storage.put(file.relative_to(self.path).as_posix(), file.read_bytes())

    @abstractmethod
    def fetch(self) -> None:
        """Download what is needed to resume, into a locked folder; checkpoints stay in the storage."""

    def _download(self, folder: Path, names: Iterable[str]) -> None:
        """Files of the storage, those that exist, in this order."""
        target = Location(LocalFileSystem(), str(folder))
        for name in names:
            if (content := self.primary.read(name)) is not None:
                target.put(name, content)

    @cached_property
    def _lease(self) -> Lease:
        assert self.storage is not None
        return Lease(self.storage)

    @contextmanager
    def _folder_lock(self) -> Iterator[None]:
        def refuse() -> None:
            raise ConfigError(
                f"{self.path}: another process is at work in it; wait for it to end, or stop it"
            )

        with file_lock(self.path / LOCK, refuse):
            yield

    def _names(self, place: Location) -> set[str]:
        """What is in the folder or storage, but for locks and MLflow's store."""
        names = {info.base_name for info in place.entries(missing_ok=True)}
        return names - ({LEASE} if place is self.storage else MLFLOW_FILES | {LOCK})

    def _check_folder_empty(self, advice: str) -> None:
        existing = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if existing == self.path and (not existing.is_dir() or self._names(self.local)):
            self._fail(self.local, f"exists and is not empty; nothing was written. {advice}")
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise ConfigError(f"--out {self.path}: {existing} is not a writable folder; use another --out")

    def _check_apart(self, storage: Storage) -> None:
        """Raises: ConfigError if the storage is the folder, or one of them is in the other."""
        if not storage.is_local:
            return
        folder, mirror = self.path.resolve(), Path(storage.path).resolve()
        if folder == mirror:
            self._fail(storage, f"is the {self.kind}'s folder, which holds everything anyway; remove the key")
        if folder.is_relative_to(mirror) or mirror.is_relative_to(folder):
            self._fail(
                storage, f"one of it and the {self.kind}'s folder {self.path} is in the other; use another"
            )

    def _check_mirrored(self, storage: Storage, stored: Identity) -> None:
        """Raises: ConfigError unless the folder is empty, or what the storage holds is its mirror."""
        if not self.identity.exists():
            self._check_folder_empty(
                f"Resume the {self.kind} of {self.describe(storage)} in a new --out, or in its own."
            )
            return
        local = self.read_identity(self.local)
        if local.run_id != stored.run_id:
            self._fail(
                self.local,
                f"holds another {self.kind} than {self.describe(storage)} (MLflow run {local.run_id}, not "
                f"{stored.run_id}); use another --out, or the {self.storage_key} of that {self.kind}"
                + ("" if local.storage else ", which has none"),
            )

    def _fail(self, place: Location, reason: str) -> NoReturn:
        raise ConfigError(f"{self.describe(place)}: {reason}")


def complete_files(path: Path) -> list[Path]:
    """All files of a folder that are not being written; a file itself."""
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
