"""Results of an evaluation: a record of each retrained network at each horizon, and the rows of a table made of them.

A row is the mean over n retrainings on one subject, under one treatment, by one network, after one number of inner steps.
The retrainings differ in their initialisation, and for random baselines and subsets also in the draw. The row's uncertainty
is that of the mean, the 95% interval by Student's t:

    mean +- t(0.975, n - 1) * std / sqrt(n),      std with n - 1 in the denominator.

It does not include the test split's own size. There is none for n = 1.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

Kind = Literal["distilled", "subset", "random_real", "herding", "k_means", "whole_train"]
"""A distilled set, class-balanced random images of one, or one of the baselines."""

Treatment = Literal["own", "hard_labels", "no_augmentation", "augmentation"]
"""The set's own protocol; or the same with the most probable class as the label, without augmentation, or with the
augmentation of the robustness score."""

KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order of a table: distilled sets first."""
TREATMENTS: tuple[Treatment, ...] = get_args(Treatment)

_LEVEL = 0.95
_KIND_LABELS: dict[Kind, str] = {
    "random_real": "random real images",
    "herding": "herding",
    "k_means": "k-means centres",
    "whole_train": "whole training set",
}


@dataclass(frozen=True)
class Retraining:
    """Identifies one retrained network."""

    subject: str
    """What it is trained on: the name of a distilled set or of a baseline."""
    kind: Kind
    treatment: Treatment
    num_images: int
    """Images trained on."""
    network: str
    index: int
    """Of the initialisation, and for random subjects of the draw."""


@dataclass(frozen=True)
class Record:
    """An accuracy, a fraction of the test images."""

    retraining: Retraining
    lr: float
    inner_steps: int
    """The horizon."""
    test_accuracy: float
    seconds: float
    """Of training up to the horizon and testing; its share of them if several networks were trained at once."""


@dataclass(frozen=True)
class Failure:
    """A retraining that failed, and why."""

    retraining: Retraining
    reason: str


_Cell = tuple[Retraining, int | None]
"""What a row is about: a retraining with index 0, and inner steps."""


class Results(NamedTuple):
    """Records and failures."""

    records: list[Record]
    failures: list[Failure]


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """Accuracies, as fractions, over the retrainings that differ only in their index."""

    subject: str
    kind: Kind
    treatment: Treatment
    num_images: int
    network: str
    inner_steps: int | None
    """None if all failed, and no other network on the subject tells the horizons."""
    n: int
    """Retrainings that succeeded."""
    mean: float | None
    """None if all failed."""
    std: float | None
    """Of the sample; None for n < 2."""
    half_width: float | None
    """The 95% interval is mean +- this; None for n < 2."""
    num_failed: int
    reason: str | None
    """Of the first failure."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval, clipped to 0 and 1. None for n < 2."""
        if self.mean is None or self.half_width is None:
            return None
        return max(0.0, self.mean - self.half_width), min(1.0, self.mean + self.half_width)

    @property
    def trained_on(self) -> tuple[str, Kind, Treatment, int]:
        """Identifies a line of the overview, in which networks are columns."""
        return self.subject, self.kind, self.treatment, self.num_images

    @property
    def label(self) -> str:
        """The subject and the treatment, to print."""
        return label(*self.trained_on)


def label(subject: str, kind: Kind, treatment: Treatment, num_images: int) -> str:
    """The subject and the treatment, to print."""
    name = f"{num_images} random images of {subject}" if kind == "subset" else subject
    if kind in _KIND_LABELS and subject.startswith(kind):
        name = _KIND_LABELS[kind] + subject.removeprefix(kind)
    return name if treatment == "own" else f"{name}, {treatment.replace('_', ' ')}"


def half_width(std: float, n: int) -> float:
    """Half of the 95% interval of a mean over n >= 2 values: t(0.975, n - 1) * std / sqrt(n)."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, (1 + _LEVEL) / 2)) * std / math.sqrt(n)


def result_rows(records: Sequence[Record], failures: Sequence[Failure] = ()) -> list[ResultRow]:
    """A row for each (subject, kind, treatment, number of images, network, horizon), in the order of `sort_results`.

    Where all retrainings failed, a row for each horizon of other networks on the subject.
    Raises: ValueError if a retraining has two accuracies at one horizon.
    """
    accuracies: dict[_Cell, dict[int, float]] = {}
    failed: dict[Retraining, dict[int, str]] = {}
    for record in records:
        index = record.retraining.index
        by_index = accuracies.setdefault((_group(record.retraining), record.inner_steps), {})
        if index in by_index:
            raise ValueError(f"{record.retraining} has two accuracies after {record.inner_steps} steps")
        by_index[index] = record.test_accuracy
    for failure in failures:
        failed.setdefault(_group(failure.retraining), {})[failure.retraining.index] = failure.reason
    cells = dict.fromkeys(accuracies)
    for group in failed:
        cells |= dict.fromkeys((group, steps) for steps in _horizons(accuracies, group))
    order = _order(records, failures)
    return [
        _row(group, steps, list(accuracies.get((group, steps), {}).values()), failed.get(group, {}))
        for group, steps in sorted(cells, key=lambda cell: (*order(cell[0]), cell[1] or 0))
    ]


def sort_results(records: Sequence[Record], failures: Sequence[Failure] = ()) -> Results:
    """Sorted by kind, subject, treatment, images from many to few, network, horizon and index.

    Subjects and networks come in the order of their first record, whatever the order of the others.
    """
    order = _order(records, failures)
    return Results(
        sorted(
            records,
            key=lambda record: (*order(record.retraining), record.inner_steps, record.retraining.index),
        ),
        sorted(failures, key=lambda failure: (*order(failure.retraining), failure.retraining.index)),
    )


def at_last_horizon(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """The rows with the most inner steps for their subject, treatment and images, in their order."""
    last: dict[tuple[Any, ...], int] = {}
    for row in rows:
        last[row.trained_on] = max(last.get(row.trained_on, 0), row.inner_steps or 0)
    return [row for row in rows if (row.inner_steps or 0) == last[row.trained_on]]


def _group(retraining: Retraining) -> Retraining:
    """Equal for all retrainings of a row."""
    return replace(retraining, index=0)


def _order(records: Sequence[Record], failures: Sequence[Failure]) -> Callable[[Retraining], tuple[int, ...]]:
    retrainings = [*(record.retraining for record in records), *(failure.retraining for failure in failures)]
    subjects = list(dict.fromkeys(r.subject for r in retrainings))
    networks = list(dict.fromkeys(r.network for r in retrainings))

    def order(r: Retraining) -> tuple[int, ...]:
        kind, treatment = KINDS.index(r.kind), TREATMENTS.index(r.treatment)
        return kind, subjects.index(r.subject), treatment, -r.num_images, networks.index(r.network)

    return order


def _horizons(cells: Iterable[_Cell], failed: Retraining) -> Iterable[int | None]:
    """At which any network on the same subject was tested; [None] if there is none."""
    same = (steps for group, steps in cells if replace(group, network=failed.network) == failed)
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
