"""The folder of a run: what lies where, and who may write into it.

`run.json` ties the folder to one experiment (by the configuration's hash) and to one MLflow run, so that
a resumed run goes on in both. A password in the store's URI is not kept: a run that is resumed takes it from
$MLFLOW_TRACKING_URI again. A folder that holds anything is never written into without being asked: `--resume`
goes on with the run in it, `--force` puts a new run in its place.

What `--force` may delete: in a folder whose `run.json` says that it is one of ours, the files that a run writes, and
those that `evaluate` and `show` put beside them. Not MLflow's store, which holds the records of the old run and of
others. A folder that holds anything else, or in which a process is at work, is left as it is. `run.json` is
the last to go, so that a folder that was half cleared can be cleared again.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ray_distill.config import Config, ConfigError
from ray_distill.held_folder import LOCK, check_idle
from ray_distill.tracking import Tracker, store_uri
from ray_distill.uris import MASK, masked
from ray_distill.whole_files import write_json, write_text

STORE = {"mlflow.db", "mlflow.db-journal", "mlflow.db-wal", "mlflow.db-shm", "mlartifacts"}
"""MLflow's, in a folder that was given with --out. Alone they are not a run: they may be shared, or left by a run that
was killed as it began."""
JUDGED = ("distilled.sheet.png",)
"""What `show` puts beside a distilled set."""


def evaluation_folder(artifact: Path) -> Path:
    """Where the results of an evaluation go that was given no other place: beside the set."""
    return artifact.with_name(f"{artifact.stem}.evaluation")


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
    if masked(known) != uri:
        raise ConfigError(
            f"{path}: what is in it is recorded at {uri}, and its password is not kept; set $MLFLOW_TRACKING_URI to "
            "that URI with its password"
        )
    return known


@dataclass(frozen=True)
class RunFolder:
    """A run's files."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def identity(self) -> Path:
        """Which experiment and which MLflow run the folder belongs to."""
        return self.path / "run.json"

    @property
    def train(self) -> Path:
        """Ray Train's storage, with the checkpoints."""
        return self.path / "train"

    @property
    def artifact(self) -> Path:
        """The distilled dataset."""
        return self.path / "distilled.parquet"

    @property
    def contact_sheet(self) -> Path:
        """A picture of the distilled dataset."""
        return self.path / "distilled.png"

    @property
    def evaluation(self) -> Path:
        """The folder of the evaluation: the one that `evaluate` takes for the artefact."""
        return evaluation_folder(self.artifact)

    @property
    def summary(self) -> Path:
        """Seconds and accuracies."""
        return self.path / "summary.json"

    @property
    def _deletable(self) -> tuple[Path, ...]:
        """What `clear` deletes, in this order."""
        results = (self.summary, self.evaluation, self.contact_sheet, self.artifact)
        return (*(self.path / name for name in JUDGED), *results, self.train, self.config, self.identity)

    def check_replaceable(self) -> None:
        """Raises: ConfigError unless the folder is free, or holds a run that nobody works on and nothing else."""
        self._check_ours()
        check_idle(self.path)

    def _check_ours(self) -> None:
        if not self.identity.exists():
            check_free(
                self.path, "It has no run.json, and --force deletes nothing but runs. Use another --out."
            )
            return
        self._read_identity()
        strange = sorted(self._names() - STORE - {LOCK} - {path.name for path in self._deletable})
        if strange:
            raise ConfigError(
                f"{self.path}: holds {', '.join(strange)}, which no run wrote; nothing was deleted. Move that away, or "
                "use another --out"
            )

    def clear(self) -> None:
        """Delete the run in a folder that is held. Raises: ConfigError for one that was not `check_replaceable`."""
        self._check_ours()
        for path in self._deletable:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def open(self, config: Config, tracker: Tracker) -> None:
        """Claim the folder for a new run."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.config, config.to_yaml())
        write_json(
            self.identity, {"config_hash": config.hash, "uri": masked(tracker.uri), "run_id": tracker.run_id}
        )

    def reopen(self, config: Config) -> Tracker:
        """The tracker of the run to go on with.

        Raises: ConfigError if there is none, a finished one, or one of another configuration or store.
        """
        uri, run_id, hash_there = self._read_identity()
        if hash_there != config.hash:
            raise ConfigError(
                f"{self.path}: holds a run of another configuration (hash {hash_there}, yours is {config.hash}); "
                f"compare yours with {self.config}, or use another --out"
            )
        if self.summary.exists():
            raise ConfigError(f"{self.path}: holds a run that is finished; its results are in {self.summary}")
        wanted = config.tracking.uri
        if wanted is not None and store_uri(wanted, self.path) != uri:
            raise ConfigError(
                f"tracking.uri: the run in {self.path} is recorded at {uri} (found {wanted!r}); "
                "remove the key, or use another --out"
            )
        return Tracker(with_password(uri, self.path), run_id)

    def store(self) -> str | None:
        """The store in which the run is recorded; None if the folder does not say. Raises: ConfigError, as `reopen`."""
        try:
            uri, _, _ = self._read_identity()
        except ConfigError:
            return None
        return with_password(uri, self.path)

    def _names(self) -> set[str]:
        return {path.name for path in self.path.iterdir()}

    def _read_identity(self) -> tuple[str, str, str]:
        """The masked URI of the store, the MLflow run and the configuration's hash. Raises: ConfigError without them."""
        try:
            identity = json.loads(self.identity.read_text())
            uri, run_id, config_hash = (identity[key] for key in ("uri", "run_id", "config_hash"))
            if not all(isinstance(value, str) and value for value in (uri, run_id, config_hash)):
                raise TypeError
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise ConfigError(f"{self.path}: holds no run of ours (no readable run.json)") from None
        return uri, run_id, config_hash
