"""What the files of a search are called, in its folder and in its storage, and what its `search.json` says."""

import json
from typing import NamedTuple

from ray_distill.storage.run_files import identity_fields

SEARCH = "search.yaml"
IDENTITY = "search.json"
JOURNAL = "journal.jsonl"
UNSAID = "mlflow_journal.jsonl"
"""What is on its way to MLflow."""
TUNE = "tune"
"""The folder of Tune's storage, with the trials' checkpoints."""


class SearchIdentity(NamedTuple):
    """Which search a place belongs to, and where that is recorded and kept."""

    search_hash: str
    uri: str
    """Of MLflow's store, masked."""
    run_id: str
    """MLflow's."""
    storage: str | None
    """Where the checkpoints are, if not in the folder."""

    @classmethod
    def read(cls, text: str | bytes) -> "SearchIdentity":
        """Raises: ValueError for what no search wrote."""
        return cls(*identity_fields(text, cls._fields))

    def text(self) -> str:
        """What `read` reads."""
        return json.dumps(self._asdict(), indent=2) + "\n"
