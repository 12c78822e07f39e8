"""The search file: what it may say, and that every trial it can give is a configuration."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ray_distill.config.config import ConfigError
from ray_distill.tuning.config import load_search
from tests.helpers.tiny import TINY
from tests.helpers.tiny_search import SPACE, WIDE_SPACE, tiny_search


def config_error(overrides: Mapping[str, Any]) -> str:
    with pytest.raises(ConfigError) as e:
        tiny_search(**overrides)
    return str(e.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"space": {"truncation.window_length": {"randint": [1, 8]}}},
            "space: a trial with truncation.window_length=8",
        ),
        ({"space": {"truncation.windw": {"choice": [1]}}}, "space.truncation.windw: no trial has this key"),
        ({"space": {"outer.momentum": {"choice": [1]}}}, "unknown key 'momentum'"),
        ({"space": {"outer.steps": {"choice": [1, 2]}}}, "space.outer.steps: cannot be searched"),
        ({"space": {"seed.x": {"choice": [1, 2]}}}, "space.seed.x: cannot be searched"),
        ({"space": {"outer.lr": {"uniform": [2, 1]}}}, "low below high"),
        ({"space": {"outer.lr": {"uniform": [0, 1], "choice": [1]}}}, "exactly one of choice, uniform"),
        ({"space": {"outer.lr": {"grid": [1e-3]}}}, "needs algorithm grid"),
        ({"algorithm": "grid"}, "algorithm grid needs grids"),
        ({"budget": {}}, "budget.trials: is missing"),
        ({"budget": {"trials": 2, "outer_steps": 30}}, "at most the base's outer.steps, which is 20"),
        ({"scheduler": {"name": "asha", "grace": 20}}, "scheduler.grace: must be at least"),
        ({"scheduler": {"name": "pbt", "every": 7}}, "must be a multiple of validation.every"),
        (
            {"scheduler": {"name": "pbt", "every": 5}, "space": {"distilled.ipc": {"choice": [1, 2]}}},
            "space.distilled.ipc: cannot change during a run",
        ),
        (
            {
                "space": {
                    "truncation.window_length": {"randint": [1, "truncation.unroll_length"]},
                    "truncation.unroll_length": {"randint": ["truncation.window_length", 9]},
                }
            },
            "depend on each other",
        ),
        (
            {"space": SPACE | {"truncation.window_length": {"randint": [3, "truncation.unroll_length"]}}},
            "space.truncation.window_length.randint: is an empty range in some trial: 3 to 2",
        ),
        ({"base": TINY | {"outer": {"steps": 0}}}, "base.outer.steps"),
        (
            {"base": TINY | {"outer": {"steps": 20, "lr": {"schedule": "linear", "start": 0.1, "end": 0.2}}}},
            "must be one value in the base",
        ),
        ({"space": {"truncation.rule": {"choice": ["forward", "bptt"]}}}, "truncation.patience: is missing"),
    ],
)
def test_mistakes_are_reported_before_anything_runs(overrides: dict[str, Any], message: str) -> None:
    """A message names the key and what is wrong with it."""
    assert message in config_error(overrides)


@pytest.mark.parametrize("name", ["search_window_digits", "search_window_cifar10", "pbt_schedule_digits"])
def test_shipped_searches_load(name: str) -> None:
    """Every corner of their spaces is a valid configuration, and the space without values gives the base."""
    search = load_search(Path(__file__).parents[2] / "experiments" / f"{name}.yaml")
    assert search.num_trials >= 4
    assert search.search_space.full_config({}) == search.config


def test_the_hash_covers_what_determines_the_trials() -> None:
    """And not their number, the time limit or the cluster."""
    first = tiny_search()
    assert first.hash == tiny_search(name="other", budget={"trials": 9, "hours": 1.0}).hash
    assert first.hash != tiny_search(seed=1).hash
    assert first.hash != tiny_search(budget={"trials": 4, "outer_steps": 10}).hash
    assert first.hash != tiny_search(space=SPACE | {"outer.lr": {"loguniform": [1e-4, 1.0]}}).hash
    assert first.hash != tiny_search(base=TINY | {"seed": 1}).hash
    cluster = {"cluster": {"num_workers": 2, "min_workers": 1}, "checkpoint": {"every": 1}}
    moved = tiny_search(base=TINY | cluster)
    assert first.hash == moved.hash
    # Trials have the search's own number of workers; the configuration of its winner has the base's.
    assert moved.search_space.config({}).cluster.min_workers is None
    assert moved.search_space.full_config({}).cluster.min_workers == 1


def test_a_base_is_relative_to_the_search_file(tmp_path: Path) -> None:
    """A written search is read back to an equal one, without importing torch."""
    search = tiny_search(space=WIDE_SPACE)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "base.yaml").write_text(search.config.to_yaml())
    (tmp_path / "inline.yaml").write_text(search.to_yaml())
    assert load_search(tmp_path / "inline.yaml") == search
    values = search.model_dump(mode="json", exclude_none=True) | {"base": "there/base.yaml"}
    import yaml

    (tmp_path / "search.yaml").write_text(yaml.safe_dump(values))
    found = load_search(tmp_path / "search.yaml", ["base.seed=3", "budget.trials=7"])
    assert (found.config.seed, found.num_trials) == (3, 7)
    code = "import sys, pathlib, ray_distill.tuning.config as c; c.load_search(pathlib.Path(sys.argv[1])); "
    code += "sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "search.yaml")], check=False).returncode
        == 0
    )
