"""Results of an evaluation: statistics by hand, order, files."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_distill.evaluation.report import ResultsError, markdown, read_results, write_results
from ray_distill.evaluation.results import (
    Failure,
    Record,
    Retraining,
    at_last_horizon,
    half_width,
    label,
    result_rows,
    sort_results,
)


def retraining(subject: str = "mine", network: str = "convnet3", index: int = 0, **other: Any) -> Retraining:
    values = {"kind": "distilled", "treatment": "own", "num_images": 10} | other
    return Retraining(subject=subject, network=network, index=index, **values)


def record(accuracy: float, inner_steps: int = 100, **other: Any) -> Record:
    return Record(retraining(**other), lr=0.001, inner_steps=inner_steps, test_accuracy=accuracy, seconds=2.0)


def some() -> tuple[list[Record], list[Failure]]:
    """Two sets, a baseline and subsets, two networks and two horizons; all of resnet18 on the baseline failed, and
    one of it on the second set."""
    records = [
        record(
            0.5 + 0.1 * index + 0.01 * (steps == 100), steps, subject=subject, network=network, index=index
        )
        for subject in ("z first", "a second")
        for network in ("resnet18", "convnet3")
        for index in range(3)
        for steps in (50, 100)
        if (subject, network, index) != ("a second", "resnet18", 1)
    ]
    records += [record(0.3, steps, subject="random", kind="random_real") for steps in (50, 100)]
    records += [record(0.4, 100, subject="z first", kind="subset", num_images=n) for n in (2, 5)]
    records.append(record(0.9, 7000, subject="all", kind="whole_train", num_images=50_000))
    failures = [
        Failure(retraining("random", "resnet18", index, kind="random_real"), f"out of memory, {index}")
        for index in (1, 0)
    ]
    return records, [*failures, Failure(retraining("a second", "resnet18", 1), "killed")]


def test_a_row_has_mean_std_and_students_interval() -> None:
    """0.6, 0.7, 0.8: mean 0.7, std 0.1 (sum of squares 0.02 over n - 1 = 2), and t(0.975, 2) = 4.30265 from any
    table, so that the interval is 0.7 +- 4.30265 * 0.1 / sqrt(3) = 0.7 +- 0.248414."""
    (row,) = result_rows([record(a, index=i) for i, a in enumerate((0.6, 0.8, 0.7))])
    assert row.mean == pytest.approx(0.7, abs=1e-15)
    assert row.std == pytest.approx(0.1, abs=1e-15)
    assert row.half_width == pytest.approx(0.248414, abs=1e-6)
    assert (row.n, row.num_failed, row.reason) == (3, 0, None)


def test_students_interval_of_one_degree_of_freedom_has_a_closed_form() -> None:
    """With one degree of freedom t is Cauchy: its 97.5% quantile is tan(0.475 pi)."""
    assert half_width(1.0, 2) == pytest.approx(math.tan(0.475 * math.pi) / math.sqrt(2), rel=1e-12)


def test_an_interval_stays_where_accuracies_are() -> None:
    """0.9 and 1.0: mean 0.95, std 0.0707, +- 12.7 * 0.0707 / sqrt(2) = 0.635: from 0.315 to 1, not 1.585."""
    (row,) = result_rows([record(a, index=i) for i, a in enumerate((0.9, 1.0))])
    assert row.half_width == pytest.approx(0.6353, abs=1e-4)
    assert row.interval == pytest.approx((0.3147, 1.0), abs=1e-4)


def test_one_retraining_has_no_spread() -> None:
    (row,) = result_rows([record(0.6)])
    assert (row.mean, row.std, row.half_width, row.n) == (0.6, None, None, 1)
    assert row.interval is None


def test_the_interval_covers_the_mean_in_95_of_100_samples() -> None:
    """4,000 samples of 3 from a normal distribution: a fraction of 0.95, with a standard deviation of 0.0034.
    With a normal quantile for Student's it would be 0.81."""
    draw = random.Random(1)
    covered = 0
    for _ in range(4000):
        records = [record(draw.gauss(0.5, 0.1), index=i) for i in range(3)]
        (row,) = result_rows(records)
        assert row.mean is not None
        assert row.half_width is not None
        covered += abs(row.mean - 0.5) <= row.half_width
    assert covered / 4000 == pytest.approx(0.95, abs=0.012)


def test_distilled_sets_come_first_and_the_order_of_arrival_does_not_matter() -> None:
    """Kinds, subjects and networks as first named (not by their letters), horizons and images by number."""
    records, failures = some()
    rows = result_rows(records, failures)
    names = list(dict.fromkeys((row.subject, row.kind, row.num_images) for row in rows))
    assert names == [
        ("z first", "distilled", 10),
        ("a second", "distilled", 10),
        ("z first", "subset", 5),
        ("z first", "subset", 2),
        ("random", "random_real", 10),
        ("all", "whole_train", 50_000),
    ]
    assert [(row.network, row.inner_steps) for row in rows[:4]] == [
        ("resnet18", 50),
        ("resnet18", 100),
        ("convnet3", 50),
        ("convnet3", 100),
    ]
    of_one = [
        r
        for r in sort_results(records).records
        if (r.retraining.subject, r.retraining.network) == ("z first", "resnet18")
    ]
    assert [(r.inner_steps, r.retraining.index) for r in of_one if r.retraining.kind == "distilled"] == [
        *((50, index) for index in range(3)),
        *((100, index) for index in range(3)),
    ]
    first, rest = records[:13], records[13:]
    random.Random(1).shuffle(rest)
    assert result_rows([*first, *rest], failures[::-1]) == rows


def test_failures_are_rows_with_their_reason() -> None:
    """All of a kind failed: a row for each horizon of the other network; some: counted beside those that did not."""
    rows = result_rows(*some())
    whole = [row for row in rows if row.subject == "random" and row.network == "resnet18"]
    assert [(row.inner_steps, row.n, row.mean, row.num_failed, row.reason) for row in whole] == [
        (50, 0, None, 2, "out of memory, 0"),
        (100, 0, None, 2, "out of memory, 0"),
    ]
    part = [row for row in rows if row.subject == "a second" and row.network == "resnet18"]
    assert [(row.n, row.num_failed, row.reason) for row in part] == [(2, 1, "killed")] * 2
    (alone,) = result_rows([], [Failure(retraining(), "killed")])
    assert (alone.inner_steps, alone.n, alone.num_failed) == (None, 0, 1)


def test_a_retraining_counts_once() -> None:
    with pytest.raises(ValueError, match="two accuracies after 100 steps"):
        result_rows([record(0.5), record(0.6)])


def test_the_last_horizon_is_that_of_each_subject() -> None:
    """The whole training set is trained on for other numbers of steps than a distilled one."""
    records = [record(0.5, steps) for steps in (50, 100)]
    records.append(record(0.9, 7000, subject="all", kind="whole_train", num_images=50_000))
    rows = at_last_horizon(result_rows(records))
    assert [(row.subject, row.inner_steps) for row in rows] == [("mine", 100), ("all", 7000)]


def test_the_json_gives_back_what_was_written(tmp_path: Path) -> None:
    records, failures = some()
    write_results(tmp_path, records, failures)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "evaluation.json",
        "records.parquet",
        "table.md",
    ]
    results = read_results(tmp_path / "evaluation.json")
    assert set(results.records) == set(records)
    assert set(results.failures) == set(failures)
    assert result_rows(*results) == result_rows(records, failures)
    values = json.loads((tmp_path / "evaluation.json").read_text())
    assert len(values["rows"]) == len(result_rows(records, failures))
    assert values["rows"][1]["mean"] == pytest.approx(0.61)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99; this version of ray_distill reads 1"),
        ({"records": [{}]}, "not the results of an evaluation"),
        ({"failures": [{"reason": "x"}]}, "not the results of an evaluation"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_results(tmp_path, *some())
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ResultsError, match=message):
        read_results(path)
    path.write_text("[]")
    with pytest.raises(ResultsError, match=r"evaluation\.json"):
        read_results(path)
    with pytest.raises(ResultsError, match="missing"):
        read_results(tmp_path / "missing")


def test_the_parquet_has_one_typed_line_for_each_result(tmp_path: Path) -> None:
    records, failures = some()
    write_results(tmp_path, records, failures)
    table = pq.read_table(tmp_path / "records.parquet")
    assert table.num_rows == len(records) + len(failures)
    types = {field.name: field.type for field in table.schema}
    assert types == {
        "subject": pa.string(),
        "kind": pa.string(),
        "treatment": pa.string(),
        "num_images": pa.int64(),
        "network": pa.string(),
        "index": pa.int64(),
        "lr": pa.float64(),
        "inner_steps": pa.int64(),
        "test_accuracy": pa.float64(),
        "seconds": pa.float64(),
        "reason": pa.string(),
    }
    lines = table.to_pylist()
    assert lines[0]["subject"] == "z first"
    assert lines[0]["test_accuracy"] == 0.5
    assert lines[0]["reason"] is None
    assert lines[-1] == {
        "subject": "random",
        "kind": "random_real",
        "treatment": "own",
        "num_images": 10,
        "network": "resnet18",
        "index": 1,
        "lr": None,
        "inner_steps": None,
        "test_accuracy": None,
        "seconds": None,
        "reason": "out of memory, 1",
    }


def test_the_table_is_for_people() -> None:
    """The overview has the last horizon alone, in percent; every row follows, and the reasons."""
    text = markdown(result_rows(*some()))
    overview, every, reasons = text.split("\n\n")[1::2]
    assert overview.splitlines() == [
        "| trained on | images | steps | resnet18 | convnet3 |",
        "|---|---|---|---|---|",
        "| z first | 10 | 100 | 61.0 ± 10.0% (n=3) | 61.0 ± 10.0% (n=3) |",
        "| a second | 10 | 100 | 61.0 ± 14.1% (n=2, 1 failed) | 61.0 ± 10.0% (n=3) |",
        "| 5 random images of z first | 5 | 100 |  | 40.0% (n=1) |",
        "| 2 random images of z first | 2 | 100 |  | 40.0% (n=1) |",
        "| random | 10 | 100 | failed | 30.0% (n=1) |",
        "| all | 50,000 | 7,000 |  | 90.0% (n=1) |",
    ]
    assert "| z first | 10 | convnet3 | 50 | 3 | 60.0% | 10.0% | 35.2% to 84.8% |" in every.splitlines()
    assert reasons.splitlines() == [
        "- resnet18 on a second, 1 failed: killed",
        "- resnet18 on random, 2 failed: out of memory, 0",
    ]


def test_names_do_not_break_the_table() -> None:
    text = markdown(result_rows([record(0.5, subject="a|b", treatment="hard_labels")]))
    assert "| a\\|b, hard labels | 10 | 100 | 50.0% (n=1) |" in text


@pytest.mark.parametrize(
    ("subject", "kind", "treatment", "words"),
    [
        ("mine", "distilled", "own", "mine"),
        ("mine", "distilled", "no_augmentation", "mine, no augmentation"),
        ("mine", "subset", "own", "10 random images of mine"),
        ("random_real", "random_real", "own", "random real images"),
        ("k_means beside a_set", "k_means", "hard_labels", "k-means centres beside a_set, hard labels"),
    ],
)
def test_subjects_in_words(subject: str, kind: Any, treatment: Any, words: str) -> None:
    assert label(subject, kind, treatment, 10) == words
