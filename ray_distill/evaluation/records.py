"""What an evaluation finds out: one record for each retrained network at each horizon, and what could not be done.

Plain data, so that the pool, the files, the tables and the plots need to know nothing of each other.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["distilled", "subset", "random_real", "herding", "k_means", "whole_train"]
"""A distilled set, random images of one, so many of each class, or one of the baselines."""

Treatment = Literal["own", "hard_labels", "no_augmentation", "augmentation"]
"""How a network is trained on it: as the set's own protocol says, with the most probable class for a label, without
augmentation, or with the robustness score's augmentation."""


@dataclass(frozen=True)
class Retraining:
    """Which network was trained on what, and how: what a record or a failure is about."""

    subject: str
    """What was trained on: a distilled set's name, or that of a baseline, beside a set with whose protocol it goes."""
    kind: Kind
    treatment: Treatment
    num_images: int
    """Images trained on."""
    network: str
    index: int
    """Which fresh start, and for random subjects which draw."""


@dataclass(frozen=True)
class Record:
    """An accuracy, a fraction of the test images."""

    of: Retraining
    lr: float
    inner_steps: int
    """The horizon."""
    test_accuracy: float
    seconds: float
    """Of training up to the horizon and testing, a share of it where several networks were trained at once."""


@dataclass(frozen=True)
class Failure:
    """A retraining that could not be done, and why."""

    of: Retraining
    reason: str
