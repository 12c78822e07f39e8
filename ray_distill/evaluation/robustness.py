"""Robustness scores of DD-Ranking: how much of a set's accuracy is due to its images, not to its labels and augmentation.

From Li et al., "DD-Ranking: Rethinking the evaluation of dataset distillation", arXiv 2505.13300, on accuracies as
fractions, w = 1/2:

    hard label recovery       HLR = acc(whole training set) - acc(set, hard labels)
    improvement over random   IOR = acc(set, its own labels) - acc(random real images)
    label-robust score        LRS = squash(w IOR - (1 - w) HLR)
    augmentation-robust score ARS = squash(w (acc(set, augmented) - acc(random real images, augmented))
                                           + (1 - w) (acc(set) - acc(random real images), both without augmentation))
    squash(x) = (e^x - e^-1) / (e - e^-1),   which is 0 at x = -1 and 1 at x = 1.

Accuracies are means over retrainings, after the last horizon. A treatment that would change nothing is not trained (hard
labels of a set whose labels are hard, no augmentation of a set without); the set's own accuracy is used instead.

Three differences from the published implementation make the numbers comparable only among ours. A set is trained with its
own protocol and tested once, at its horizon; theirs takes the best epoch on the test split. The learning rate is the set's
own unless it was tuned on validation data. And random real images are labelled with their classes; theirs get labels from a
teacher, so that here a set with learnt labels has credit for them in IOR.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_distill.evaluation.results import Kind, ResultRow, Treatment, at_last_horizon

WEIGHT = 0.5

_Accuracies = dict[str, float]


def squash(x: float) -> float:
    """(e^x - e^-1) / (e - e^-1): increasing, 0 at -1, 1 at 1."""
    return (math.exp(x) - math.exp(-1)) / (math.e - math.exp(-1))


def label_robustness(
    *, whole_train: float, hard_labels: float, own_labels: float, random_real: float
) -> dict[str, float]:
    """LRS, HLR and IOR from four accuracies: of the whole training set, the set with hard and with its own labels, and
    as many random real images.
    """
    recovery, improvement = whole_train - hard_labels, own_labels - random_real
    return {
        "label_robust_score": squash(WEIGHT * improvement - (1 - WEIGHT) * recovery),
        "hard_label_recovery": recovery,
        "improvement_over_random": improvement,
    }


def augmentation_robustness(
    *, augmented: float, random_augmented: float, plain: float, random_plain: float
) -> dict[str, float]:
    """ARS and its two gains from four accuracies: of the set and of as many random real images, with DSA's augmentation
    and with none.
    """
    gain_augmented, gain_plain = augmented - random_augmented, plain - random_plain
    return {
        "augmentation_robust_score": squash(WEIGHT * gain_augmented + (1 - WEIGHT) * gain_plain),
        "gain_augmented": gain_augmented,
        "gain_plain": gain_plain,
    }


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """The scores of one set by one network."""

    subject: str
    network: str
    inner_steps: int
    """The horizon of the set's accuracies."""
    own_labels_are_hard: bool
    """Whether hard labels are the set's own, so that HLR and IOR are about the same training."""
    labels: _Accuracies | None
    """Arguments of `label_robustness`; None if one of them is missing because its retrainings failed."""
    augmentation: _Accuracies | None
    """Arguments of `augmentation_robustness`; None likewise."""

    @property
    def scores(self) -> dict[str, float]:
        """Of both functions, as far as their arguments are known."""
        scores = {} if self.labels is None else label_robustness(**self.labels)
        return scores if self.augmentation is None else scores | augmentation_robustness(**self.augmentation)

    def describe(self) -> str:
        """The scores and their parts: three lines."""
        labels = augmentation = "unknown, since some retrainings failed"
        scores = self.scores
        if self.labels is not None:
            hard = "its own labels are hard labels" if self.own_labels_are_hard else "with hard labels"
            labels = (
                f"{scores['label_robust_score']:.3f}: {_points(-scores['hard_label_recovery'])} the whole training set "
                f"({hard}), {_points(scores['improvement_over_random'])} random real images"
            )
        if self.augmentation is not None:
            augmentation = (
                f"{scores['augmentation_robust_score']:.3f}: {_points(scores['gain_augmented'])} random real images with "
                f"DSA's augmentation, {_points(scores['gain_plain'])} them with none"
            )
        return f"{self.subject}, {self.network}:\n  label-robust score {labels}\n  augmentation-robust score {augmentation}"

    def to_dict(self) -> dict[str, Any]:
        """The scores and the accuracies, as plain data."""
        values: dict[str, Any] = {
            "subject": self.subject,
            "network": self.network,
            "inner_steps": self.inner_steps,
            "own_labels_are_hard": self.own_labels_are_hard,
            **self.scores,
        }
        if self.labels is not None:
            values["accuracies_by_labels"] = self.labels
        if self.augmentation is not None:
            values["accuracies_by_augmentation"] = self.augmentation
        return values


def _points(difference: float) -> str:
    return f"{abs(100 * difference):.1f} points {'below' if difference < 0 else 'above'}"


def robustness_scores(
    rows: Sequence[ResultRow], baselines: Mapping[str, Mapping[Kind, str]]
) -> list[Robustness]:
    """The scores of each set by each network for which there is a row on the whole training set.

    Args:
        baselines: for each set the subjects of its baselines `random_real` and `whole_train`.
    """
    last = at_last_horizon(rows)
    means = {(row.kind, row.subject, row.treatment, row.network): row.mean for row in last}
    return [
        _robustness(means, row, baselines[row.subject])
        for row in last
        if (row.kind, row.treatment) == ("distilled", "own")
        and ("whole_train", baselines[row.subject]["whole_train"], "own", row.network) in means
    ]


def _robustness(
    means: Mapping[tuple[Kind, str, Treatment, str], float | None],
    row: ResultRow,
    baselines: Mapping[Kind, str],
) -> Robustness:
    name, network = row.subject, row.network

    def known(**wanted: tuple[Kind, Treatment]) -> _Accuracies | None:
        """None if one of them is missing. A treatment that was not trained has the accuracy of the set's own."""
        accuracies: _Accuracies = {}
        for argument, (kind, treatment) in wanted.items():
            subject = baselines.get(kind, name)
            own = means.get((kind, subject, "own", network))
            mean = means.get((kind, subject, treatment, network), own)
            if mean is None:
                return None
            accuracies[argument] = mean
        return accuracies

    return Robustness(
        subject=name,
        network=network,
        inner_steps=row.inner_steps or 0,
        own_labels_are_hard=("distilled", name, "hard_labels", network) not in means,
        labels=known(
            whole_train=("whole_train", "own"),
            hard_labels=("distilled", "hard_labels"),
            own_labels=("distilled", "own"),
            random_real=("random_real", "own"),
        ),
        augmentation=known(
            augmented=("distilled", "augmentation"),
            random_augmented=("random_real", "augmentation"),
            plain=("distilled", "no_augmentation"),
            random_plain=("random_real", "no_augmentation"),
        ),
    )
