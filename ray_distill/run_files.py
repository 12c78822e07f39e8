"""What the files of a run are called, in its folder and in its storage, and what its `run.json` says."""

import json
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
        try:
            values: dict[str, Any] = json.loads(text)
            identity = cls(values["config_hash"], values["uri"], values["run_id"], values.get("storage"))
        except (KeyError, TypeError, AttributeError, RecursionError) as e:
            raise ValueError("no run.json of a run's") from e
        needed = (*identity[:3], *([] if identity.storage is None else [identity.storage]))
        if not all(isinstance(value, str) and value for value in needed):
            raise ValueError("no run.json of a run's")
        return identity

    def text(self) -> str:
        """What `read` reads."""
        return json.dumps(self._asdict(), indent=2) + "\n"
