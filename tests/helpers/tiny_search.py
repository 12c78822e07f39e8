"""A tiny search that tests share: four keys around the tiny experiment."""

from typing import Any

from ray_distill.search.config import SearchConfig, parse_search
from tests.helpers.tiny import TINY

SPACE = {
    "truncation.unroll_length": {"randint": [2, 8]},
    "truncation.window_length": {"randint": [1, "truncation.unroll_length"]},
    "outer.lr": {"loguniform": [1e-4, 1e-1]},
}


def tiny_search(**over: Any) -> SearchConfig:
    """Four trials of the tiny experiment in float64, by successive halving."""
    values: dict[str, Any] = {
        "name": "tiny_search",
        "base": TINY,
        "space": SPACE,
        "scheduler": {"name": "asha", "grace": 5, "reduction": 2},
        "budget": {"trials": 4},
    }
    return parse_search(values | over)
