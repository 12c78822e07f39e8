"""The folder of a run: what lies where, and who may write into it.

`run.json` ties the folder to one experiment (by the configuration's hash) and to one MLflow run, so that
a resumed run goes on in both. A password in the store's URI is not kept: a run that is resumed takes it from
$MLFLOW_TRACKING_URI again. A folder that holds anything is never written into without being asked: `--resume`
goes on with the run in it, `--force` puts a new run in its place.

What `--force` may delete: in a folder whose `run.json` says that it is one of ours, the files that a run writes, and
those that `evaluate` and `show` put beside them. Not MLflow's store, which holds the records of the old run and of
others. A folder that holds anything else, or in which a process is at work, is left as it is. `run.json` is
the last to go, so that a folder that was half cleared can be cleared again.

A run with `cluster.storage` has a second place (`stored_run`), by the same rules. Checkpoints are there alone; the rest is
written into the folder, the driver's working place, and then put there too. What is there is enough to go on with the
run, in another folder on another machine.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ray_distill.config.config import Config, ConfigError
from ray_distill.storage.lock import LOCK, check_idle, held
from ray_distill.storage.run_files import (
    ARTIFACT,
    CONFIG,
    DELETABLE,
    IDENTITY,
    SHEET,
    SUMMARY,
    TRAIN,
    Identity,
    evaluation_folder,
)
from ray_distill.storage.stored_run import StoredRun
from ray_distill.storage.workdir import WorkDir
from ray_distill.tracking.tracker import Tracker
from ray_distill.tracking.uri import store_uri
from ray_distill.utils.atomic import write_text
from ray_distill.utils.secrets import MASK, redact

STORE = {"mlflow.db", "mlflow.db-journal", "mlflow.db-wal", "mlflow.db-shm", "mlartifacts"}
"""MLflow's, in a folder that was given with --out. Alone they are not a run: they may be shared, or left by a run that
was killed as it began."""


def check_free(path: Path, advice: str) -> None:
    """Raises: ConfigError if the folder holds anything but an MLflow store, or cannot be made."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if there == path and (not there.is_dir() or {p.name for p in there.iterdir()} - STORE - {LOCK}):
        raise ConfigError(f"{path}: exists and is not empty; nothing was written. {advice}")
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            f"--out {path}: {there} is not a folder that can be written into; use another --out"
        )


def with_password(uri: str, path: Path) -> str:
    """The URI of a store that a folder keeps masked, as it was.

    Raises: ConfigError if it had a password that the environment does not know.
    """
    if MASK not in uri:
        return uri
    known = store_uri(None, path)
    if redact(known) != uri:
        raise ConfigError(
            f"{path}: what is in it is recorded at {uri}, and its password is not kept; set $MLFLOW_TRACKING_URI to "
            "that URI with its password"
        )
    return known


class Tied(Protocol):
    """What the identity of a run, and of a search, says alike."""

    @property
    def run_id(self) -> str:
        """MLflow's."""

    @property
    def storage(self) -> str | None:
        """Where the checkpoints are, if not in the folder."""


def check_same(path: Path, here: Tied | None, stored: WorkDir, there: Tied) -> None:
    """Raises: ConfigError unless a folder is free, where nothing is known of it, or what is in it is what is stored."""
    if here is None:
        check_free(path, f"The {stored.what} in {stored} goes on in a new --out, or in its own.")
    elif here.run_id != there.run_id:
        raise ConfigError(
            f"{path}: holds another {stored.what} than {stored} does (MLflow's {here.run_id}, not {there.run_id}); use "
            f"another --out, or the cluster.storage of that {stored.what}"
            + ("" if here.storage else ", which has none")
        )


@dataclass(frozen=True)
class RunDir:
    """A run's files."""

    path: Path
    stored: StoredRun | None = None
    """Where the run is kept too."""

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / CONFIG

    @property
    def identity(self) -> Path:
        """Which experiment and which MLflow run the folder belongs to."""
        return self.path / IDENTITY

    @property
    def train(self) -> Path:
        """Ray Train's storage, with the checkpoints, unless they are in the run's."""
        return self.path / TRAIN

    @property
    def begun(self) -> bool:
        """Whether there is a run to go on with. Raises: StorageAwayError."""
        return IDENTITY in self.stored.names() if self.stored else self.identity.exists()

    def train_for_ray(self) -> tuple[str, Any]:
        """Where Ray Train is to keep its checkpoints: a path, and pyarrow's filesystem, None for this machine's."""
        return self.stored.train() if self.stored else (str(self.train.resolve()), None)

    @property
    def artifact(self) -> Path:
        """The distilled dataset."""
        return self.path / ARTIFACT

    @property
    def contact_sheet(self) -> Path:
        """A picture of the distilled dataset."""
        return self.path / SHEET

    @property
    def evaluation(self) -> Path:
        """The folder of the evaluation: the one that `evaluate` takes for the artefact."""
        return evaluation_folder(self.artifact)

    @property
    def summary(self) -> Path:
        """Seconds and accuracies."""
        return self.path / SUMMARY

    def train_place(self) -> Path | str:
        """The same for people; a path, where the room on its disk can be looked at."""
        if self.stored is None:
            return self.train
        path, _ = self.stored.train()
        return Path(path) if self.stored.storage.is_local else f"{self.stored.storage}/{TRAIN}"

    def check_free(self, advice: str) -> None:
        """Raises: ConfigError if the folder holds anything but an MLflow store, or the storage anything."""
        check_free(self.path, advice)
        if self.stored:
            self.stored.check_apart(self.path)
            self.stored.check_free()

    def check_replaceable(self) -> None:
        """Raises: ConfigError unless the folder is free, or holds a run that nobody works on and nothing else; the
        storage too."""
        self._check_ours()
        if self.stored:
            self.stored.check_apart(self.path)
            self.stored.check_replaceable()
        self.check_idle()

    def _check_ours(self) -> None:
        if not self.identity.exists():
            check_free(
                self.path, "It has no run.json, and --force deletes nothing but runs. Use another --out."
            )
            return
        self._read_identity()
        strange = sorted(self._names() - STORE - {LOCK} - set(DELETABLE))
        if strange:
            raise ConfigError(
                f"{self.path}: holds {', '.join(strange)}, which no run wrote; nothing was deleted. Move that away, or "
                "use another --out"
            )

    def clear(self) -> None:
        """Delete the run in a folder that is held, and in its storage.

        Raises: ConfigError for one that was not `check_replaceable`.
        """
        self._check_ours()
        if self.stored:
            self.stored.clear()
        for path in (self.path / name for name in DELETABLE):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder, made if need be, for this process alone, however it ends; then the storage.

        Raises: ConfigError, StorageError.
        """
        with held(self.path), self.stored.held() if self.stored else nullcontext():
            yield

    def check_idle(self) -> None:
        """Raises: ConfigError if a process holds the folder; of the storage that is known when it is held."""
        check_idle(self.path)
        if self.stored:
            self.stored.look()

    def check_held(self) -> None:
        """Raises: LostLeaseError if another driver has taken the storage from this one."""
        if self.stored:
            self.stored.check_held()

    def open(self, config: Config, tracker: Tracker) -> None:
        """Claim the folder for a new run, and its storage before it."""
        self.path.mkdir(parents=True, exist_ok=True)
        kept = str(self.stored.storage) if self.stored else None
        identity = Identity(config.hash, redact(tracker.uri), tracker.run_id, kept)
        if self.stored:
            self.stored.claim(config.to_yaml(), identity)
        write_text(self.config, config.to_yaml())
        write_text(self.identity, identity.text())

    def store(self, *paths: Path) -> None:
        """Put files of the folder, and folders in it, into the storage, if there is one. Raises: StorageAwayError."""
        if self.stored:
            for path in paths:
                self.stored.put(self.path, path)

    def followed(self) -> AbstractContextManager[None]:
        """The evaluation, as it grows, is put into the storage, if there is one, as long as the block lasts."""
        return self.stored.followed(self.path, self.evaluation) if self.stored else nullcontext()

    def fetch(self) -> None:
        """Make a folder that is held, and that `reopen` found free, that of the run in the storage."""
        if self.stored and not self.identity.exists():
            self.stored.fetch(self.path)

    def reopen(self, config: Config) -> Tracker:
        """The tracker of the run to go on with.

        Raises: ConfigError if there is none, a finished one, or one of another configuration, store or storage.
        """
        where = self.stored or self.path
        identity = self._read_identity() if self.stored is None else self._stored_identity(self.stored)
        if identity.config_hash != config.hash:
            raise ConfigError(
                f"{where}: holds a run of another configuration (hash {identity.config_hash}, yours is {config.hash}); "
                f"compare yours with {where}/{CONFIG}, or use another --out"
            )
        if self.stored.is_finished() if self.stored else self.summary.exists():
            raise ConfigError(f"{where}: holds a run that is finished; its results are in {where}/{SUMMARY}")
        if self.stored is None and identity.storage is not None:
            raise ConfigError(
                f"{self.path}: the checkpoints of its run are in a storage; add --set cluster.storage={identity.storage}"
            )
        wanted = config.tracking.uri
        if wanted is not None and store_uri(wanted, self.path) != identity.uri:
            raise ConfigError(
                f"tracking.uri: the run in {where} is recorded at {identity.uri} (found {wanted!r}); "
                "remove the key, or use another --out"
            )
        return Tracker(with_password(identity.uri, self.path), identity.run_id)

    def _stored_identity(self, stored: StoredRun) -> Identity:
        """Which run is in the storage: that of the folder, unless that is free. Raises: ConfigError."""
        stored.check_apart(self.path)
        there = stored.identity()
        check_same(self.path, self._read_identity() if self.identity.exists() else None, stored, there)
        return there

    def mlflow_store(self) -> str | None:
        """The store in which the run is recorded; None if the folder does not say. Raises: ConfigError, as `reopen`."""
        try:
            identity = self._read_identity()
        except ConfigError:
            return None
        return with_password(identity.uri, self.path)

    def _names(self) -> set[str]:
        return {path.name for path in self.path.iterdir()}

    def _read_identity(self) -> Identity:
        """Raises: ConfigError without a readable one."""
        try:
            return Identity.read(self.identity.read_bytes())
        except (OSError, ValueError):
            raise ConfigError(f"{self.path}: holds no run of ours (no readable {IDENTITY})") from None
