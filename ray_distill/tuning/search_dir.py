"""The folder of a search and its storage, which holds the trials' checkpoints and how far the search has come.

Both journals grow in the folder, line by line. An object store takes whole files, so after each event of the search they
are uploaded whole: first what MLflow has not acknowledged, then the search's own journal, and only then does the search
continue. So at whatever moment the driver is lost,

- every checkpoint that the stored journal names exists: a trial stores it before reporting it, and Tune deletes older
  ones after the report is noted;
- a checkpoint newer than the stored journal is ignored: its trial resumes from the one before, and computes and reports
  the same again;
- what MLflow has not acknowledged of the stored reports is stored too; sending it twice does no harm.

An upload takes as long as one request of a few hundred kilobytes. The outbox stays small as long as MLflow answers.
"""

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ray_distill.storage.job_scratch import refuse_job_scratch
from ray_distill.storage.output_folder import RUNS, storage_of
from ray_distill.storage.remote import StorageUnavailableError
from ray_distill.storage.workdir import WorkDir
from ray_distill.tracking.uri import check_exists, store_uri
from ray_distill.tuning.config import SearchConfig, check_installed
from ray_distill.utils.jsonl import pending_lines, replace_outbox

JOURNAL = "journal.jsonl"
OUTBOX = "mlflow_journal.jsonl"
"""What is on its way to MLflow."""
TUNE = "tune"
"""The folder of Tune's storage, with the trials' checkpoints."""
RETRY_DELAYS_S = (1.0, 4.0, 15.0, 30.0)
"""Before another attempt to reach the storage; after the last one the search ends."""

logger = logging.getLogger(__name__)


class SearchDir(WorkDir[SearchConfig]):
    """A search's files."""

    kind, hash_key, ray_folder = "search", "search_hash", TUNE
    config_name, identity_name = "search.yaml", "search.json"
    storage_key = "base.cluster.storage"
    resume_hint = "; only budget.trials and budget.hours may change"

    @property
    def journal(self) -> Path:
        """All events of the search."""
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
        """How the search's time was spent."""
        return self.path / "summary.json"

    def new_attempt(self) -> str:
        """A name in Tune's storage that no earlier invocation has used."""
        names = [info.base_name for info in self.primary.entries(TUNE, missing_ok=True)]
        return f"attempt-{1 + sum(name.startswith('attempt-') for name in names)}"

    def checkpoint_path(self, checkpoint: str) -> str:
        """Of a checkpoint by its name in the folder, in the file system of `ray_storage`."""
        return self.primary.path_of(checkpoint)

    def describe_checkpoint(self, checkpoint: str) -> str:
        """Where it is, for messages."""
        return str(self.storage / checkpoint if self.storage else self.path / checkpoint)

    @contextmanager
    def open_checkpoint(self, checkpoint: str) -> Iterator[Path]:
        """A checkpoint's folder, to read during the block. Raises: StorageUnavailableError."""
        if self.storage is None:
            yield self.path / checkpoint
            return
        with tempfile.TemporaryDirectory() as folder:
            self._download(Path(folder), self.storage.files(checkpoint))
            yield Path(folder) / checkpoint

    def delete(self, name: str) -> None:
        """Delete a folder that is not needed any more, if possible."""
        with suppress(StorageUnavailableError, OSError):
            self.primary.delete(name)

    def store_journals(self) -> None:
        """Upload both journals, if there is a storage; retries for a while if it does not answer.

        Raises: LostLeaseError, StorageUnavailableError.
        """
        for delay_s in (*RETRY_DELAYS_S, None) if self.storage else ():
            self.check_lease()
            try:
                self.primary.put(OUTBOX, pending_lines(self.path / OUTBOX))
                self.primary.put(JOURNAL, self.journal.read_bytes())
                return
            except StorageUnavailableError as e:
                if delay_s is None:
                    raise
                logger.warning("the search waits for its storage: %s", e)
                time.sleep(delay_s)

    def fetch(self) -> None:
        """Download identity, configuration and journals, unless the folder's journal begins with the stored one.

        That one may be ahead of a failed upload. If it does not, the search has been resumed in another folder since.
        """
        if not self.storage:
            return
        stored = self.storage.read(JOURNAL) or b""
        if self.journal.exists() and self.journal.read_bytes().startswith(stored):
            return
        # The journal comes last: without it an interrupted download is repeated.
        self._download(self.path, (self.identity_name, self.config_name))
        replace_outbox(self.path / OUTBOX, self.storage.read(OUTBOX) or b"")
        self._download(self.path, (JOURNAL,))


def open_search_folder(
    settings: SearchConfig, out: Path | None, *, resume: bool, advice: str = "Use another --out."
) -> tuple[SearchDir, str]:
    """The folder of a search, checked before anything is written, and the URI of its MLflow store.

    Args and Raises: as `open_run_folder`.
    """
    check_installed(settings)
    path = out or RUNS / settings.name
    refuse_job_scratch(path, "--out")
    folder = SearchDir(path, storage_of(settings.config))
    uri = store_uri(settings.config.tracking.uri, out or RUNS)
    if resume:
        uri = folder.tracker_to_resume(settings).uri
        folder.check_unlocked()
        check_exists(uri)
    else:
        folder.check_empty(advice)
    return folder, uri
