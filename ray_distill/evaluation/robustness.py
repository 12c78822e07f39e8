"""How much of a set's accuracy is its images', and how much its labels' and its augmentation's.

The scores of DD-Ranking (Li et al., "DD-Ranking: Rethinking the evaluation of dataset distillation", arXiv
2505.13300), on accuracies as fractions, w = 1/2:

    hard label recovery       HLR = acc(whole training set) - acc(set, hard labels)
    improvement over random   IOR = acc(set, its own labels) - acc(random real images)
    label-robust score        LRS = squash(w IOR - (1 - w) HLR)
    augmentation-robust score ARS = squash(w (acc(set, augmented) - acc(random real images, augmented))
                                           + (1 - w) (acc(set) - acc(random real images), both without augmentation))
    squash(x) = (e^x - e^-1) / (e - e^-1),   which is 0 at x = -1 and 1 at x = 1.

Accuracies are means over retrainings, after the last horizon. Where a treatment would change nothing, it is not trained:
hard labels where a set's own are, no augmentation where it has none. Then its own accuracy stands for it.

What is different here from the published implementation, and makes numbers comparable among ours only: a set is trained on
with its own protocol and tested once at its horizon, where theirs takes the best epoch on the test split. The learning
rate is the set's own unless it was chosen on validation data. And random real images have their classes for labels, where
theirs get labels from a teacher: a set whose labels are learnt is given credit for them in IOR.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeGuard

from ray_distill.evaluation.results import Kind, ResultRow, Treatment, at_last_horizon

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


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """The scores of one set by one network."""

    subject: str
    network: str
    inner_steps: int
    """The horizon of the set's accuracies."""
    labels: LabelRobustness | None
    """None if one of its parts could not be trained."""
    augmentation: AugmentationRobustness | None
    """None if one of its parts could not be trained."""
    own_labels_are_hard: bool
    """Whether hard labels are the set's own, so that both halves of the label-robust score are about the same."""

    def describe(self) -> str:
        """The scores and their parts, in words: three lines."""
        labels = augmentation = "unknown, since a part of it failed"
        if (of := self.labels) is not None:
            hard = "its own labels are hard labels" if self.own_labels_are_hard else "with hard labels"
            labels = (
                f"{of.score:.3f}: {_points(-of.hard_label_recovery)} the whole training set ({hard}), "
                f"{_points(of.improvement_over_random)} random real images"
            )
        if (by := self.augmentation) is not None:
            augmentation = (
                f"{by.score:.3f}: {_points(by.gain_augmented)} random real images with DSA's augmentation, "
                f"{_points(by.gain_plain)} them with none"
            )
        return f"{self.subject}, {self.network}:\n  label-robust score {labels}\n  augmentation-robust score {augmentation}"

    def to_dict(self) -> dict[str, Any]:
        """The scores and all their parts, as plain data."""
        values: dict[str, Any] = {"subject": self.subject, "network": self.network}
        values["inner_steps"] = self.inner_steps
        values["own_labels_are_hard"] = self.own_labels_are_hard
        if (of := self.labels) is not None:
            values["label_robust_score"] = of.score
            values["hard_label_recovery"] = of.hard_label_recovery
            values["improvement_over_random"] = of.improvement_over_random
            values["accuracies_by_labels"] = asdict(of)
        if (by := self.augmentation) is not None:
            values["augmentation_robust_score"] = by.score
            values["gain_augmented"], values["gain_plain"] = by.gain_augmented, by.gain_plain
            values["accuracies_by_augmentation"] = asdict(by)
        return values


def _points(difference: float) -> str:
    return f"{abs(100 * difference):.1f} points {'below' if difference < 0 else 'above'}"


def robustness_of(rows: Sequence[ResultRow], beside: Mapping[str, Mapping[Kind, str]]) -> list[Robustness]:
    """The scores of each set by each network that all the parts were to be trained with.

    Args:
        beside: for each set the subjects of its baselines `random_real` and `whole_train`.
    """
    last = at_last_horizon(rows)
    found = {(row.kind, row.subject, row.treatment, row.network): row.mean for row in last}
    return [
        _robustness(found, row, beside[row.subject])
        for row in last
        if (row.kind, row.treatment) == ("distilled", "own")
        and ("whole_train", beside[row.subject]["whole_train"], "own", row.network) in found
    ]


_Found = Mapping[tuple[Kind, str, Treatment, str], float | None]


def _robustness(found: _Found, own: ResultRow, baselines: Mapping[Kind, str]) -> Robustness:
    name, network = own.subject, own.network

    def of(kind: Kind, treatment: Treatment) -> float | None:
        """Its own accuracy where the treatment is the same."""
        subject = baselines.get(kind, name)
        same = found.get((kind, subject, "own", network))
        return found.get((kind, subject, treatment, network), same)

    labels = {
        "whole_train": of("whole_train", "own"),
        "hard_labels": of("distilled", "hard_labels"),
        "own_labels": of("distilled", "own"),
        "random_real": of("random_real", "own"),
    }
    augmentation = {
        "augmented": of("distilled", "augmentation"),
        "random_augmented": of("random_real", "augmentation"),
        "plain": of("distilled", "no_augmentation"),
        "random_plain": of("random_real", "no_augmentation"),
    }
    return Robustness(
        subject=name,
        network=network,
        inner_steps=own.inner_steps or 0,
        labels=LabelRobustness(**labels) if _all_known(labels) else None,
        augmentation=AugmentationRobustness(**augmentation) if _all_known(augmentation) else None,
        own_labels_are_hard=("distilled", name, "hard_labels", network) not in found,
    )


def _all_known(accuracies: Mapping[str, float | None]) -> TypeGuard[dict[str, float]]:
    return None not in accuracies.values()
