"""What a search finds out: one record for each trial. Plain data for the leaderboard, the plots and MLflow."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ray_distill.utils.atomic import atomic_write, write_json, write_text

Value = bool | int | float | str | None
"""Of a searched key."""


class Measured(NamedTuple):
    """A validation of a trial."""

    outer_step: int
    seconds: float
    """Since the trial began, pauses left out."""
    validation_accuracy: float
    """A fraction."""


@dataclass(frozen=True)
class TrialRecord:
    """How a trial went."""

    name: str
    values: dict[str, Value]
    """What was searched: the key's path in the configuration, and the value that the trial began with."""
    status: Literal["finished", "stopped", "failed", "running"]
    """Stopped: by the scheduler, before its last outer step."""
    outer_steps: int
    """Taken."""
    seconds: float
    curve: tuple[Measured, ...]
    """In the order of outer steps."""
    changes: tuple[tuple[int, dict[str, Value]], ...] = ()
    """Population-based training only: from which outer step on which values held."""
    reason: str | None = None
    """Why it failed."""

    @property
    def best(self) -> Measured | None:
        """The best validation, the first of equal ones."""
        return max(self.curve, key=lambda m: (m.validation_accuracy, -m.outer_step), default=None)


if TYPE_CHECKING:
    import pyarrow as pa
    from rich.table import Table


@dataclass(frozen=True)
class LeaderboardRow:
    """A trial's place."""

    rank: int | None
    """From 1 on; None for a trial that was never validated."""
    trial: str
    values: dict[str, Value]
    """What was searched."""
    best_validation_accuracy: float | None
    """A fraction."""
    best_outer_step: int | None
    outer_steps: int
    """Taken."""
    seconds: float
    status: str

    def flat(self) -> dict[str, Value]:
        """The row with one column for each searched key."""
        return {
            "rank": self.rank,
            "trial": self.trial,
            **self.values,
            "best_validation_accuracy": self.best_validation_accuracy,
            "best_outer_step": self.best_outer_step,
            "outer_steps": self.outer_steps,
            "seconds": self.seconds,
            "status": self.status,
        }


def searched_keys(trials: Sequence[TrialRecord]) -> list[str]:
    """The keys that any trial has, in the order of their first appearance."""
    return list(dict.fromkeys(key for trial in trials for key in trial.values))


def ranked(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials from best to worst: by best validation accuracy, then by the fewer outer steps it took, then by name.

    Failed trials come after all others, whatever they had reached, since nobody could run them to their end
    again; then those that were never validated.
    """

    def place(trial: TrialRecord) -> tuple[bool, bool, float, int, str]:
        best = trial.best
        failed = trial.status == "failed"
        if best is None:
            return True, failed, 0.0, 0, trial.name
        return False, failed, -best.validation_accuracy, best.outer_step, trial.name

    return sorted(trials, key=place)


def leaderboard(trials: Sequence[TrialRecord]) -> list[LeaderboardRow]:
    """One row for each trial, the best first (`ranked`)."""
    keys = searched_keys(trials)
    rows = []
    for place, trial in enumerate(ranked(trials), start=1):
        best = trial.best
        rows.append(
            LeaderboardRow(
                rank=None if best is None else place,
                trial=trial.name,
                values={key: trial.values.get(key) for key in keys},
                best_validation_accuracy=None if best is None else best.validation_accuracy,
                best_outer_step=None if best is None else best.outer_step,
                outer_steps=trial.outer_steps,
                seconds=trial.seconds,
                status=trial.status,
            )
        )
    return rows


HEADINGS = {
    "best_validation_accuracy": "validation",
    "best_outer_step": "at step",
    "outer_steps": "steps",
    "seconds": "s",
}
"""Of the columns that people read, where they differ from the field's name."""


def shown_value(value: Value) -> str:
    """A searched value as people read it."""
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
        *(shown_value(value) for value in row.values.values()),
        "" if accuracy is None else f"{100 * accuracy:.1f}%",
        "" if row.best_outer_step is None else str(row.best_outer_step),
        str(row.outer_steps),
        f"{row.seconds:.0f}",
        row.status,
    ]


def _headings(rows: Sequence[LeaderboardRow]) -> list[str]:
    return [HEADINGS.get(name, name) for name in rows[0].flat()] if rows else []


def terminal_table(rows: Sequence[LeaderboardRow]) -> "Table":
    """For `rich`; accuracies in percent."""
    from rich import box
    from rich.table import Table

    texts = {"trial", "status"}
    table = Table(box=box.SIMPLE_HEAD)
    headings = _headings(rows)
    for heading in headings:
        # A key is longer than its values: no section that it can do without, and a line for each of its words.
        short = heading.rpartition(".")[2]
        alone = sum(other.rpartition(".")[2] == short for other in headings) == 1
        broken = (short if alone else heading.replace(".", ".\n")).replace("_", "_\n")
        justify: Literal["left", "right"] = "left" if heading in texts else "right"
        table.add_column(broken, justify=justify, no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    return table


def markdown(rows: Sequence[LeaderboardRow], most: int | None = None) -> str:
    """A table in Markdown, of the first `most` rows; accuracies in percent."""
    if not rows:
        return "no trials\n"
    shown = list(rows[:most])
    headings = _headings(rows)
    rule = [":--" if heading in ("trial", "status") else "--:" for heading in headings]
    lines = [headings, rule, *(_cells(row) for row in shown)]
    text = "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
    left = len(rows) - len(shown)
    return text + (f"\nand {left} more\n" if left else "")


def _column(values: list[Value]) -> "pa.Array":
    """Values of one key, which may be of several types: those that Arrow has no common type for as JSON text."""
    import pyarrow as pa

    types = {type(value) for value in values if value is not None}
    if len(types) > 1 and types != {int, float}:
        return pa.array([None if value is None else json.dumps(value) for value in values])
    if types == {int, float}:
        return pa.array([None if value is None else float(value) for value in values])
    return pa.array(values)


def save(rows: Sequence[LeaderboardRow], folder: Path, took: str) -> list[Path]:
    """Write leaderboard.md, with what the search took below it, .parquet and .json, each whole. Returns: their paths."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat: list[dict[str, Any]] = [row.flat() for row in rows]
    paths = [folder / f"leaderboard.{ending}" for ending in ("md", "parquet", "json")]
    write_text(paths[0], f"{markdown(rows)}\n{took}\n")
    columns = {name: _column([row[name] for row in flat]) for name in (flat[0] if flat else {})}
    with atomic_write(paths[1]) as file:
        pq.write_table(pa.table(columns), file)
    write_json(paths[2], flat)
    return paths
