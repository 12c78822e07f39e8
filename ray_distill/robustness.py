"""How much of a set's accuracy is its images', and how much its labels' and its augmentation's.

The scores of DD-Ranking (Li et al., "DD-Ranking: Rethinking the evaluation of dataset distillation", arXiv
2505.13300), on accuracies as fractions, w = 1/2:

    hard label recovery       HLR = acc(whole training set) - acc(set, hard labels)
    improvement over random   IOR = acc(set, its own labels) - acc(random real images)
    label-robust score        LRS = squash(w IOR - (1 - w) HLR)
    augmentation-robust score ARS = squash(w (acc(set, augmented) - acc(random real images, augmented))
                                           + (1 - w) (acc(set) - acc(random real images), both without augmentation))
    squash(x) = (e^x - e^-1) / (e - e^-1),   which is 0 at x = -1 and 1 at x = 1.

What is different here from the published implementation, and makes numbers comparable among ours only: a set is trained on
with its own protocol and tested once at its horizon, where theirs takes the best epoch on the test split. The learning
rate is the set's own unless it was chosen on validation data. And random real images have their classes for labels, where
theirs get labels from a teacher: a set whose labels are learnt is given credit for them in IOR.
"""

import math
from dataclasses import dataclass

WEIGHT = 0.5


def squash(x: float) -> float:
    """(e^x - e^-1) / (e - e^-1): increasing, 0 at -1, 1 at 1."""
    return (math.exp(x) - math.exp(-1)) / (math.e - math.exp(-1))


@dataclass(frozen=True, kw_only=True)
class LabelRobustness:
    """The label-robust score from four accuracies, fractions."""

    whole_train: float
    """Of the whole training set."""
    hard_labels: float
    """Of the set, with the most probable class for a label."""
    own_labels: float
    """Of the set as it is."""
    random_real: float
    """Of as many random real images under the same protocol."""

    @property
    def hard_label_recovery(self) -> float:
        """HLR: what is lost against the whole training set. Less is better."""
        return self.whole_train - self.hard_labels

    @property
    def improvement_over_random(self) -> float:
        """IOR. More is better."""
        return self.own_labels - self.random_real

    @property
    def score(self) -> float:
        """LRS, 0 to 1. More is better."""
        return squash(WEIGHT * self.improvement_over_random - (1 - WEIGHT) * self.hard_label_recovery)


@dataclass(frozen=True, kw_only=True)
class AugmentationRobustness:
    """The augmentation-robust score from four accuracies, fractions."""

    augmented: float
    """Of the set."""
    random_augmented: float
    """Of as many random real images."""
    plain: float
    """Of the set, without augmentation."""
    random_plain: float
    """Of as many random real images, without augmentation."""

    @property
    def gain_augmented(self) -> float:
        """Improvement over random images with augmentation."""
        return self.augmented - self.random_augmented

    @property
    def gain_plain(self) -> float:
        """Improvement over random images without augmentation."""
        return self.plain - self.random_plain

    @property
    def score(self) -> float:
        """ARS, 0 to 1. More is better."""
        return squash(WEIGHT * self.gain_augmented + (1 - WEIGHT) * self.gain_plain)
