"""Parts of a run, for tests that drive Ray."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ray_distill.config import Config
from ray_distill.run_folder import RunFolder
from ray_distill.tracking import Tracker, open_run


@pytest.fixture
def place(tmp_path: Path) -> Callable[[Config], tuple[RunFolder, Tracker]]:
    """(config) -> a claimed run folder with its own MLflow store."""

    def make(config: Config) -> tuple[RunFolder, Tracker]:
        folder = RunFolder(tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
        folder.path.mkdir()
        uri = f"sqlite:///{folder.path / 'mlflow.db'}"
        tracker = open_run(uri, "tests", config.name, config.to_dict(), {})
        folder.open(config, tracker)
        return folder, tracker

    return make
