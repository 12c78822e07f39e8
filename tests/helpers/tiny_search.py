"""A tiny search that tests share: four keys around the tiny experiment."""

from typing import Any

from ray_distill.tuning.config import SearchConfig, parse_search
from tests.helpers.tiny import TINY

SPACE = {
    "truncation.unroll_length": {"randint": [2, 8]},
    "truncation.window_length": {"randint": [1, "truncation.unroll_length"]},
    "outer.lr": {"loguniform": [1e-4, 1e-1]},
}

WIDE_SPACE: dict[str, Any] = {
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
"""All keys that depend on others, in an order in which they cannot be drawn."""


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
