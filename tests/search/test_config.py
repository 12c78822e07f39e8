"""The search file: what it may say, and that every trial it can give is a configuration."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_distill.config.config import ConfigError
from ray_distill.config.truncation import RatBpttConfig
from ray_distill.core.rng import Stream
from ray_distill.search.config import SearchConfig, load_search
from ray_distill.search.space import MAX_UNIFORM
from tests.helpers.tiny import TINY
from tests.helpers.tiny_search import SPACE, tiny_search

WIDE: dict[str, Any] = {
    "truncation.rule": {"choice": ["bptt", "t-bptt", "r-bptt", "rat-bptt"]},
    "truncation.min_window_start": {
        "uniform": [0, 1],
        "fraction_of": "truncation.unroll_length - truncation.window_length",
    },
    "truncation.redraw_every": {"choice": [1, 2, 5]},
    "truncation.window_length": {"uniform": [0.1, 1], "fraction_of": "truncation.unroll_length"},
    "truncation.unroll_length": {"randint": [1, 40]},
    "inner.momentum": {"uniform": [0.1, 0.95]},
    "inner.optimizer": {"choice": ["adam", "sgd"]},
    "inner.lr": {"loguniform": [1e-4, 1e-2]},
    "distilled.ipc": {"randint": [1, 3]},
    "replicas": {"choice": [1, 2]},
}
"""Everything that depends on something else, in an order in which it cannot be drawn."""


def draws(search: SearchConfig, count: int) -> list[dict[str, Any]]:
    """Values of so many trials, from a stream."""
    numbers = Stream(seed=5, name="draws").uniform(16, range(count), dtype=torch.float64).tolist()
    found = []
    for row in numbers:
        of = iter(row)
        found.append(search.search_space.draw(lambda key, count, of=of: next(of)))
    return found


def test_a_thousand_draws_are_configurations_and_have_what_they_need() -> None:
    """Each parses, with its window within its unroll; a key is there if and only if the trial has a use for it."""
    search = tiny_search(space=WIDE)
    seen = set()
    for values in draws(search, 1000):
        config = search.search_space.config(values)
        rule, truncation = values["truncation.rule"], config.truncation
        windowed = rule in ("t-bptt", "rat-bptt")
        assert ("truncation.window_length" in values) == windowed
        assert ("truncation.redraw_every" in values) == (rule in ("r-bptt", "rat-bptt"))
        assert ("truncation.min_window_start" in values) == (rule == "rat-bptt")
        assert ("inner.momentum" in values) == (values["inner.optimizer"] == "sgd")
        if windowed:
            assert 1 <= truncation.window_length <= truncation.unroll_length <= 40
        if isinstance(truncation, RatBpttConfig):
            room = truncation.unroll_length - truncation.window_length
            assert 0 <= truncation.min_window_start <= room
            seen.add(truncation.min_window_start == room)
    assert seen == {True, False}


def test_ranges_reach_both_ends() -> None:
    """At the lowest number a range's low end, at the highest its high end, which may be another value; a fraction
    0.28 of 25 is 7, although 0.28 * 25 is more in floating point, and 0.29 of 25 is 8."""
    space = tiny_search().search_space
    low = space.draw(lambda key, _: 0.0)
    high = space.draw(lambda key, _: MAX_UNIFORM)
    assert low == {"truncation.unroll_length": 2, "truncation.window_length": 1, "outer.lr": 1e-4}
    assert high == {"truncation.unroll_length": 8, "truncation.window_length": 8, "outer.lr": 0.1}
    base = TINY | {"truncation": {"rule": "rat-bptt", "unroll_length": 25, "window_length": 3}}
    of = {"choice": [0.28, 0.29], "fraction_of": "truncation.unroll_length"}
    grid = tiny_search(base=base, space={"truncation.window_length": of}).search_space
    assert [grid.draw(lambda *_, n=n: n)["truncation.window_length"] for n in (0.0, 0.5)] == [7, 8]


def test_a_grid_has_each_point_once() -> None:
    """2 unrolls x 3 fractions; of unroll 2 the fractions 0.4 and 0.5 are both 1."""
    search = tiny_search(
        algorithm="grid",
        budget={},
        space={
            "truncation.unroll_length": {"grid": [2, 10]},
            "truncation.window_length": {"grid": [0.4, 0.5, 1.0], "fraction_of": "truncation.unroll_length"},
        },
    )
    points = [tuple(values.values()) for values in search.search_space.grid()]
    assert points == [(2, 1), (2, 2), (10, 4), (10, 5), (10, 10)]
    assert search.num_trials == 5


def test_the_base_in_the_space() -> None:
    """Its own values at the keys that it has; its configuration with them is itself."""
    search = tiny_search(space=WIDE)
    values = search.search_space.base_values()
    assert values["truncation.window_length"] == 3
    assert "inner.momentum" not in values
    assert search.search_space.config(values) == search.config


@pytest.mark.parametrize("many", ["inner.lr", "outer.lr"])
def test_of_many_corners_a_part_is_tried_in_which_no_key_stays_at_one_end(many: str) -> None:
    """1,200 values of one key and 2 of another are 2,400 corners, of which at most 600 are tried. Every fourth would have the
    key that changes fastest at one of its ends alone, whichever of the two that is."""
    few = {"inner.lr": "outer.lr", "outer.lr": "inner.lr"}[many]
    of_many = {"choice": [n / 10_000 for n in range(1, 1201)]}
    corners = list(tiny_search(space={few: {"choice": [0.01, 0.02]}, many: of_many}).search_space.corners())
    assert 300 < len(corners) <= 600
    assert {values[few] for values in corners} == {0.01, 0.02}
    assert len({values[many] for values in corners}) > 300


def refused(over: Mapping[str, Any]) -> str:
    with pytest.raises(ConfigError) as e:
        tiny_search(**over)
    return str(e.value)


@pytest.mark.parametrize(
    ("over", "said"),
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
def test_mistakes_are_told_before_anything_runs(over: dict[str, Any], said: str) -> None:
    """One message that names the key and what is wrong with it."""
    assert said in refused(over)


@pytest.mark.parametrize("name", ["search_window_digits", "search_window_cifar10", "pbt_schedule_digits"])
def test_shipped_searches_load(name: str) -> None:
    """Every corner of their spaces is a configuration, and their own values lie around their base's."""
    search = load_search(Path(__file__).parents[2] / "experiments" / f"{name}.yaml")
    assert search.num_trials >= 4
    assert search.search_space.full_config({}) == search.config


def test_what_belongs_to_a_search() -> None:
    """Its hash covers what determines the trials, and not how many there are or how long they may take."""
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


def test_a_file_names_its_base_from_its_own_folder(tmp_path: Path) -> None:
    """And what is written of it is read back to an equal one, without torch being imported."""
    search = tiny_search(space=WIDE)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "base.yaml").write_text(search.config.to_yaml())
    (tmp_path / "inline.yaml").write_text(search.to_yaml())
    assert load_search(tmp_path / "inline.yaml") == search
    values = search.model_dump(mode="json", exclude_none=True) | {"base": "there/base.yaml"}
    import yaml

    (tmp_path / "search.yaml").write_text(yaml.safe_dump(values))
    found = load_search(tmp_path / "search.yaml", ["base.seed=3", "budget.trials=7"])
    assert (found.config.seed, found.num_trials) == (3, 7)
    code = "import sys, pathlib, ray_distill.search.config as c; c.load_search(pathlib.Path(sys.argv[1])); "
    code += "sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "search.yaml")], check=False).returncode
        == 0
    )
