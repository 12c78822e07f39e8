"""The scores of DD-Ranking, by hand."""

import math
from typing import Any

import pytest

from ray_distill.evaluation.report import markdown
from ray_distill.evaluation.results import Kind, ResultRow
from ray_distill.evaluation.robustness import (
    augmentation_robustness,
    label_robustness,
    robustness_scores,
    squash,
)

BESIDE: dict[str, dict[Kind, str]] = {
    "mine": {"random_real": "random_real beside mine", "whole_train": "whole_train"}
}


def test_the_squashed_range_is_0_to_1() -> None:
    """squash(-1) = 0 and squash(1) = 1; squash(0) = (1 - 1/e) / (e - 1/e) = e (1 - 1/e) / ((e - 1) (e + 1) / 1) =
    1 / (e + 1), below the middle: the score is convex."""
    assert squash(-1.0) == pytest.approx(0.0, abs=1e-15)
    assert squash(1.0) == pytest.approx(1.0, abs=1e-15)
    assert squash(0.0) == pytest.approx(1 / (math.e + 1), abs=1e-15)


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_a_perfect_set(num_classes: int) -> None:
    """As good as the whole set, which is never wrong, while random images teach nothing: HLR 0, IOR 1 - 1/K, so
    that alpha is half of it."""
    perfect = label_robustness(whole_train=1.0, hard_labels=1.0, own_labels=1.0, random_real=1 / num_classes)
    assert perfect["hard_label_recovery"] == 0
    assert perfect["improvement_over_random"] == pytest.approx(1 - 1 / num_classes)
    assert perfect["label_robust_score"] == pytest.approx(squash((1 - 1 / num_classes) / 2))


def test_a_useless_set() -> None:
    """At chance with either labels, like random images, while the whole set is never wrong: alpha = -(1 - 1/K) / 2."""
    useless = label_robustness(whole_train=1.0, hard_labels=0.1, own_labels=0.1, random_real=0.1)
    assert useless["label_robust_score"] == pytest.approx(squash(-0.45))
    assert useless["label_robust_score"] < squash(0.0)


def test_labels_alone_do_not_make_a_good_score() -> None:
    """A set that is good with its own labels only gains IOR 0.6 and loses HLR 0.8: alpha = 0.3 - 0.4 = -0.1. The
    value: (e^-0.1 - e^-1) / (e - e^-1) = (0.9048374 - 0.3678794) / 2.3504024 = 0.2284536."""
    labels = label_robustness(whole_train=0.9, hard_labels=0.1, own_labels=0.7, random_real=0.1)
    assert labels["improvement_over_random"] == pytest.approx(0.6)
    assert labels["hard_label_recovery"] == pytest.approx(0.8)
    assert labels["label_robust_score"] == pytest.approx(0.2284536, abs=1e-7)


def test_both_halves_of_the_augmentation_score_count_alike() -> None:
    """Gains of 0.3 with and 0.1 without augmentation: beta = 0.2, (e^0.2 - e^-1) / (e - e^-1) = (1.2214028 -
    0.3678794) / 2.3504024 = 0.3631393; the other way round it is the same."""
    one = augmentation_robustness(augmented=0.5, random_augmented=0.2, plain=0.4, random_plain=0.3)
    other = augmentation_robustness(augmented=0.4, random_augmented=0.3, plain=0.5, random_plain=0.2)
    assert one["gain_augmented"] == pytest.approx(0.3)
    assert one["gain_plain"] == pytest.approx(0.1)
    assert one["augmentation_robust_score"] == pytest.approx(0.3631393, abs=1e-7)
    assert other["augmentation_robust_score"] == pytest.approx(one["augmentation_robust_score"], abs=1e-15)


def test_a_set_as_good_as_random_images_scores_squash_of_0() -> None:
    same = augmentation_robustness(augmented=0.5, random_augmented=0.5, plain=0.4, random_plain=0.4)
    assert same["augmentation_robust_score"] == pytest.approx(1 / (math.e + 1))


def row(mean: float | None, kind: Any = "distilled", treatment: Any = "own", **other: Any) -> ResultRow:
    subject = BESIDE["mine"].get(kind, "mine")
    values = {"subject": subject, "num_images": 10, "network": "convnet3", "inner_steps": 100, "n": 3} | other
    spread = {"std": 0.01, "half_width": 0.02, "num_failed": 0, "reason": None}
    return ResultRow(kind=kind, treatment=treatment, mean=mean, **values, **spread)


def rows(hard_labels: float | None = 0.5) -> list[ResultRow]:
    """All that is needed for one set and one network, and what must not be taken for it: another horizon, other
    random images, a network without the whole training set, a subset."""
    return [
        row(0.1, inner_steps=50),
        row(0.7),
        row(hard_labels, treatment="hard_labels"),
        row(0.6, treatment="no_augmentation"),
        row(0.65, treatment="augmentation"),
        row(0.3, "random_real"),
        row(0.25, "random_real", "no_augmentation"),
        row(0.35, "random_real", "augmentation"),
        row(0.99, "random_real", subject="random_real beside another"),
        row(0.9, "whole_train", inner_steps=7000),
        row(0.4, network="mlp1"),
        row(0.2, "subset", num_images=5),
    ]


def test_the_scores_of_an_evaluation() -> None:
    (scores,) = robustness_scores(rows(), BESIDE)
    assert (scores.subject, scores.network, scores.own_labels_are_hard) == ("mine", "convnet3", False)
    assert scores.inner_steps == 100
    assert scores.labels == {"whole_train": 0.9, "hard_labels": 0.5, "own_labels": 0.7, "random_real": 0.3}
    assert scores.augmentation == {
        "augmented": 0.65,
        "random_augmented": 0.35,
        "plain": 0.6,
        "random_plain": 0.25,
    }
    values = scores.to_dict()
    assert values["label_robust_score"] == label_robustness(**scores.labels)["label_robust_score"]
    assert values["hard_label_recovery"] == pytest.approx(0.4)
    assert values["accuracies_by_augmentation"]["random_plain"] == 0.25


def test_its_own_accuracy_stands_for_a_treatment_that_would_change_nothing() -> None:
    """A set with hard labels and without augmentation: hard labels and no augmentation are its own training."""
    kept = [row for row in rows() if row.treatment in ("own", "augmentation")]
    (scores,) = robustness_scores(kept, BESIDE)
    assert scores.own_labels_are_hard
    assert scores.labels == {"whole_train": 0.9, "hard_labels": 0.7, "own_labels": 0.7, "random_real": 0.3}
    assert scores.augmentation == {
        "augmented": 0.65,
        "random_augmented": 0.35,
        "plain": 0.7,
        "random_plain": 0.3,
    }
    assert "own labels of mine are hard labels" in markdown(kept, [scores])


def test_a_part_that_failed_leaves_its_score_out() -> None:
    """And does not have its place taken by another one."""
    (scores,) = robustness_scores(rows(hard_labels=None), BESIDE)
    assert scores.labels is None
    assert scores.augmentation is not None
    assert "label_robust_score" not in scores.to_dict()
    assert "| mine | convnet3 | failed |  |  | 0." in markdown(rows(), [scores])


def test_the_table_has_the_scores_and_their_parts() -> None:
    """LRS: alpha = (0.4 - 0.4) / 2 = 0, which is 1 / (e + 1) = 0.269. ARS: beta = (0.3 + 0.35) / 2 = 0.325, which is
    (1.3840306 - 0.3678794) / 2.3504024 = 0.432."""
    text = markdown(rows(), robustness_scores(rows(), BESIDE))
    assert "| mine | convnet3 | 0.269 | 40.0% | 40.0% | 0.432 | 30.0% | 35.0% |" in text
    assert "hard labels." not in text


def test_the_scores_in_words() -> None:
    (scores,) = robustness_scores(rows(), BESIDE)
    assert scores.describe().splitlines() == [
        "mine, convnet3:",
        "  label-robust score 0.269: 40.0 points below the whole training set (with hard labels), 40.0 points above "
        "random real images",
        "  augmentation-robust score 0.432: 30.0 points above random real images with DSA's augmentation, 35.0 "
        "points above them with none",
    ]
    (failed,) = robustness_scores(rows(hard_labels=None), BESIDE)
    assert "label-robust score unknown, since some retrainings failed" in failed.describe()
    (hard,) = robustness_scores([row for row in rows() if row.treatment != "hard_labels"], BESIDE)
    assert "(its own labels are hard labels)" in hard.describe()
