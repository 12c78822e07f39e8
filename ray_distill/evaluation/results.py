"""Rows of an evaluation: the mean over retrainings, and how certain it is.

A row is about one thing trained on, under one treatment, by one network, after one number of inner steps. Its
uncertainty is that of the mean over n retrainings, which differ in their fresh networks, and for random baselines and
subsets also in what was drawn:

    mean +- t(0.975, n - 1) * std / sqrt(n),      std with n - 1 in the denominator,

the 95% interval by Student's t. It says nothing of the test split's own size, and n = 1 has none.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

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


KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order of a table: distilled sets first."""
TREATMENTS: tuple[Treatment, ...] = get_args(Treatment)

_LEVEL = 0.95
_WORDS: dict[Kind, str] = {
    "random_real": "random real images",
    "herding": "herding",
    "k_means": "k-means centres",
    "whole_train": "whole training set",
}
_Place = tuple[Retraining, int | None]
"""What a row is about, with index 0, and its inner steps."""


class Results(NamedTuple):
    """What an evaluation found out."""

    records: list[Record]
    failures: list[Failure]


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """Accuracies, fractions, over the retrainings that differ in their index alone."""

    subject: str
    kind: Kind
    treatment: Treatment
    num_images: int
    network: str
    inner_steps: int | None
    """None if all of them failed, and none of the same subject says after how many steps it would have been."""
    n: int
    """Retrainings that succeeded."""
    mean: float | None
    """None if none did."""
    std: float | None
    """Of the sample; None for n < 2."""
    half_width: float | None
    """The 95% interval is mean +- this; None for n < 2."""
    num_failed: int
    reason: str | None
    """Why the first of those failed."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval, as far as accuracies reach: within 0 and 1. None for n < 2."""
        if self.mean is None or self.half_width is None:
            return None
        return max(0.0, self.mean - self.half_width), min(1.0, self.mean + self.half_width)

    @property
    def trained_on(self) -> tuple[str, Kind, Treatment, int]:
        """What stands in one line of an overview."""
        return self.subject, self.kind, self.treatment, self.num_images

    @property
    def label(self) -> str:
        """What was trained on, in words."""
        return label(*self.trained_on)


def label(subject: str, kind: Kind, treatment: Treatment, num_images: int) -> str:
    """What was trained on, in words."""
    name = f"{num_images} random images of {subject}" if kind == "subset" else subject
    if kind in _WORDS and subject.startswith(kind):
        name = _WORDS[kind] + subject.removeprefix(kind)
    return name if treatment == "own" else f"{name}, {treatment.replace('_', ' ')}"


def half_width(std: float, n: int) -> float:
    """Half of the 95% interval of a mean over n >= 2 values: t(0.975, n - 1) * std / sqrt(n)."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, (1 + _LEVEL) / 2)) * std / math.sqrt(n)


def rows_of(records: Sequence[Record], failures: Sequence[Failure] = ()) -> list[ResultRow]:
    """A row for each (subject, kind, treatment, number of images, network, horizon), as `in_order` sorts them.

    Where all retrainings failed there is one row for each horizon of the subject with other networks.
    Raises: ValueError if a retraining has two accuracies at one horizon.
    """
    accuracies: dict[_Place, dict[int, float]] = {}
    failed: dict[Retraining, dict[int, str]] = {}
    for record in records:
        of = accuracies.setdefault((_group(record.of), record.inner_steps), {})
        if record.of.index in of:
            raise ValueError(f"{record.of} has two accuracies after {record.inner_steps} steps")
        of[record.of.index] = record.test_accuracy
    for failure in failures:
        failed.setdefault(_group(failure.of), {})[failure.of.index] = failure.reason
    places = dict.fromkeys(accuracies)
    for group in failed:
        places |= dict.fromkeys((group, steps) for steps in _horizons(accuracies, group))
    order = _order(records, failures)
    return [
        _row(group, steps, list(accuracies.get((group, steps), {}).values()), failed.get(group, {}))
        for group, steps in sorted(places, key=lambda place: (*order(place[0]), place[1] or 0))
    ]


def in_order(records: Sequence[Record], failures: Sequence[Failure] = ()) -> Results:
    """Sorted by kind, subject, treatment, images from many to few, network, horizon and index.

    Subjects and networks come as they are first named here; the order is otherwise of no matter.
    """
    order = _order(records, failures)
    return Results(
        sorted(records, key=lambda record: (*order(record.of), record.inner_steps, record.of.index)),
        sorted(failures, key=lambda failure: (*order(failure.of), failure.of.index)),
    )


def at_last_horizon(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """The rows with the most inner steps of their subject, treatment and images, in their order."""
    last: dict[tuple[Any, ...], int] = {}
    for row in rows:
        last[row.trained_on] = max(last.get(row.trained_on, 0), row.inner_steps or 0)
    return [row for row in rows if (row.inner_steps or 0) == last[row.trained_on]]


def _group(of: Retraining) -> Retraining:
    """What all retrainings of a row have in common."""
    return replace(of, index=0)


def _order(records: Sequence[Record], failures: Sequence[Failure]) -> Callable[[Retraining], tuple[int, ...]]:
    every = [*(record.of for record in records), *(failure.of for failure in failures)]
    subjects = list(dict.fromkeys(of.subject for of in every))
    networks = list(dict.fromkeys(of.network for of in every))

    def order(of: Retraining) -> tuple[int, ...]:
        kind, treatment = KINDS.index(of.kind), TREATMENTS.index(of.treatment)
        return kind, subjects.index(of.subject), treatment, -of.num_images, networks.index(of.network)

    return order


def _horizons(places: Iterable[_Place], failed: Retraining) -> Iterable[int | None]:
    """Those of the same subject with any network, which the failed ones would have been tested at."""
    same = (steps for group, steps in places if replace(group, network=failed.network) == failed)
    return dict.fromkeys(same) or [None]


def _row(group: Retraining, steps: int | None, accuracies: list[float], reasons: dict[int, str]) -> ResultRow:
    n = len(accuracies)
    std = statistics.stdev(accuracies) if n > 1 else None
    return ResultRow(
        **{name: value for name, value in asdict(group).items() if name != "index"},
        inner_steps=steps,
        n=n,
        mean=statistics.fmean(accuracies) if accuracies else None,
        std=std,
        half_width=None if std is None else half_width(std, n),
        num_failed=len(reasons),
        reason=reasons[min(reasons)] if reasons else None,
    )
