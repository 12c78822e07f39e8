"""The files with the results of an evaluation.

| file | |
|---|---|
| `records.parquet` | a line for each (subject, network, index, horizon), and for each failure |
| `evaluation.json` | the same, and the rows |
| `table.md` | the rows, to read |

Accuracies are fractions, except in the table, where they are in percent. The files do not depend on the order in which
results arrived, except that subjects and networks are in the order of their first record.
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
    result_rows,
    sort_results,
)
from ray_distill.evaluation.robustness import Robustness
from ray_distill.utils.atomic import atomic_write, write_json, write_text

FORMAT = 1
"""Of `evaluation.json`; to be raised with every change that an older reader would misread."""
RECORDS, RESULTS, TABLE = "records.parquet", "evaluation.json", "table.md"
"""The files of a results folder."""


class ResultsError(UserError):
    """A file does not have the results of an evaluation."""


def write_results(
    folder: Path,
    records: Sequence[Record],
    failures: Sequence[Failure] = (),
    robustness: Sequence[Robustness] = (),
) -> list[Path]:
    """Write the three files atomically into an existing folder. Returns: their paths.

    Raises: OSError.
    """
    rows = result_rows(records, failures)
    records, failures = sort_results(records, failures)
    paths = [folder / name for name in (RECORDS, RESULTS, TABLE)]
    _write_parquet(paths[0], records, failures)
    values = {
        "format": FORMAT,
        "records": [_flat(record) for record in records],
        "failures": [_flat(failure) for failure in failures],
        "rows": [asdict(row) for row in rows],
        "robustness": [each.to_dict() for each in robustness],
    }
    write_json(paths[1], values)
    write_text(paths[2], markdown(rows, robustness))
    return paths


def read_results(path: Path) -> Results:
    """The records and failures of an `evaluation.json`. Raises: ResultsError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ResultsError(
                f"{path}: format {values['format']}; this version of ray_distill reads {FORMAT}"
            )
        return Results(
            [_record(value) for value in values["records"]],
            [Failure(_retraining(value), str(value["reason"])) for value in values["failures"]],
        )
    except ResultsError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path}: not the results of an evaluation: {error!r}") from error


def markdown(rows: Sequence[ResultRow], robustness: Sequence[Robustness] = ()) -> str:
    """The overview, the robustness scores, every row, and the reasons of failures."""
    parts = ["Test accuracy: mean ± standard deviation over n retrainings.", _table(overview(rows))]
    if robustness:
        parts += [_robustness_legend(robustness), _robustness_table(robustness)]
    parts += [
        "Every row, with the 95% interval of the mean (Student's t over the n retrainings).",
        _table(_all_rows(rows)),
    ]
    reasons = dict.fromkeys(
        f"- {row.network} on {row.label}, {row.num_failed} failed: {row.reason}"
        for row in rows
        if row.reason is not None
    )
    if reasons:
        parts += ["Failures.", "\n".join(" ".join(line.split()) for line in reasons)]
    return "\n\n".join(parts) + "\n"


def _flat(result: Record | Failure) -> dict[str, Any]:
    values = asdict(result)
    retraining: dict[str, Any] = values.pop("retraining")
    return retraining | values


def _retraining(value: dict[str, Any]) -> Retraining:
    """Raises: KeyError, TypeError, ValueError."""
    retraining = Retraining(**{field.name: value[field.name] for field in fields(Retraining)})
    if retraining.kind not in KINDS or retraining.treatment not in TREATMENTS:
        raise ValueError(f"unknown kind {retraining.kind!r} or treatment {retraining.treatment!r}")
    return retraining


def _record(value: dict[str, Any]) -> Record:
    """Raises: KeyError, TypeError, ValueError."""
    return Record(
        retraining=_retraining(value),
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


def overview(rows: Sequence[ResultRow]) -> list[list[str]]:
    """The last horizon as a table with its heads: a line for each thing trained on, a column for each network."""
    networks = list(dict.fromkeys(row.network for row in rows))
    lines: dict[tuple[Any, ...], dict[str, ResultRow]] = {}
    for row in at_last_horizon(rows):
        lines.setdefault(row.trained_on, {})[row.network] = row
    table = [["trained on", "images", "steps", *networks]]
    for by_network in lines.values():
        first = next(iter(by_network.values()))
        cells = [_cell(by_network.get(network)) for network in networks]
        table.append([first.label, f"{first.num_images:,}", _steps(first), *cells])
    return table


def _cell(row: ResultRow | None) -> str:
    if row is None:
        return ""
    if row.mean is None:
        return "failed"
    std = "" if row.std is None else f" ± {100 * row.std:.1f}"
    failed = f", {row.num_failed} failed" if row.num_failed else ""
    return f"{100 * row.mean:.1f}{std}% (n={row.n}{failed})"


def _robustness_legend(robustness: Sequence[Robustness]) -> str:
    hard = dict.fromkeys(each.subject for each in robustness if each.own_labels_are_hard)
    text = (
        "Robustness scores of DD-Ranking (arXiv 2505.13300), from 0 to 1. LRS: from the loss against the whole training set "
        "with hard labels (HLR) and the gain over random real images (IOR). ARS: from the gains over those with DSA's "
        "augmentation and with none."
    )
    return f"{text} The own labels of {', '.join(hard)} are hard labels." if hard else text


def _robustness_table(robustness: Sequence[Robustness]) -> str:
    table = [["set", "network", "LRS", "HLR", "IOR", "ARS", "gain, augmented", "gain, plain"]]
    for each in robustness:
        scores, cells = each.scores, list[str]()
        for score, *parts in (
            ("label_robust_score", "hard_label_recovery", "improvement_over_random"),
            ("augmentation_robust_score", "gain_augmented", "gain_plain"),
        ):
            cells.append(f"{scores[score]:.3f}" if score in scores else "failed")
            cells += [_percent(scores.get(part)) for part in parts]
        table.append([each.subject, each.network, *cells])
    return _table(table)


def _all_rows(rows: Sequence[ResultRow]) -> list[list[str]]:
    table = [["trained on", "images", "network", "steps", "n", "mean", "std", "95% interval"]]
    for row in rows:
        interval = "" if row.interval is None else " to ".join(map(_percent, row.interval))
        cells = [row.label, f"{row.num_images:,}", row.network, _steps(row), str(row.n)]
        table.append([*cells, _percent(row.mean) or "failed", _percent(row.std), interval])
    return table


def _steps(row: ResultRow) -> str:
    return "" if row.inner_steps is None else f"{row.inner_steps:,}"


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.1f}%"


def _table(lines: list[list[str]]) -> str:
    heads, *rest = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    rule = "|" + "---|" * len(heads)
    return "\n".join([f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(line)} |" for line in rest)])
