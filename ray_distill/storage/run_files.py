"""What the files of a run are called, in its folder and in its storage, and what its `run.json` says."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

CONFIG = "config.yaml"
IDENTITY = "run.json"
TRAIN = "train"
ARTIFACT = "distilled.parquet"
SHEET = "distilled.png"
SUMMARY = "summary.json"
JUDGED = ("distilled.sheet.png",)
"""What `show` puts beside a distilled set."""


def evaluation_folder(artifact: Path) -> Path:
    """Where the results of an evaluation go that was given no other place: beside the set."""
    return artifact.with_name(f"{artifact.stem}.evaluation")


EVALUATION = evaluation_folder(Path(ARTIFACT)).name
DELETABLE = (*JUDGED, SUMMARY, EVALUATION, SHEET, ARTIFACT, TRAIN, CONFIG, IDENTITY)
"""What `--force` deletes, in this order."""


def identity_fields(text: str | bytes, names: Sequence[str]) -> list[Any]:
    """What the small file says that ties a place to a run, or to a search: of these fields, all there but `storage`.

    Raises: ValueError for what none of ours wrote.
    """
    try:
        values = json.loads(text)
        found = [values.get(name) if name == "storage" else values[name] for name in names]
    except (KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ValueError("none of ours") from e
    for name, value in zip(names, found, strict=True):
        if not (isinstance(value, str) and value) and not (name == "storage" and value is None):
            raise ValueError("none of ours")
    return found


class Identity(NamedTuple):
    """Which experiment a place belongs to, and where that is recorded and kept."""

    config_hash: str
    uri: str
    """Of MLflow's store, masked."""
    run_id: str
    """MLflow's."""
    storage: str | None
    """Where the checkpoints are, if not in the folder."""

    @classmethod
    def read(cls, text: str | bytes) -> "Identity":
        """Raises: ValueError for what no run wrote."""
        return cls(*identity_fields(text, cls._fields))

    def text(self) -> str:
        """What `read` reads."""
        return json.dumps(self._asdict(), indent=2) + "\n"
