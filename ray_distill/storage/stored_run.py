"""A run in its storage: the files of its folder under the same names, by the same rules, and its checkpoints.

`run.json` is the last to come and the last to go, as in the folder.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray_distill.config.config import ConfigError
from ray_distill.storage.remote import StorageAwayError
from ray_distill.storage.run_files import CONFIG, DELETABLE, EVALUATION, IDENTITY, SUMMARY, TRAIN, Identity
from ray_distill.storage.workdir import WorkDir, whole_files

FOLLOW_S = 10.0
"""Between two looks at a folder that grows."""

logger = logging.getLogger(__name__)


class StoredRun(WorkDir):
    """A run's files in a storage."""

    what = "run"
    ways = "Use --resume to go on with the run in it, --force to delete that and start anew, or another cluster.storage."

    def train(self) -> tuple[str, Any]:
        """Ray Train's storage, with the checkpoints: a path, and pyarrow's filesystem."""
        return self.storage.for_ray(TRAIN)

    def check_replaceable(self) -> None:
        """Raises: ConfigError unless it is free, or holds a run and nothing else."""
        names = self.names()
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

    def identity(self) -> Identity:
        """Which run is there. Raises: ConfigError if none is."""
        try:
            return Identity.read(self.storage.read(IDENTITY) or b"")
        except ValueError:
            raise ConfigError(f"{self}: holds no run of ours (no readable {IDENTITY})") from None

    def is_finished(self) -> bool:
        """Whether it is one that has come to its end."""
        return SUMMARY in self.names()

    def claim(self, config_yaml: str, identity: Identity) -> None:
        """Make it one of a new run."""
        self.storage.put(CONFIG, config_yaml.encode())
        self.storage.put(IDENTITY, identity.text().encode())

    @contextmanager
    def followed(self, root: Path, path: Path) -> Iterator[None]:
        """What changes in a folder in `root` is put every now and then, as long as the block lasts. What the storage
        does not take is put later; the end is `put`'s."""
        over, known = threading.Event(), dict[Path, int]()

        def follow() -> None:
            while not over.wait(FOLLOW_S):
                try:
                    changed = {f: t for f in whole_files(path) if known.get(f) != (t := f.stat().st_mtime_ns)}
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
        self.bring(root, (CONFIG, *self.storage.files(EVALUATION), IDENTITY))
