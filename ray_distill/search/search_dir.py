"""The folder of a search: what lies where, and who may write into it.

A search with `base.cluster.storage` has a second place (`stored_search`). Checkpoints are there alone; the rest is written
into the folder, the driver's working place, and put there too. What is there is enough to go on with the search, in another
folder on another machine, and its trials need no folder that all nodes see.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_distill.config.config import ConfigError
from ray_distill.search.config import SearchConfig
from ray_distill.search.files import IDENTITY, JOURNAL, SEARCH, TUNE, SearchIdentity
from ray_distill.search.stored_search import StoredSearch
from ray_distill.storage.lock import check_idle, held
from ray_distill.storage.remote import StorageAwayError
from ray_distill.storage.run_dir import check_free, check_same, with_password
from ray_distill.tracking.tracker import Tracker
from ray_distill.utils.atomic import write_text
from ray_distill.utils.secrets import redact


@dataclass(frozen=True)
class SearchDir:
    """A search's files."""

    path: Path
    stored: StoredSearch | None = None
    """Where the search is kept too."""

    @property
    def search(self) -> Path:
        """The resolved search."""
        return self.path / SEARCH

    @property
    def identity(self) -> Path:
        """Which search the folder belongs to."""
        return self.path / IDENTITY

    @property
    def journal(self) -> Path:
        """All that was done."""
        return self.path / JOURNAL

    @property
    def best(self) -> Path:
        """The best trial's configuration, ready for `distill`."""
        return self.path / "best.yaml"

    @property
    def artifact(self) -> Path:
        """The best trial's distilled dataset."""
        return self.path / "best.parquet"

    @property
    def summary(self) -> Path:
        """What the search's time went into."""
        return self.path / "summary.json"

    def tune_for_ray(self) -> tuple[str, Any]:
        """Tune's storage, with the trials' checkpoints: a path, and pyarrow's filesystem, None for this machine's."""
        return self.stored.tune() if self.stored else (str((self.path / TUNE).resolve()), None)

    def new_attempt(self) -> str:
        """The name in Tune's storage of what begins now."""
        tune = self.path / TUNE
        there = self.stored.storage.names(TUNE) if self.stored else {p.name for p in tune.glob("attempt-*")}
        return f"attempt-{1 + len({name for name in there if name.startswith('attempt-')})}"

    def place_of(self, checkpoint: str) -> str:
        """Where a checkpoint is, by its name from the search's folder, as Ray takes it with `tune_for_ray`'s filesystem."""
        if self.stored:
            return self.stored.storage.for_ray(checkpoint)[0]
        return str((self.path / checkpoint).resolve())

    def shown(self, checkpoint: str) -> str:
        """The same for people."""
        return f"{self.stored.storage}/{checkpoint}" if self.stored else str(self.path / checkpoint)

    @contextmanager
    def opened(self, checkpoint: str) -> Iterator[Path]:
        """A checkpoint's folder, to be read while the block lasts. Raises: StorageAwayError."""
        if self.stored is None:
            yield self.path / checkpoint
            return
        with tempfile.TemporaryDirectory() as folder:
            self.stored.bring(Path(folder), self.stored.storage.files(checkpoint))
            yield Path(folder) / checkpoint

    def forget(self, name: str) -> None:
        """Delete a folder of files that nobody needs any more, as far as it can be."""
        if self.stored is None:
            shutil.rmtree(self.path / name, ignore_errors=True)
            return
        with suppress(StorageAwayError):
            self.stored.storage.delete(name)

    def check_free(self, advice: str) -> None:
        """Raises: ConfigError if the folder holds anything but an MLflow store, or the storage anything."""
        check_free(self.path, advice)
        if self.stored:
            self.stored.check_apart(self.path)
            self.stored.check_free()

    def check_idle(self) -> None:
        """Raises: ConfigError if a process holds the folder; of the storage that is known when it is held."""
        check_idle(self.path)
        if self.stored:
            self.stored.look()

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder, made if need be, for this process alone, however it ends; then the storage.

        Raises: ConfigError, StorageError.
        """
        with held(self.path), self.stored.held() if self.stored else nullcontext():
            yield

    def open(self, search: SearchConfig, tracker: Tracker) -> None:
        """Claim the folder for a new search, and its storage before it."""
        self.path.mkdir(parents=True, exist_ok=True)
        kept = str(self.stored.storage) if self.stored else None
        identity = SearchIdentity(search.hash, redact(tracker.uri), tracker.run_id, kept)
        if self.stored:
            self.stored.claim(search.to_yaml(), identity)
        write_text(self.search, search.to_yaml())
        write_text(self.identity, identity.text())

    def store(self, *paths: Path) -> None:
        """Put files of the folder into the storage, if there is one. Raises: StorageAwayError."""
        if self.stored:
            for path in paths:
                self.stored.put(self.path, path)

    def keep(self) -> None:
        """Put what says how far the search is into the storage, if there is one. Raises: StorageAwayError."""
        if self.stored:
            self.stored.keep(self.path)

    def fetch(self) -> None:
        """Make a folder that is held, and that `reopen` found to be the search's or free, that of the search in the storage."""
        if self.stored:
            self.stored.fetch(self.path)

    def reopen(self, search: SearchConfig) -> Tracker:
        """The tracker of the search to go on with.

        Raises: ConfigError if there is none, or another one, or one that is kept elsewhere.
        """
        where = self.stored or self.path
        identity = self._read_identity() if self.stored is None else self._stored_identity(self.stored)
        if identity.search_hash != search.hash:
            raise ConfigError(
                f"{where}: holds another search (hash {identity.search_hash}, yours is {search.hash}); only budget.trials "
                f"and budget.hours may change. Compare yours with {where}/{SEARCH}, or use another --out"
            )
        if self.stored is None and identity.storage is not None:
            raise ConfigError(
                f"{self.path}: the checkpoints of its trials are in a storage; add --set "
                f"base.cluster.storage={identity.storage}"
            )
        return Tracker(with_password(identity.uri, self.path), identity.run_id)

    def _stored_identity(self, stored: StoredSearch) -> SearchIdentity:
        """Which search is in the storage: that of the folder, unless that is free. Raises: ConfigError."""
        stored.check_apart(self.path)
        there = stored.identity()
        check_same(self.path, self._read_identity() if self.identity.exists() else None, stored, there)
        return there

    def _read_identity(self) -> SearchIdentity:
        """Raises: ConfigError without a readable one."""
        try:
            return SearchIdentity.read(self.identity.read_bytes())
        except (OSError, ValueError):
            raise ConfigError(f"{self.path}: holds no search to resume (no readable {IDENTITY})") from None
