"""The files that hold the results of an evaluation.

| file | |
|---|---|
| `records.parquet` | one line for each (subject, network, index, horizon), and one for each failure |
| `evaluation.json` | the same, and the rows, for programs |
| `table.md` | the rows, for people |

Accuracies are fractions in both; only the table has percent. Of the order in which results arrive nothing is written
but that subjects and networks come as they are first named.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ray_distill.errors import UserError
from ray_distill.evaluation.results import (
    KINDS,
    TREATMENTS,
    Failure,
    Record,
    ResultRow,
    Results,
    Retraining,
    at_last_horizon,
    in_order,
    rows_of,
)
from ray_distill.evaluation.robustness import Robustness
from ray_distill.utils.atomic import atomic_write, write_json, write_text

FORMAT = 1
"""Of `evaluation.json`: raised with every change that an older reader would misread."""
RECORDS, RESULTS, TABLE = "records.parquet", "evaluation.json", "table.md"
"""The files of a results folder."""


class ResultsError(UserError):
    """A file is not the results of an evaluation."""


def write_results(
    folder: Path,
    records: Sequence[Record],
    failures: Sequence[Failure] = (),
    robustness: Sequence[Robustness] = (),
) -> list[Path]:
    """Writes the three files, each of them whole, into a folder that is there. Returns where they are.

    Raises: OSError.
    """
    rows = rows_of(records, failures)
    records, failures = in_order(records, failures)
    paths = [folder / name for name in (RECORDS, RESULTS, TABLE)]
    _write_parquet(paths[0], records, failures)
    values = {
        "format": FORMAT,
        "records": [_flat(record) for record in records],
        "failures": [_flat(failure) for failure in failures],
        "rows": [asdict(row) for row in rows],
        "robustness": [scores.to_dict() for scores in robustness],
    }
    write_json(paths[1], values)
    write_text(paths[2], markdown(rows, robustness))
    return paths


def read_results(path: Path) -> Results:
    """The records and failures of an `evaluation.json`. Raises: ResultsError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ResultsError(f"{path} has format {values['format']}; this ray_distill reads {FORMAT}")
        return Results(
            [_record(value) for value in values["records"]],
            [Failure(_retraining(value), str(value["reason"])) for value in values["failures"]],
        )
    except ResultsError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path} is not the results of an evaluation: {error!r}") from error


def markdown(rows: Sequence[ResultRow], robustness: Sequence[Robustness] = ()) -> str:
    """A table of what was trained on x networks at the last horizon, scores, every row, and why something failed."""
    parts = ["Test accuracy: mean ± standard deviation over n retrainings.", _overview(rows)]
    if robustness:
        parts += [_robust_legend(robustness), _robust(robustness)]
    parts += [
        "Every row, with the 95% interval of the mean (Student's t over the n retrainings).",
        _every(rows),
    ]
    reasons = dict.fromkeys(
        f"- {row.network} on {row.label}, {row.num_failed} failed: {row.reason}"
        for row in rows
        if row.reason is not None
    )
    if reasons:
        parts += ["What could not be done.", "\n".join(" ".join(line.split()) for line in reasons)]
    return "\n\n".join(parts) + "\n"


def _flat(result: Record | Failure) -> dict[str, Any]:
    values = asdict(result)
    of: dict[str, Any] = values.pop("of")
    return of | values


def _retraining(value: dict[str, Any]) -> Retraining:
    """Raises: KeyError, TypeError, ValueError."""
    of = Retraining(**{field.name: value[field.name] for field in fields(Retraining)})
    if of.kind not in KINDS or of.treatment not in TREATMENTS:
        raise ValueError(f"{of.kind!r}, {of.treatment!r}: not a kind and a treatment")
    return of


def _record(value: dict[str, Any]) -> Record:
    """Raises: KeyError, TypeError, ValueError."""
    return Record(
        of=_retraining(value),
        lr=float(value["lr"]),
        inner_steps=int(value["inner_steps"]),
        test_accuracy=float(value["test_accuracy"]),
        seconds=float(value["seconds"]),
    )


def _write_parquet(path: Path, records: Sequence[Record], failures: Sequence[Failure]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = dict.fromkeys(("subject", "kind", "treatment", "network"), pa.string())
    counts = dict.fromkeys(("num_images", "index"), pa.int64())
    measured = {"inner_steps": pa.int64()} | dict.fromkeys(("lr", "test_accuracy", "seconds"), pa.float64())
    schema = pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in (names | counts).items()]
        + [pa.field(name, kind) for name, kind in (measured | {"reason": pa.string()}).items()]
    )
    table = pa.Table.from_pylist([*map(_flat, records), *map(_flat, failures)], schema=schema)
    with atomic_write(path) as file:
        pq.write_table(table, file)


def _overview(rows: Sequence[ResultRow]) -> str:
    """A line for each thing trained on, a column for each network."""
    networks = list(dict.fromkeys(row.network for row in rows))
    lines: dict[tuple[Any, ...], dict[str, ResultRow]] = {}
    for row in at_last_horizon(rows):
        lines.setdefault(row.trained_on, {})[row.network] = row
    table = [["trained on", "images", "steps", *networks]]
    for of in lines.values():
        first = next(iter(of.values()))
        cells = [_cell(of.get(network)) for network in networks]
        table.append([first.label, f"{first.num_images:,}", _steps(first), *cells])
    return _table(table)


def _cell(row: ResultRow | None) -> str:
    if row is None:
        return ""
    if row.mean is None:
        return "failed"
    spread = "" if row.std is None else f" ± {100 * row.std:.1f}"
    failed = f", {row.num_failed} failed" if row.num_failed else ""
    return f"{100 * row.mean:.1f}{spread}% (n={row.n}{failed})"


def _robust_legend(robustness: Sequence[Robustness]) -> str:
    hard = dict.fromkeys(scores.subject for scores in robustness if scores.own_labels_are_hard)
    text = (
        "Robustness scores of DD-Ranking (arXiv 2505.13300), from 0 to 1: LRS from what is lost against the whole training "
        "set with hard labels (HLR) and gained over random real images (IOR); ARS from the gains over those with "
        "DSA's augmentation and with none."
    )
    return f"{text} The own labels of {', '.join(hard)} are hard labels." if hard else text


def _robust(robustness: Sequence[Robustness]) -> str:
    table = [["set", "network", "LRS", "HLR", "IOR", "ARS", "gain, augmented", "gain, plain"]]
    for scores in robustness:
        labels, augmentation = ["failed", "", ""], ["failed", "", ""]
        if (of := scores.labels) is not None:
            labels = [
                f"{of.score:.3f}",
                _percent(of.hard_label_recovery),
                _percent(of.improvement_over_random),
            ]
        if (by := scores.augmentation) is not None:
            augmentation = [f"{by.score:.3f}", _percent(by.gain_augmented), _percent(by.gain_plain)]
        table.append([scores.subject, scores.network, *labels, *augmentation])
    return _table(table)


def _every(rows: Sequence[ResultRow]) -> str:
    table = [["trained on", "images", "network", "steps", "n", "mean", "std", "95% interval"]]
    for row in rows:
        interval = "" if row.interval is None else " to ".join(map(_percent, row.interval))
        named = [row.label, f"{row.num_images:,}", row.network, _steps(row), str(row.n)]
        table.append([*named, _percent(row.mean) or "failed", _percent(row.std), interval])
    return _table(table)


def _steps(row: ResultRow) -> str:
    return "" if row.inner_steps is None else f"{row.inner_steps:,}"


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.1f}%"


def _table(lines: list[list[str]]) -> str:
    heads, *rest = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    marks = "|" + "---|" * len(heads)
    return "\n".join([f"| {' | '.join(heads)} |", marks, *(f"| {' | '.join(line)} |" for line in rest)])
