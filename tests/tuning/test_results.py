"""The leaderboard: its order, and what people and programs read."""

import json
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console

from ray_distill.tuning.journal import TrialLog, ValidationResult
from ray_distill.tuning.results import (
    leaderboard,
    markdown,
    save_leaderboard,
    terminal_table,
)


def trial(name: str, accuracies: list[float], status: str = "finished", **values: object) -> TrialLog:
    """Validated every 10 outer steps, which took a second each."""
    curve = [ValidationResult(10 * i, 10.0 * i, a) for i, a in enumerate(accuracies, start=1)]
    return TrialLog(name, values, status=status, curve=curve)  # type: ignore[arg-type]


TRIALS = [
    trial("a", [0.2, 0.5], **{"inner.lr": 0.01, "truncation.rule": "rat-bptt"}),
    trial("b", [0.7, 0.6], "stopped", **{"inner.lr": 0.1, "truncation.rule": "bptt"}),
    trial("c", [0.9], "failed", **{"inner.lr": 10.0, "truncation.rule": "bptt"}),
    trial("d", [], "failed", **{"inner.lr": 1e9, "truncation.rule": "bptt"}),
    trial("e", [0.1, 0.7], **{"inner.lr": 0.3, "truncation.rule": "forward"}),
    trial("f", [], "running", **{"inner.lr": 1.0, "truncation.rule": "forward"}),
]


def test_the_order_is_by_the_best_validation() -> None:
    """b and e reached 0.7, b at step 10 and e at 20; a 0.5; c had 0.9 but failed, so it comes after those; f and d were never
    validated and have no rank."""
    rows = leaderboard(TRIALS)
    assert [(row.rank, row.trial) for row in rows] == [
        (1, "b"),
        (2, "e"),
        (3, "a"),
        (4, "c"),
        (None, "f"),
        (None, "d"),
    ]
    assert (rows[0].best_validation_accuracy, rows[0].best_outer_step, rows[0].outer_steps) == (0.7, 10, 20)
    assert (rows[0].seconds, rows[0].status, rows[0].values["inner.lr"]) == (20.0, "stopped", 0.1)


def test_people_read_percent() -> None:
    text = markdown(leaderboard(TRIALS), max_rows=2)
    assert text.splitlines() == [
        "| rank | trial | inner.lr | truncation.rule | validation | at step | steps | s | status |",
        "| --: | :-- | --: | --: | --: | --: | --: | --: | :-- |",
        "| 1 | b | 0.1 | bptt | 70.0% | 10 | 20 | 20 | stopped |",
        "| 2 | e | 0.3 | forward | 70.0% | 20 | 20 | 20 | finished |",
        "",
        "and 4 more",
    ]
    console = Console(width=120, record=True)
    console.print(terminal_table(leaderboard(TRIALS)))
    shown = console.export_text()
    assert shown.index("70.0%") < shown.index("50.0%") < shown.index("90.0%")
    assert "failed" in shown
    assert markdown([]) == "no trials\n"


def test_headings_are_as_short_as_possible() -> None:
    """The last part of a key if no other key has it, else the whole key. Columns are in the order in which keys first appear,
    not in alphabetical order."""
    keys = {"outer.lr": 0.1, "inner.lr": 0.2, "data.image_size": 8}
    table = terminal_table(leaderboard([trial("a", [0.5], **keys)]))
    shown = [str(column.header) for column in table.columns]
    assert shown[2:5] == ["outer.\nlr", "inner.\nlr", "image_\nsize"]


def test_values_are_shown_as_in_yaml() -> None:
    """A bar in a value does not end its cell."""
    values = {"a": True, "b": None, "c": "x|y", "d": 0.000123456}
    assert (
        markdown(leaderboard([trial("t", [0.5], **values)]))
        .splitlines()[2]
        .startswith("| 1 | t | true | none | x\\|y | 0.0001235 |")
    )


def test_programs_read_numbers(tmp_path: Path) -> None:
    """Parquet and JSON have the same rows, in their own types; a key with integers, text and none is JSON text."""
    mixed = [
        trial("a", [0.5], **{"batch": 10, "window": 3, "lr": 1}),
        trial("b", [0.25], **{"batch": None, "window": 4, "lr": 0.5}),
        trial("c", [0.125], **{"batch": "all", "window": 5}),
    ]
    paths = save_leaderboard(leaderboard(mixed), tmp_path, "took 3 s")
    assert [path.name for path in paths] == ["leaderboard.md", "leaderboard.parquet", "leaderboard.json"]
    table = pq.read_table(paths[1])
    assert table["best_validation_accuracy"].to_pylist() == [0.5, 0.25, 0.125]
    assert table["window"].to_pylist() == [3, 4, 5]
    assert table["lr"].to_pylist() == [1.0, 0.5, None]
    assert table["batch"].to_pylist() == ["10", None, '"all"']
    rows = json.loads(paths[2].read_text())
    assert [row["batch"] for row in rows] == [10, None, "all"]
    assert rows[0] == {
        "rank": 1,
        "trial": "a",
        "batch": 10,
        "window": 3,
        "lr": 1,
        "best_validation_accuracy": 0.5,
        "best_outer_step": 10,
        "outer_steps": 10,
        "seconds": 10.0,
        "status": "finished",
    }
    lines = paths[0].read_text().splitlines()
    assert (len(lines), lines[-2:]) == (7, ["", "took 3 s"])


def test_a_search_without_trials_has_an_empty_table(tmp_path: Path) -> None:
    paths = save_leaderboard([], tmp_path, "took 3 s")
    assert pq.read_table(paths[1]).num_rows == 0
