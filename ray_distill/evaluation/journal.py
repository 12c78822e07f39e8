"""What an evaluation has found out so far, kept in its folder as it arrives.

| file | |
|---|---|
| `evaluation_of.json` | which sets the folder is about, and how they are judged; the MLflow run |
| `records.jsonl` | a line for each network and horizon, and for each one that helped to choose an lr |

A line names the fingerprint of what it is about (`evaluation_jobs`), so the same command again trains only the networks
that are missing, and one that asks for more networks, seeds or steps adds to what is there. A folder that is about
something else is refused. The last line may be a half one, of a process that was killed as it wrote it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

from ray_distill.config.config import ConfigError
from ray_distill.evaluation.jobs import LrCandidate, TableRowSpec
from ray_distill.evaluation.results import Record, Retraining
from ray_distill.evaluation.subjects import EvaluationSet
from ray_distill.utils.atomic import write_json, write_text
from ray_distill.utils.jsonl import JsonlError, JsonlFile

IDENTITY = "evaluation_of.json"
RECORDS = "records.jsonl"

_Found: TypeAlias = Record | LrCandidate
_Key = tuple[type, str, int, int, float]


def entry(line: TableRowSpec, one: Record | LrCandidate) -> dict[str, Any]:
    """A line of the file."""
    kind = "record" if isinstance(one, Record) else "lr_trial"
    return {"line": line.fingerprint, kind: asdict(one)}


class ResultsLog:
    """The results that there are, in memory and, if it has a file, there."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises: JsonlError if a line other than a half one at the end cannot be read."""
        self._lines = JsonlFile(path) if path is not None else None
        self._found: dict[_Key, _Found] = {}
        self._latest: dict[Retraining, str] = {}
        for number, line in enumerate(self._lines.lines if self._lines else [], 1):
            self._take(*_read(line, f"{path}, line {number}"))

    def add(self, line: TableRowSpec, found: Iterable[_Found]) -> None:
        """Results of a line, on the disk when this returns."""
        things = []
        for one in found:
            self._take(line.fingerprint, one)
            things.append(entry(line, one))
        if self._lines is not None:
            self._lines.append(things)

    def _take(self, fingerprint: str, one: _Found) -> None:
        self._found[(type(one), fingerprint, one.of.index, one.inner_steps, one.lr)] = one
        if isinstance(one, Record):
            self._latest[replace(one.of, index=0)] = fingerprint

    def has(self, line: TableRowSpec, index: int, lr: float) -> bool:
        """Whether a network of the line is tested after all its horizons."""
        return all((Record, line.fingerprint, index, steps, lr) in self._found for steps in line.horizons)

    def trial(self, line: TableRowSpec, index: int, lr: float) -> LrCandidate | None:
        """How a network did that helps to choose the line's lr."""
        found = self._found.get((LrCandidate, line.fingerprint, index, line.horizons[-1], lr))
        return found if isinstance(found, LrCandidate) else None

    def of(self, line: TableRowSpec) -> list[_Found]:
        """All that there is of one line."""
        return [one for (_, fingerprint, *_), one in self._found.items() if fingerprint == line.fingerprint]

    def records(self, lines: Iterable[TableRowSpec] = ()) -> list[Record]:
        """All that there are, of these lines and of others. Where others were about the same as one of these, but
        had other data or another protocol, they are left out."""
        latest = self._latest | {line.retraining(0): line.fingerprint for line in lines}
        return [
            one
            for (_, fingerprint, *_), one in self._found.items()
            if isinstance(one, Record) and latest[replace(one.of, index=0)] == fingerprint
        ]


def _read(line: bytes, where: str) -> tuple[str, _Found]:
    try:
        values = json.loads(line)
        kind, of = (Record, "record") if "record" in values else (LrCandidate, "lr_trial")
        found = values[of]
        return str(values["line"]), kind(**found | {"of": Retraining(**found["of"])})
    except (ValueError, KeyError, TypeError) as e:
        raise JsonlError(
            f"{where}: not a record of an evaluation ({e}); remove the line, or the folder"
        ) from e


def identity(sets: Iterable[EvaluationSet]) -> dict[str, Any]:
    """What must be the same for results to stand in one table: the sets, and how an lr is chosen."""
    sets = list(sets)
    evaluation = sets[0].config.evaluation
    tuning = None
    if evaluation.tune_lr:
        tuning = [list(evaluation.lr_grid or ()), evaluation.lr_networks, evaluation.horizons[-1]]
    return {
        "sets": {judged.name: [judged.digest, judged.preprocessing_digest] for judged in sets},
        "test images": [judged.tickets.test.pixels_digest for judged in sets],
        "choice of lr": tuning,
    }


def check_claimable(folder: Path) -> None:
    """Raises: ConfigError for a folder that holds anything but an evaluation."""
    if (
        not (folder / IDENTITY).exists()
        and folder.exists()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise ConfigError(
            f"{folder}: exists and holds no evaluation; nothing was written. Use another --out."
        )


def claim(folder: Path, of: Mapping[str, Any]) -> dict[str, str]:
    """Begin a folder, or take it up again. Returns: where it is recorded, as `save_mlflow_run` was told; empty for a new one.

    Raises: ConfigError for one that holds another evaluation, or something else; nothing in it is changed.
    """
    check_claimable(folder)
    path = folder / IDENTITY
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"of": of, "recorded": {}})
        return {}
    try:
        values = json.loads(path.read_text())
        there, recorded = dict(values["of"]), dict(values["recorded"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: cannot be read; nothing was written. Use another --out.") from None
    if different := [name for name, value in of.items() if there.get(name) != value]:
        raise ConfigError(
            f"{folder}: holds another evaluation, with other {' and '.join(different)} (of {', '.join(there.get('sets', {}))}); "
            "nothing was written. Use another --out."
        )
    return recorded


def save_mlflow_run(folder: Path, of: Mapping[str, Any], recorded: Mapping[str, str]) -> None:
    """Note where an evaluation is recorded."""
    write_json(folder / IDENTITY, {"of": of, "recorded": recorded})


def restore_whole_train(cache: Path, lines: Iterable[TableRowSpec], journal: ResultsLog) -> None:
    """Add to the journal what is known of its lines and it lacks. Raises: JournalError for a file that cannot be read."""
    for line in _whole(lines):
        if missing := _missing(line, ResultsLog(_path(cache, line)), journal):
            journal.add(line, missing)


def cache_whole_train(cache: Path, lines: Iterable[TableRowSpec], journal: ResultsLog) -> None:
    """Keep what the journal has found out. Raises: OSError."""
    for line in _whole(lines):
        path = _path(cache, line)
        known = ResultsLog(path)
        if found := _missing(line, journal, known):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Whole, since others may read or write it at the same time.
            write_text(
                path, "".join(json.dumps(entry(line, one)) + "\n" for one in [*known.of(line), *found])
            )


def _whole(lines: Iterable[TableRowSpec]) -> list[TableRowSpec]:
    return [line for line in lines if line.subject.kind == "whole_train"]


def _path(cache: Path, line: TableRowSpec) -> Path:
    return cache / "references" / f"{line.fingerprint}.jsonl"


def _missing(line: TableRowSpec, there: ResultsLog, here: ResultsLog) -> list[Record | LrCandidate]:
    """What is there of a line and not here, under the name that it has now: another table may have named it otherwise."""
    has = {_which(one) for one in here.of(line)}
    return [
        replace(one, of=line.retraining(one.of.index)) for one in there.of(line) if _which(one) not in has
    ]


def _which(one: Record | LrCandidate) -> tuple[object, ...]:
    return type(one), one.of.index, one.inner_steps, one.lr
