"""The scores of DD-Ranking, by hand."""

import math

import pytest

from ray_distill.robustness import AugmentationRobustness, LabelRobustness, squash


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
    perfect = LabelRobustness(whole_train=1.0, hard_labels=1.0, own_labels=1.0, random_real=1 / num_classes)
    assert perfect.hard_label_recovery == 0
    assert perfect.improvement_over_random == pytest.approx(1 - 1 / num_classes)
    assert perfect.score == pytest.approx(squash((1 - 1 / num_classes) / 2))


def test_a_useless_set() -> None:
    """At chance with either labels, like random images, while the whole set is never wrong: alpha = -(1 - 1/K) / 2."""
    useless = LabelRobustness(whole_train=1.0, hard_labels=0.1, own_labels=0.1, random_real=0.1)
    assert useless.score == pytest.approx(squash(-0.45))
    assert useless.score < squash(0.0)


def test_labels_alone_do_not_make_a_good_score() -> None:
    """A set that is good with its own labels only gains IOR 0.6 and loses HLR 0.8: alpha = 0.3 - 0.4 = -0.1. The
    value: (e^-0.1 - e^-1) / (e - e^-1) = (0.9048374 - 0.3678794) / 2.3504024 = 0.2284536."""
    labels = LabelRobustness(whole_train=0.9, hard_labels=0.1, own_labels=0.7, random_real=0.1)
    assert labels.improvement_over_random == pytest.approx(0.6)
    assert labels.hard_label_recovery == pytest.approx(0.8)
    assert labels.score == pytest.approx(0.2284536, abs=1e-7)


def test_both_halves_of_the_augmentation_score_count_alike() -> None:
    """Gains of 0.3 with and 0.1 without augmentation: beta = 0.2, (e^0.2 - e^-1) / (e - e^-1) = (1.2214028 -
    0.3678794) / 2.3504024 = 0.3631393; the other way round it is the same."""
    one = AugmentationRobustness(augmented=0.5, random_augmented=0.2, plain=0.4, random_plain=0.3)
    other = AugmentationRobustness(augmented=0.4, random_augmented=0.3, plain=0.5, random_plain=0.2)
    assert one.gain_augmented == pytest.approx(0.3)
    assert one.gain_plain == pytest.approx(0.1)
    assert one.score == pytest.approx(0.3631393, abs=1e-7)
    assert other.score == pytest.approx(one.score, abs=1e-15)


def test_a_set_as_good_as_random_images_scores_squash_of_0() -> None:
    same = AugmentationRobustness(augmented=0.5, random_augmented=0.5, plain=0.4, random_plain=0.4)
    assert same.score == pytest.approx(1 / (math.e + 1))
