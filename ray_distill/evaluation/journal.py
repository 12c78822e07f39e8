"""The results of an evaluation in its folder, saved as they arrive; and those on the whole training set, shared by all.

| file | |
|---|---|
| `evaluation_of.json` | which sets the folder evaluates, and how; the MLflow run |
| `records.jsonl` | a line for each network and horizon, and for each network that tuned an lr |
| `references/FINGERPRINT.jsonl` in the cache | the same for a row on the whole training set |

Each line has the fingerprint of its row (`jobs`), so an evaluation that is started again trains only the networks that are
missing, and one with more networks, seeds or steps adds to the folder. A folder of another evaluation is refused.

The whole training set takes by far the longest to train on, and its results do not depend on the evaluated sets: data,
split, protocol, network and seed determine them. So they are cached, for all evaluations of a machine.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

from ray_distill.config.config import ConfigError
from ray_distill.evaluation.jobs import LrCandidate, RetrainingSpec
from ray_distill.evaluation.results import Record, Retraining
from ray_distill.evaluation.subjects import EvaluationSet
from ray_distill.utils.atomic import write_json, write_text
from ray_distill.utils.jsonl import JsonlError, JsonlFile

IDENTITY = "evaluation_of.json"
RECORDS = "records.jsonl"

_Result: TypeAlias = Record | LrCandidate
_Key = tuple[type, int, int, float]
"""Identifies a result of a row."""


class ResultsLog:
    """Results in memory and, with a path, in a file."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises: JsonlError for a damaged line, unless it is a partial one at the end."""
        self._file = JsonlFile(path) if path is not None else None
        self._results: dict[tuple[str, _Key], _Result] = {}
        """By fingerprint and key."""
        self._latest: dict[Retraining, str] = {}
        """The fingerprint of each row's last record."""
        for number, line in enumerate(self._file.lines if self._file else [], 1):
            self._insert(*_parse(line, f"{path}, line {number}"))

    def add(self, spec: RetrainingSpec, results: Iterable[_Result]) -> None:
        """Results of one row; on disk on return."""
        results = list(results)
        for result in results:
            self._insert(spec.fingerprint, result)
        if self._file is not None:
            self._file.append(_to_line(spec, result) for result in results)

    def _insert(self, fingerprint: str, result: _Result) -> None:
        self._results[fingerprint, _key(result)] = result
        if isinstance(result, Record):
            self._latest[replace(result.retraining, index=0)] = fingerprint

    def has(self, spec: RetrainingSpec, index: int, lr: float) -> bool:
        """Whether a network of the row is tested at all horizons."""
        keys = [(Record, index, steps, lr) for steps in spec.horizons]
        return all((spec.fingerprint, key) in self._results for key in keys)

    def lr_candidate(self, spec: RetrainingSpec, index: int, lr: float) -> LrCandidate | None:
        """The accuracy of a network that tunes the row's lr."""
        key = (LrCandidate, index, spec.horizons[-1], lr)
        result = self._results.get((spec.fingerprint, key))
        return result if isinstance(result, LrCandidate) else None

    def results(self, spec: RetrainingSpec) -> list[_Result]:
        """All of one row."""
        return [result for (row, _), result in self._results.items() if row == spec.fingerprint]

    def records(self, specs: Iterable[RetrainingSpec] = ()) -> list[Record]:
        """All records, of these rows and others.

        Records of the same row with other data or another protocol are left out: those of `specs` win, then the latest.
        """
        latest = self._latest | {spec.retraining(0): spec.fingerprint for spec in specs}
        return [
            result
            for (fingerprint, _), result in self._results.items()
            if isinstance(result, Record) and latest[replace(result.retraining, index=0)] == fingerprint
        ]


def _key(result: _Result) -> _Key:
    return type(result), result.retraining.index, result.inner_steps, result.lr


def _to_line(spec: RetrainingSpec, result: _Result) -> dict[str, Any]:
    values = asdict(result)
    kind = "record" if isinstance(result, Record) else "lr_trial"
    return {"line": spec.fingerprint, kind: {"of": values.pop("retraining"), **values}}


def _parse(line: bytes, where: str) -> tuple[str, _Result]:
    try:
        values = json.loads(line)
        cls, key = (Record, "record") if "record" in values else (LrCandidate, "lr_trial")
        result = values[key]
        return str(values["line"]), cls(retraining=Retraining(**result.pop("of")), **result)
    except (ValueError, KeyError, TypeError) as e:
        raise JsonlError(
            f"{where}: not a record of an evaluation ({e}); remove the line, or the folder"
        ) from e


def identity(sets: Iterable[EvaluationSet]) -> dict[str, Any]:
    """What results in one table must share: the sets, the test images and how the lr is tuned."""
    sets = list(sets)
    evaluation = sets[0].config.evaluation
    tuning = None
    if evaluation.tune_lr:
        tuning = [list(evaluation.lr_grid or ()), evaluation.lr_networks, evaluation.horizons[-1]]
    return {
        "sets": {each.name: [each.digest, each.preprocessing_digest] for each in sets},
        "test images": [each.test.pixels_digest for each in sets],
        "choice of lr": tuning,
    }


def check_folder(folder: Path) -> None:
    """Raises: ConfigError if the folder has other files than those of an evaluation."""
    if (
        not (folder / IDENTITY).exists()
        and folder.exists()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise ConfigError(
            f"{folder}: exists and is not an evaluation; nothing was written. Use another --out."
        )


def open_folder(folder: Path, evaluation: Mapping[str, Any]) -> dict[str, str]:
    """Create the folder of an evaluation, or open it again.

    Args:
        evaluation: its `identity`.

    Returns: the MLflow run, as `save_mlflow_run` was given it; empty for a new folder.
    Raises: ConfigError if it has another evaluation or other files, which are left as they are.
    """
    check_folder(folder)
    path = folder / IDENTITY
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_mlflow_run(folder, evaluation, {})
        return {}
    try:
        values = json.loads(path.read_text())
        existing, mlflow_run = dict(values["of"]), dict(values["recorded"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: cannot be read; nothing was written. Use another --out.") from None
    if different := [name for name, value in evaluation.items() if existing.get(name) != value]:
        raise ConfigError(
            f"{folder}: has another evaluation, with different {' and '.join(different)} (of "
            f"{', '.join(existing.get('sets', {}))}); nothing was written. Use another --out."
        )
    return mlflow_run


def save_mlflow_run(folder: Path, evaluation: Mapping[str, Any], mlflow_run: Mapping[str, str]) -> None:
    """Save the URI and the id of the evaluation's MLflow run."""
    write_json(folder / IDENTITY, {"of": evaluation, "recorded": mlflow_run})


def restore_whole_train(cache: Path, specs: Iterable[RetrainingSpec], log: ResultsLog) -> None:
    """Add cached results on the whole training set that the log lacks. Raises: JsonlError."""
    for spec, path in _cached(cache, specs):
        if missing := _missing(spec, ResultsLog(path), log):
            log.add(spec, missing)


def cache_whole_train(cache: Path, specs: Iterable[RetrainingSpec], log: ResultsLog) -> None:
    """Add the log's results on the whole training set to the cache. Raises: OSError, JsonlError."""
    for spec, path in _cached(cache, specs):
        cached = ResultsLog(path)
        if missing := _missing(spec, log, cached):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Replaced as a whole: other processes may read or write it at the same time.
            lines = (json.dumps(_to_line(spec, result)) for result in [*cached.results(spec), *missing])
            write_text(path, "".join(f"{line}\n" for line in lines))


def _cached(cache: Path, specs: Iterable[RetrainingSpec]) -> list[tuple[RetrainingSpec, Path]]:
    folder = cache / "references"
    return [(s, folder / f"{s.fingerprint}.jsonl") for s in specs if s.subject.kind == "whole_train"]


def _missing(spec: RetrainingSpec, source: ResultsLog, target: ResultsLog) -> list[_Result]:
    """Results of a row that the target lacks, under the row's name in this table: another one may have named it otherwise."""
    present = set(map(_key, target.results(spec)))
    return [
        replace(result, retraining=spec.retraining(result.retraining.index))
        for result in source.results(spec)
        if _key(result) not in present
    ]
