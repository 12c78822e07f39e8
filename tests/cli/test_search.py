"""The verb `search` as far as it goes without a cluster: what is printed, what is refused, and that nothing is written."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ray_distill.cli.main import app
from ray_distill.config.config import ConfigError
from ray_distill.storage.workdir import LOCK
from ray_distill.tracking.tracker import Tracker
from ray_distill.tuning.config import parse_search
from ray_distill.tuning.run import open_search
from ray_distill.tuning.sampler import planned_values
from ray_distill.tuning.search_dir import SearchDir
from tests.helpers.tiny_search import tiny_search


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
    for line, values in zip(lines, planned_values(search), strict=True):
        assert all(f"{key}={value}" in line for key, value in values.items())
    assert [path.name for path in search_file.parent.iterdir()] == ["search.yaml"]


def test_what_is_refused_before_anything_starts(
    search_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that is in use, or at work in, nothing to resume, another search, a package that is not there: exit code 2,
    one message, nothing written."""
    folder = SearchDir(tmp_path / "s")

    def refused(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["search", str(search_file), "--out", str(folder.path), *arguments])
        assert result.exit_code == 2
        return result.stderr

    assert "holds no search (no readable search.json)" in refused("--resume")
    assert not folder.path.exists()
    folder.claim(tiny_search(), Tracker("sqlite:////there/mlflow.db", "abc"))
    before = {path: path.read_bytes() for path in folder.path.iterdir()}
    assert "Use --resume to continue the search in it" in refused()
    assert "holds a search of another configuration" in refused("--resume", "--set", "seed=1")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "optuna, which is not installed; `pip install optuna`" in refused("--set", "algorithm=optuna")
    assert "space.outer.lr: a grid needs" in refused("--set", "space={outer.lr: {grid: [1]}}")
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before
    with folder.lock():
        assert "another process is at work in it" in refused("--resume")
    (folder.path / LOCK).unlink()
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before


def test_one_search_at_a_time_is_at_work_in_a_folder(tmp_path: Path) -> None:
    """Of two that both found it idle, or free, the second comes to nothing: no MLflow run, no file; the first is as it
    was. When the first has ended the search can be resumed, in the same run."""
    folder, uri = SearchDir(tmp_path / "s"), f"sqlite:///{tmp_path / 'mlflow.db'}"
    with open_search(tiny_search(), folder, uri, resume=False) as first:
        before = {path: path.read_bytes() for path in folder.path.iterdir()}
        for resume in (True, False):
            second = open_search(tiny_search(budget={"trials": 9}), folder, uri, resume=resume)
            with pytest.raises(ConfigError, match="another process is at work in it"), second:
                pass
        assert {path: path.read_bytes() for path in folder.path.iterdir()} == before
    experiment = first.client.get_run(first.run_id).info.experiment_id
    assert len(first.client.search_runs([experiment])) == 1
    with open_search(tiny_search(budget={"trials": 9}), folder, uri, resume=True) as again:
        assert again == first
    assert "trials: 9" in folder.config.read_text()
    with pytest.raises(ConfigError, match="not empty"), open_search(tiny_search(), folder, uri, resume=False):
        pass
