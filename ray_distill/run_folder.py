"""The folder of a run: what lies where, and who may write into it.

`run.json` ties the folder to one experiment (by the configuration's hash) and to one MLflow run, so that
a resumed run goes on in both. A folder that holds anything is never written into without being asked.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from ray_distill.config import Config, ConfigError
from ray_distill.tracking import Tracker, shown, store_uri
from ray_distill.whole_files import write_json, write_text


def check_free(path: Path, advice: str) -> None:
    """Raises: ConfigError if the folder holds anything but an MLflow store."""
    if path.exists():
        there = {p.name for p in path.iterdir()} if path.is_dir() else {path.name}
        # A store alone is not a run: it may be shared, or left by a run that was killed as it began.
        if there - {"mlflow.db", "mlflow.db-journal", "mlflow.db-wal", "mlflow.db-shm", "mlartifacts"}:
            raise ConfigError(f"{path}: exists and is not empty; nothing was written. {advice}")


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
        """Every retraining of the evaluation, one record each."""
        return self.path / "evaluation.json"

    @property
    def summary(self) -> Path:
        """Seconds and accuracies."""
        return self.path / "summary.json"

    def open(self, config: Config, tracker: Tracker) -> None:
        """Claim the folder for a new run."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.config, config.to_yaml())
        write_json(self.identity, {"config_hash": config.hash, "uri": tracker.uri, "run_id": tracker.run_id})

    def reopen(self, config: Config) -> Tracker:
        """The tracker of the run to go on with.

        Raises: ConfigError if there is none, a finished one, or one of another configuration or store.
        """
        try:
            identity = json.loads(self.identity.read_text())
            tracker, hash_there = Tracker(identity["uri"], identity["run_id"]), identity["config_hash"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(f"{self.path}: holds no run to resume (no readable run.json)") from None
        if hash_there != config.hash:
            raise ConfigError(
                f"{self.path}: holds a run of another configuration (hash {hash_there}, yours is {config.hash}); "
                f"compare yours with {self.config}, or use another --out"
            )
        if self.summary.exists():
            raise ConfigError(f"{self.path}: holds a run that is finished; its results are in {self.summary}")
        wanted = config.tracking.uri
        if wanted is not None and store_uri(wanted, self.path) != tracker.uri:
            raise ConfigError(
                f"tracking.uri: the run in {self.path} is recorded at {shown(tracker.uri)} (found {wanted!r}); "
                "remove the key, or use another --out"
            )
        return tracker
