"""The space of a search: every trial that it can give is a valid configuration."""

from typing import Any

import pytest
import torch

from ray_distill.config.truncation import RatBpttConfig
from ray_distill.core.rng import Stream
from ray_distill.tuning.config import SearchConfig
from ray_distill.tuning.space import MAX_UNIFORM
from tests.helpers.tiny import TINY
from tests.helpers.tiny_search import WIDE_SPACE, tiny_search


def draws(search: SearchConfig, count: int) -> list[dict[str, Any]]:
    """Values of `count` trials, from a stream."""
    numbers = Stream(seed=5, name="draws").uniform(16, range(count), dtype=torch.float64).tolist()
    rows = map(iter, numbers)
    return [search.search_space.draw(lambda key, count, row=row: next(row)) for row in rows]


def test_a_thousand_draws_are_valid_with_exactly_the_keys_that_apply() -> None:
    """Each parses, with its window within its unroll; a key is drawn if and only if it applies to the trial."""
    search = tiny_search(space=WIDE_SPACE)
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
            latest = truncation.unroll_length - truncation.window_length
            assert 0 <= truncation.min_window_start <= latest
            seen.add(truncation.min_window_start == latest)
    assert seen == {True, False}


def test_ranges_reach_both_ends() -> None:
    """The smallest number gives a range's low end, the largest its high end, which may be another value; a fraction 0.28 of
    25 is 7, although 0.28 * 25 is more in floating point, and 0.29 of 25 is 8."""
    space = tiny_search().search_space
    low = space.draw(lambda key, _: 0.0)
    high = space.draw(lambda key, _: MAX_UNIFORM)
    assert low == {"truncation.unroll_length": 2, "truncation.window_length": 1, "outer.lr": 1e-4}
    assert high == {"truncation.unroll_length": 8, "truncation.window_length": 8, "outer.lr": 0.1}
    base = TINY | {"truncation": {"rule": "rat-bptt", "unroll_length": 25, "window_length": 3}}
    fractions = {"choice": [0.28, 0.29], "fraction_of": "truncation.unroll_length"}
    grid = tiny_search(base=base, space={"truncation.window_length": fractions}).search_space
    assert [grid.draw(lambda *_, n=n: n)["truncation.window_length"] for n in (0.0, 0.5)] == [7, 8]


def test_a_grid_has_each_point_once() -> None:
    """2 unrolls x 3 fractions; the fractions 0.4 and 0.5 of unroll 2 are both 1."""
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


def test_the_bases_values() -> None:
    """Those of the searched keys that apply to it; the configuration with them is the base."""
    search = tiny_search(space=WIDE_SPACE)
    values = search.search_space.base_values()
    assert values["truncation.window_length"] == 3
    assert "inner.momentum" not in values
    assert search.search_space.config(values) == search.config


@pytest.mark.parametrize("many", ["inner.lr", "outer.lr"])
def test_a_subset_many_values_corners_has_both_ends_of_each_key(many: str) -> None:
    """1,200 values of one key and 2 of another are 2,400 corners, of which at most 600 are parsed. Every fourth would keep the
    key that changes fastest at one of its ends, whichever of the two that is."""
    few = {"inner.lr": "outer.lr", "outer.lr": "inner.lr"}[many]
    many_values = {"choice": [n / 10_000 for n in range(1, 1201)]}
    corners = list(
        tiny_search(space={few: {"choice": [0.01, 0.02]}, many: many_values}).search_space.corners()
    )
    assert 300 < len(corners) <= 600
    assert {values[few] for values in corners} == {0.01, 0.02}
    assert len({values[many] for values in corners}) > 300
