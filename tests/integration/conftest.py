"""Parts of a run, for tests that drive Ray."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_distill.config.config import Config
from ray_distill.storage.run_dir import RunDir
from ray_distill.tracking.tracker import Tracker, create_run

# Whose asserts say what was found, as those of tests do.
pytest.register_assert_rewrite("nodes", "processes", "search_events", "undisturbed")


@pytest.fixture
def place(tmp_path: Path) -> Callable[[Config], tuple[RunDir, Tracker]]:
    """(config) -> a claimed run folder with its own MLflow store."""

    def make(config: Config) -> tuple[RunDir, Tracker]:
        folder = RunDir(tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
        folder.path.mkdir()
        uri = f"sqlite:///{folder.path / 'mlflow.db'}"
        tracker = create_run(uri, "tests", config.name, config.to_dict(), {})
        folder.claim(config, tracker)
        return folder, tracker

    return make


@pytest.fixture
def draw() -> random.Random:
    """What draws the moment of a fault: from a seed that is printed, and taken from RAY_DISTILL_FAULT_SEED where that is
    set."""
    seed = int(os.environ.get("RAY_DISTILL_FAULT_SEED") or random.SystemRandom().randrange(10**6))
    print(f"RAY_DISTILL_FAULT_SEED={seed}")
    return random.Random(seed)
