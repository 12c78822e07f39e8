"""The folder of a run, its files, and what `--force` may delete of it.

That is, in a folder whose `run.json` says that it is ours, the files that a run writes, and those that `evaluate` and `show`
put beside them. Not MLflow's store, which has the records of the old run and of others. A folder or storage with anything
else in it, or in use, is left as it is. `run.json` is deleted last, so that a deletion that was interrupted can be repeated.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_distill.config.config import Config, ConfigError
from ray_distill.storage.remote import StorageUnavailableError
from ray_distill.storage.workdir import WorkDir, complete_files
from ray_distill.tracking.tracker import Tracker
from ray_distill.tracking.uri import store_uri

CONFIG = "config.yaml"
IDENTITY = "run.json"
TRAIN = "train"
ARTIFACT = "distilled.parquet"
SHEET = "distilled.png"
SUMMARY = "summary.json"
MIRROR_EVERY_S = 10.0

logger = logging.getLogger(__name__)


def evaluation_folder(artifact: Path) -> Path:
    """The default folder for the results of an evaluation: beside the distilled set."""
    return artifact.with_name(f"{artifact.stem}.evaluation")


EVALUATION = evaluation_folder(Path(ARTIFACT)).name
DELETABLE = ("distilled.sheet.png", SUMMARY, EVALUATION, SHEET, ARTIFACT, TRAIN, CONFIG, IDENTITY)
"""What `--force` deletes, in this order; the first is what `show` writes."""


class RunDir(WorkDir[Config]):
    """A run's files."""

    kind, hash_key, ray_folder = "run", "config_hash", TRAIN
    config_name, identity_name = CONFIG, IDENTITY

    @property
    def train(self) -> Path:
        """Ray Train's storage, with the checkpoints, if the run has no storage."""
        return self.path / TRAIN

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
        """The folder of the evaluation: the default one of `evaluate` for the artefact."""
        return evaluation_folder(self.artifact)

    @property
    def summary(self) -> Path:
        """Seconds and accuracies. Written last: a run that has it is finished."""
        return self.path / SUMMARY

    @property
    def is_claimed(self) -> bool:
        """Whether there is a run to resume. Raises: StorageUnavailableError."""
        return bool(self.primary.info(IDENTITY).is_file)

    def train_location(self) -> Path | str:
        """Where the checkpoints are, for messages; a path if the free space on its disk can be looked up."""
        if self.storage and not self.storage.is_local:
            return str(self.storage / TRAIN)
        return Path(self.primary.path_of(TRAIN))

    def check_replaceable(self) -> None:
        """Raises: ConfigError unless the folder, and the storage, are empty or hold a run that no process works on and
        nothing else."""
        self._check_deletable()
        self.check_unlocked()

    def clear(self) -> None:
        """Delete the run in a locked folder, and in its storage. Raises: ConfigError, as `check_replaceable`."""
        self._check_deletable()
        for place in self.places:
            for name in DELETABLE:
                place.delete(name)

    def _check_deletable(self) -> None:
        if not self.identity.exists():
            self._check_folder_empty(
                "It has no run.json, and --force deletes nothing but runs. Use another --out."
            )
        if self.storage:
            self._check_apart(self.storage)
        for place in self.places:
            if names := self._names(place):
                self.read_identity(place)
                if foreign := sorted(names - set(DELETABLE)):
                    self._fail(
                        place,
                        f"holds {', '.join(foreign)}, which no run wrote; nothing was deleted. Move that away, or use "
                        f"another {self.storage_key if place is self.storage else '--out'}",
                    )

    def tracker_to_resume(self, config: Config) -> Tracker:
        """As `WorkDir` has it. Raises: ConfigError also for a finished run, or for one recorded in another MLflow store."""
        tracker, place = super().tracker_to_resume(config), self.primary
        where = self.describe(place)
        if place.info(SUMMARY).is_file:
            self._fail(place, f"holds a run that is finished; its results are in {where}/{SUMMARY}")
        wanted, recorded = config.tracking.uri, self.read_identity(place).uri
        if wanted is not None and store_uri(wanted, self.path) != recorded:
            raise ConfigError(
                f"tracking.uri: the run in {where} is recorded at {recorded} (got {wanted!r}); remove the key, or use "
                "another --out"
            )
        return tracker

    def mlflow_uri(self) -> str | None:
        """Of the store that the run is recorded in; None if the folder does not say. Raises: ConfigError if its password
        is not in the environment."""
        try:
            identity = self.read_identity(self.local)
        except ConfigError:
            return None
        return self.with_password(identity.uri)

    def fetch(self) -> None:
        """Download configuration and evaluation into a folder without a run, with its identity as the last file."""
        if self.storage and not self.identity.exists():
            evaluation = self.storage.files(EVALUATION)
            self._download(self.path, (self.config_name, *evaluation, self.identity_name))

    @contextmanager
    def mirror_evaluation(self) -> Iterator[None]:
        """Mirror the evaluation to the storage, if there is one, as it grows during the block.

        A failure is logged and tried again; the last state is the caller's to `store`.
        """
        over = threading.Event()

        def mirror() -> None:
            mirrored: dict[Path, int] = {}
            while not over.wait(MIRROR_EVERY_S):
                try:
                    for file in complete_files(self.evaluation):
                        if mirrored.get(file) != (changed_ns := file.stat().st_mtime_ns):
                            self.store(file)
                            mirrored[file] = changed_ns
                except (StorageUnavailableError, OSError) as e:
                    logger.warning("%s is not mirrored for now: %s", self.evaluation, e)

        thread = threading.Thread(target=mirror, daemon=True)
        if self.storage:
            thread.start()
        try:
            yield
        finally:
            over.set()
            if self.storage:
                thread.join()
