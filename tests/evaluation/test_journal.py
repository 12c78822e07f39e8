"""The whole training set's accuracies, shared by evaluations."""

from dataclasses import replace
from pathlib import Path

import pytest

from ray_distill.evaluation.jobs import LrCandidate, TableRowSpec, lines_of
from ray_distill.evaluation.journal import ResultsLog, cache_whole_train, restore_whole_train
from ray_distill.evaluation.results import Record
from ray_distill.evaluation.subjects import EvaluationSet
from tests.helpers.evaluated_sets import judged_of
from tests.helpers.tiny import tiny_config


@pytest.fixture(scope="module")
def mine() -> EvaluationSet:
    return judged_of(tiny_config(evaluation={"whole_train_seeds": 2}))


def found(line: TableRowSpec) -> list[Record | LrCandidate]:
    of = [line.retraining(index) for index in range(2)]
    return [
        LrCandidate(of[0], line.own_lr, line.horizons[-1], 0.25),
        *(Record(one, line.own_lr, line.horizons[-1], 0.5 + one.index / 10, 1.0) for one in of),
    ]


def test_another_evaluation_knows_them_under_the_name_of_its_own(mine: EvaluationSet, tmp_path: Path) -> None:
    """One table alone, then one with a second set of another protocol beside, where the whole set is named by its
    neighbour: records and trials are there, the second protocol's are not; nothing of the distilled sets is kept."""
    lines, first = lines_of([mine]), ResultsLog()
    for line in lines:
        first.add(line, found(line))
    cache_whole_train(tmp_path, lines, first)
    other = replace(
        judged_of(mine.config, "other", scale=2.0), config=tiny_config(inner={"augmentation": []})
    )
    both, second = lines_of([mine, other]), ResultsLog(tmp_path / "records.jsonl")
    restore_whole_train(tmp_path, both, second)
    known = [line for line in both if second.of(line)]
    assert [line.subject.name for line in known] == ["whole_train beside mine"]
    (line,) = known
    assert second.of(line) == found(line)
    assert ResultsLog(tmp_path / "records.jsonl").of(line) == found(line), "they are written down"
    restore_whole_train(tmp_path, both, second)
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 3


def test_what_is_kept_grows(mine: EvaluationSet, tmp_path: Path) -> None:
    """One network of an evaluation, another of the next: both are known, each once."""
    line = next(line for line in lines_of([mine]) if line.subject.kind == "whole_train")
    for part in (found(line)[:2], found(line)[2:]):
        journal = ResultsLog()
        journal.add(line, part)
        cache_whole_train(tmp_path, [line], journal)
        cache_whole_train(tmp_path, [line], journal)
    journal = ResultsLog()
    restore_whole_train(tmp_path, [line], journal)
    assert journal.of(line) == found(line)
    assert [path.name for path in (tmp_path / "references").iterdir()] == [f"{line.fingerprint}.jsonl"]


def test_trials_of_other_step_sizes_are_others(mine: EvaluationSet, tmp_path: Path) -> None:
    """Two evaluations that tried one step size each, with the same network: both are known."""
    line = next(line for line in lines_of([mine]) if line.subject.kind == "whole_train")
    tried = [LrCandidate(line.retraining(0), lr, line.horizons[-1], 0.25) for lr in (0.1, 0.2)]
    for trial in tried:
        journal = ResultsLog()
        journal.add(line, [trial])
        cache_whole_train(tmp_path, [line], journal)
    journal = ResultsLog()
    restore_whole_train(tmp_path, [line], journal)
    assert journal.of(line) == tried
