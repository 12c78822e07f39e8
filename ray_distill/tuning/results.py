"""The leaderboard of a search: for people in the terminal and in Markdown, for programs in Parquet and JSON.

Trials are ranked by validation alone: no number here has seen the test split.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ray_distill.tuning.domains import Value
from ray_distill.tuning.journal import TrialLog
from ray_distill.utils.atomic import atomic_write, write_json, write_text

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.table import Table


@dataclass(frozen=True)
class LeaderboardRow:
    """A trial's row."""

    rank: int | None
    """From 1; None for a trial that was never validated."""
    trial: str
    values: dict[str, Value]
    """Of all searched keys."""
    best_validation_accuracy: float | None
    """A fraction."""
    best_outer_step: int | None
    outer_steps: int
    """Taken."""
    seconds: float
    status: str

    def to_dict(self) -> dict[str, Any]:
        """The row with one column for each searched key."""
        columns = vars(self).items()
        return {k: v for name, of in columns for k, v in (of if name == "values" else {name: of}).items()}


def searched_keys(trials: Sequence[TrialLog]) -> list[str]:
    """The keys that any trial has, in the order in which they first appear."""
    return list(dict.fromkeys(key for trial in trials for key in trial.values))


def ranked(trials: Sequence[TrialLog]) -> list[TrialLog]:
    """The trials from best to worst: by best validation accuracy, then by fewer outer steps to it, then by name.

    Failed trials come after all others, whatever they reached, since they cannot be run to their end again; then those
    that were never validated.
    """

    def order(trial: TrialLog) -> tuple[bool, bool, float, int, str]:
        best, failed = trial.best, trial.status == "failed"
        if best is None:
            return True, failed, 0.0, 0, trial.name
        return False, failed, -best.validation_accuracy, best.outer_step, trial.name

    return sorted(trials, key=order)


def leaderboard(trials: Sequence[TrialLog]) -> list[LeaderboardRow]:
    """One row for each trial, the best first (`ranked`)."""
    keys = searched_keys(trials)
    return [
        LeaderboardRow(
            rank=rank if trial.best else None,
            trial=trial.name,
            values={key: trial.values.get(key) for key in keys},
            best_validation_accuracy=trial.best.validation_accuracy if trial.best else None,
            best_outer_step=trial.best.outer_step if trial.best else None,
            outer_steps=trial.outer_steps,
            seconds=trial.seconds,
            status=trial.status,
        )
        for rank, trial in enumerate(ranked(trials), start=1)
    ]


HEADINGS = {
    "best_validation_accuracy": "validation",
    "best_outer_step": "at step",
    "outer_steps": "steps",
    "seconds": "s",
}
"""Headings for people, where they differ from the field's name."""


def format_value(value: Value) -> str:
    """A searched value, for people."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cells(row: LeaderboardRow) -> list[str]:
    accuracy = row.best_validation_accuracy
    return [
        "" if row.rank is None else str(row.rank),
        row.trial,
        *(format_value(value) for value in row.values.values()),
        "" if accuracy is None else f"{100 * accuracy:.1f}%",
        "" if row.best_outer_step is None else str(row.best_outer_step),
        str(row.outer_steps),
        f"{row.seconds:.0f}",
        row.status,
    ]


def _headings(rows: Sequence[LeaderboardRow]) -> list[str]:
    return [HEADINGS.get(name, name) for name in rows[0].to_dict()] if rows else []


def terminal_table(rows: Sequence[LeaderboardRow]) -> "Table":
    """For `rich`; accuracies in percent."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    headings = _headings(rows)
    for heading in headings:
        # A key is longer than its values: drop its section where that is unambiguous, and break lines between words.
        short = heading.rpartition(".")[2]
        unique = sum(other.rpartition(".")[2] == short for other in headings) == 1
        broken = (short if unique else heading.replace(".", ".\n")).replace("_", "_\n")
        justify: Literal["left", "right"] = "left" if heading in ("trial", "status") else "right"
        table.add_column(broken, justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    return table


def markdown(rows: Sequence[LeaderboardRow], max_rows: int | None = None) -> str:
    """A table in Markdown of the first `max_rows` rows; accuracies in percent."""
    if not rows:
        return "no trials\n"
    headings = _headings(rows)
    rule = [":--" if heading in ("trial", "status") else "--:" for heading in headings]
    lines = [headings, rule, *map(_cells, rows[:max_rows])]
    text = "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
    left = len(rows[max_rows:]) if max_rows else 0
    return text + (f"\nand {left} more\n" if left else "")


def _column(values: list[Value]) -> "pa.Array":
    """Values of one key; of types that Arrow has no common type for, as JSON text."""
    import pyarrow as pa

    types = {type(value) for value in values if value is not None}
    if len(types) > 1 and types != {int, float}:
        return pa.array([None if value is None else json.dumps(value) for value in values])
    if types == {int, float}:
        return pa.array([None if value is None else float(value) for value in values])
    return pa.array(values)


def save_leaderboard(rows: Sequence[LeaderboardRow], folder: Path, took: str) -> list[Path]:
    """Write leaderboard.md, with `took` below the table, .parquet and .json, each atomically. Returns: their paths."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = [row.to_dict() for row in rows]
    paths = [folder / f"leaderboard.{suffix}" for suffix in ("md", "parquet", "json")]
    write_text(paths[0], f"{markdown(rows)}\n{took}\n")
    columns = {
        name: _column([record[name] for record in records]) for name in (records[0] if records else {})
    }
    with atomic_write(paths[1]) as file:
        pq.write_table(pa.table(columns), file)
    write_json(paths[2], records)
    return paths
