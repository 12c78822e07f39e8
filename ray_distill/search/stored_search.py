"""A search in its storage: the trials' checkpoints, which Tune keeps there and nowhere else, and what says how far it is.

Both journals grow in the search's folder, line by line. An object store takes whole files, so after each event of the
search's own they are put whole: first what MLflow has not been told, then the search's memory, and only then does the
search go on. So whatever moment a driver is lost at,

- every checkpoint that the stored memory names is there: a trial has stored it before it reports it, and Tune deletes older
  ones after the report is noted;
- a checkpoint that is newer than the stored memory is passed over: its trial goes on from the one before, and computes and
  says the same again;
- what MLflow has not been told of a report that the stored memory has is stored too; what it is told twice is there once.

A put takes as long as one request of a few hundred kilobytes. What MLflow has not taken is small as long as that is there.
"""

import logging
import time
from pathlib import Path
from typing import Any

from ray_distill.config.config import ConfigError
from ray_distill.search.files import IDENTITY, JOURNAL, SEARCH, TUNE, UNSAID, SearchIdentity
from ray_distill.storage.remote import Storage, StorageAwayError
from ray_distill.storage.workdir import WorkDir
from ray_distill.utils.jsonl import pending_lines, replace_outbox

PAUSES_S = (1.0, 4.0, 15.0, 30.0)
"""Before a storage that is away is asked again; after the last the search ends."""

logger = logging.getLogger(__name__)


class StoredSearch(WorkDir):
    """A search's files in a storage."""

    what = "search"
    ways = "Use --resume to go on with the search in it, or another base.cluster.storage."

    def tune(self) -> tuple[str, Any]:
        """Tune's storage, with the checkpoints: a path, and pyarrow's filesystem."""
        return self.storage.for_ray(TUNE)

    def final(self, name: str) -> Storage:
        """Where a run is kept that distils with what the search has found."""
        return self.storage.inside(name)

    def identity(self) -> SearchIdentity:
        """Which search is there. Raises: ConfigError if none is."""
        try:
            return SearchIdentity.read(self.storage.read(IDENTITY) or b"")
        except ValueError:
            raise ConfigError(f"{self}: holds no search to resume (no readable {IDENTITY})") from None

    def claim(self, search_yaml: str, identity: SearchIdentity) -> None:
        """Make it one of a new search."""
        self.storage.put(SEARCH, search_yaml.encode())
        self.storage.put(IDENTITY, identity.text().encode())

    def keep(self, root: Path) -> None:
        """Put the journals of the search's folder `root` as they are now; a storage that is away is waited for.

        Raises: LostLeaseError, StorageAwayError.
        """
        for pause_s in (*PAUSES_S, None):
            self.check_held()
            try:
                self.storage.put(UNSAID, pending_lines(root / UNSAID))
                self.storage.put(JOURNAL, (root / JOURNAL).read_bytes())
                return
            except StorageAwayError as e:
                if pause_s is None:
                    raise
                logger.warning("the search waits for its storage: %s", e)
                time.sleep(pause_s)

    def fetch(self, root: Path) -> None:
        """What a search goes on with, into a folder that is to be its own; checkpoints stay where they are.

        A folder that was the search's before keeps its journals if they hold all that the storage has: they may be ahead of
        it by what it did not take. If not, the search has gone on in another folder.
        """
        stored, journal = self.storage.read(JOURNAL) or b"", root / JOURNAL
        if journal.exists() and journal.read_bytes().startswith(stored):
            return
        # The journal comes last: without it a fetch that was cut short is done again.
        self.bring(root, (IDENTITY, SEARCH))
        replace_outbox(root / UNSAID, self.storage.read(UNSAID) or b"")
        self.bring(root, (JOURNAL,))
