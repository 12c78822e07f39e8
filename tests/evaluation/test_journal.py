"""The cache of results on the whole training set, shared by evaluations."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ray_distill.evaluation.jobs import LrCandidate, RetrainingSpec, specs_for
from ray_distill.evaluation.journal import ResultsLog, cache_whole_train, restore_whole_train
from ray_distill.evaluation.results import Record
from ray_distill.evaluation.subjects import EvaluationSet
from tests.helpers.evaluated_sets import evaluation_set_of
from tests.helpers.tiny import tiny_config


@pytest.fixture(scope="module")
def mine() -> EvaluationSet:
    return evaluation_set_of(tiny_config(evaluation={"whole_train_seeds": 2}))


def results(spec: RetrainingSpec) -> list[Record | LrCandidate]:
    retrainings = [spec.retraining(index) for index in range(2)]
    return [
        LrCandidate(retrainings[0], spec.protocol_lr, spec.horizons[-1], 0.25),
        *(Record(r, spec.protocol_lr, spec.horizons[-1], 0.5 + r.index / 10, 1.0) for r in retrainings),
    ]


def test_another_evaluation_restores_them_under_its_own_name(mine: EvaluationSet, tmp_path: Path) -> None:
    """First a table of one set, then one with a second set of another protocol, where the row's name includes the set: its
    records and lr candidates are restored, and nothing of the second protocol or of the distilled sets."""
    specs, first = specs_for([mine]), ResultsLog()
    for spec in specs:
        first.add(spec, results(spec))
    cache_whole_train(tmp_path, specs, first)
    other = replace(
        evaluation_set_of(mine.config, "other", scale=2.0), config=tiny_config(inner={"augmentation": []})
    )
    both, second = specs_for([mine, other]), ResultsLog(tmp_path / "records.jsonl")
    restore_whole_train(tmp_path, both, second)
    restored = [spec for spec in both if second.results(spec)]
    assert [spec.subject.name for spec in restored] == ["whole_train beside mine"]
    (spec,) = restored
    assert second.results(spec) == results(spec)
    assert ResultsLog(tmp_path / "records.jsonl").results(spec) == results(spec), "restored results are saved"
    restore_whole_train(tmp_path, both, second)
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 3


def test_the_cache_grows(mine: EvaluationSet, tmp_path: Path) -> None:
    """One network of an evaluation, another of the next: both are cached, each once."""
    spec = next(spec for spec in specs_for([mine]) if spec.subject.kind == "whole_train")
    for part in (results(spec)[:2], results(spec)[2:]):
        log = ResultsLog()
        log.add(spec, part)
        cache_whole_train(tmp_path, [spec], log)
        cache_whole_train(tmp_path, [spec], log)
    log = ResultsLog()
    restore_whole_train(tmp_path, [spec], log)
    assert log.results(spec) == results(spec)
    assert [path.name for path in (tmp_path / "references").iterdir()] == [f"{spec.fingerprint}.jsonl"]


def test_candidates_of_different_lrs_are_different(mine: EvaluationSet, tmp_path: Path) -> None:
    """Two evaluations that tried one lr each, with the same network: both are cached."""
    spec = next(spec for spec in specs_for([mine]) if spec.subject.kind == "whole_train")
    candidates = [LrCandidate(spec.retraining(0), lr, spec.horizons[-1], 0.25) for lr in (0.1, 0.2)]
    for candidate in candidates:
        log = ResultsLog()
        log.add(spec, [candidate])
        cache_whole_train(tmp_path, [spec], log)
    log = ResultsLog()
    restore_whole_train(tmp_path, [spec], log)
    assert log.results(spec) == candidates


def test_the_format_of_the_file(mine: EvaluationSet, tmp_path: Path) -> None:
    """Folders and caches of earlier versions stay readable: the keys are theirs."""
    spec = next(spec for spec in specs_for([mine]) if spec.subject.kind == "whole_train")
    ResultsLog(tmp_path / "records.jsonl").add(spec, results(spec)[:2])
    candidate, record = map(json.loads, (tmp_path / "records.jsonl").read_text().splitlines())
    of = {"subject": "whole_train", "kind": "whole_train", "treatment": "own", "num_images": 160}
    of |= {"network": "convnet1", "index": 0}
    assert candidate == {
        "line": spec.fingerprint,
        "lr_trial": {"of": of, "lr": 0.001, "inner_steps": spec.horizons[-1], "validation_accuracy": 0.25},
    }
    assert record == {
        "line": spec.fingerprint,
        "record": {
            **{"of": of, "lr": 0.001, "inner_steps": spec.horizons[-1]},
            **{"test_accuracy": 0.5, "seconds": 1.0},
        },
    }
