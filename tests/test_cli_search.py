"""The verb `search` as far as it goes without a cluster: what is printed, what is refused, and that nothing is written."""

from pathlib import Path

import pytest
from tiny_search import tiny_search
from typer.testing import CliRunner

from ray_distill.cli import app
from ray_distill.config_search import parse_search
from ray_distill.search_journal import SearchFolder
from ray_distill.search_proposals import known
from ray_distill.tracking import Tracker


@pytest.fixture
def search_file(tmp_path: Path) -> Path:
    path = tmp_path / "search.yaml"
    path.write_text(tiny_search().to_yaml())
    return path


def test_a_dry_run_says_which_trials_there_are(search_file: Path) -> None:
    """The search, with overrides, as YAML that is one again; a line for each trial; nothing is written."""
    import yaml

    out = (
        CliRunner().invoke(app, ["search", str(search_file), "--dry-run", "--set", "budget.trials=6"]).stdout
    )
    search = parse_search(yaml.safe_load(out))
    assert search == tiny_search(budget={"trials": 6})
    lines = [line for line in out.splitlines() if line.startswith("# trial-")]
    assert len(lines) == 6
    for line, values in zip(lines, known(search), strict=True):
        assert all(f"{key}={value}" in line for key, value in values.items())
    assert [path.name for path in search_file.parent.iterdir()] == ["search.yaml"]


def test_what_is_refused_before_anything_starts(search_file: Path, tmp_path: Path) -> None:
    """A folder that is in use, nothing to resume, another search: exit code 2, one message, nothing written."""
    folder = SearchFolder(tmp_path / "s")

    def told(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["search", str(search_file), "--out", str(folder.path), *arguments])
        assert result.exit_code == 2
        return result.stderr

    assert "holds no search to resume" in told("--resume")
    assert not folder.path.exists()
    folder.open(tiny_search(), Tracker("sqlite:////there/mlflow.db", "abc"))
    before = {path: path.read_bytes() for path in folder.path.iterdir()}
    assert "Use --resume to go on with the search in it" in told()
    assert "another search" in told("--resume", "--set", "seed=1")
    assert "space.outer.lr: a grid needs" in told("--set", "space={outer.lr: {grid: [1]}}")
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before
