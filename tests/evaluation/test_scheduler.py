"""Images that are chosen once for all networks: who waits for them, and what becomes of those."""

from collections.abc import Sequence
from typing import Any

import pytest

from ray_distill.evaluation.jobs import Job, LrCandidate, lines_of
from ray_distill.evaluation.journal import ResultsLog
from ray_distill.evaluation.results import Record
from ray_distill.evaluation.scheduler import CHOSEN, Choice, Choices, CoresetChoice, JobScheduler, Order
from ray_distill.evaluation.subjects import EvaluationSet
from tests.helpers.evaluated_sets import judged_of
from tests.helpers.tiny import tiny_config

EVALUATION = {
    "horizons": [3],
    "baselines": ["herding", "k_means"],
    "random_real_draws": None,
    "whole_train_epochs": None,
    "tune_lr": True,
    "lr_grid": [1, 3],
    "lr_networks": 1,
}


@pytest.fixture(scope="module")
def mine() -> EvaluationSet:
    return judged_of(tiny_config(evaluation=EVALUATION))


def other(**sections: Any) -> EvaluationSet:
    """Another set, with a protocol of its own."""
    return judged_of(tiny_config(evaluation=EVALUATION, **sections), "other", scale=2.0)


def pretend(job: Job) -> Sequence[Record] | Sequence[LrCandidate]:
    of = [job.line.retraining(index) for index in job.indices]
    if job.choosing:
        return [LrCandidate(one, job.lr, job.horizons[-1], 0.5) for one in of]
    return [Record(one, job.lr, steps, 0.5, 1.0) for one in of for steps in job.horizons]


def follow(sets: list[EvaluationSet], fails: Choice | None = None) -> tuple[JobScheduler, list[Order]]:
    """All orders of an evaluation, obeyed without training; what is shipped is the kind of the choice."""
    course = JobScheduler(lines_of(sets), ResultsLog(), lambda done, said: None)
    choices = Choices(course, sets, lambda kind: [kind])
    orders = choices.jobs()
    for order in orders:
        if order == fails:
            orders += choices.on_failure(order, "no memory")
            continue
        match order:
            case Choice(kind=kind):
                orders += choices.on_result(order, kind)
            case CoresetChoice(job=job) | (Job() as job):
                orders += choices.on_result(order, pretend(job))
    return course, orders


def test_two_choices_serve_all_networks_and_lrs(mine: EvaluationSet) -> None:
    """Two networks, an lr each to be chosen, on the set, herding and k-means: each of the two is chosen once, of one
    image per class, goes with each job that needs it and with no other, and all of the table is there."""
    course, orders = follow([mine])
    choices = [order for order in orders if isinstance(order, Choice)]
    assert choices == [Choice("herding", 1, "mine"), Choice("k_means", 1, "mine")]
    chosen = [order for order in orders if isinstance(order, CoresetChoice)]
    assert {(order.job.line.subject.kind, *order.at) for order in chosen} == {(k, k) for k in CHOSEN}
    assert {order.job.choosing for order in chosen} == {True, False}
    assert all(order.line.subject.kind == "distilled" for order in orders if isinstance(order, Job))
    assert len(course.records()) == 3 * 2 * 2
    assert course.failures == []
    assert all(order.cost > job.cost for order in choices for job in chosen)


def test_sets_share_a_choice_of_the_same_images(mine: EvaluationSet) -> None:
    """Beside a set with another inner training the same images are chosen; with another seed, or split, others."""
    for sections, count in (
        ({"inner": {"augmentation": []}}, 2),
        ({"seed": 1}, 4),
        ({"data": {"validation_fraction": 0.3}}, 4),
    ):
        course, orders = follow([mine, other(**sections)])
        assert sum(isinstance(order, Choice) for order in orders) == count
        assert len(course.records()) == 2 * 3 * 2 * 2


def test_a_choice_that_fails_is_rows_with_its_reason(mine: EvaluationSet) -> None:
    """Those that would have trained on it; the rest of the table is there."""
    course, _ = follow([mine], fails=Choice("k_means", 1, "mine"))
    assert {failure.of.kind for failure in course.failures} == {"k_means"}
    assert len(course.failures) == 2 * 2
    reason = "no lr could be chosen: its images could not be chosen: no memory"
    assert {failure.reason for failure in course.failures} == {reason}
    assert {record.of.kind for record in course.records()} == {"distilled", "herding"}
