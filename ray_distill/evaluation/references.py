"""What the whole training set gives, kept for all evaluations of one machine.

It is by far the longest to train on, and has nothing to do with the set that stands beside it: data, split, protocol,
network and seed settle it, and its fingerprint covers them. So it is trained once for each network, and not once for each
set that is judged. (Of the scores of DD-Ranking the label-robust one needs it; the augmentation-robust one does not.)

Lies in the cache of prepared data: `references/FINGERPRINT.jsonl`, lines as in the journal of an evaluation.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ray_distill.evaluation.jobs import LrCandidate, TableRowSpec
from ray_distill.evaluation.journal import ResultsLog, entry
from ray_distill.evaluation.records import Record
from ray_distill.utils.atomic import write_text


def recall(cache: Path, lines: Iterable[TableRowSpec], journal: ResultsLog) -> None:
    """Add to the journal what is known of its lines and it lacks. Raises: JournalError for a file that cannot be read."""
    for line in _whole(lines):
        if missing := _missing(line, ResultsLog(_path(cache, line)), journal):
            journal.add(line, missing)


def remember(cache: Path, lines: Iterable[TableRowSpec], journal: ResultsLog) -> None:
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
