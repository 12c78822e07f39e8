"""Coresets, which are selected once for all networks: which jobs wait for them, and what happens to those."""

from collections.abc import Sequence
from typing import Any

import pytest

from ray_distill.evaluation.jobs import Job, LrCandidate, specs_for
from ray_distill.evaluation.journal import ResultsLog
from ray_distill.evaluation.results import Record
from ray_distill.evaluation.scheduler import CORESETS, CoresetScheduler, CoresetSelection, JobScheduler, Task
from ray_distill.evaluation.subjects import EvaluationSet
from tests.helpers.evaluated_sets import evaluation_set_of
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
    return evaluation_set_of(tiny_config(evaluation=EVALUATION))


def other(**sections: Any) -> EvaluationSet:
    """Another set, with another protocol."""
    return evaluation_set_of(tiny_config(evaluation=EVALUATION, **sections), "other", scale=2.0)


def pretend(job: Job) -> Sequence[Record] | Sequence[LrCandidate]:
    retrainings = [job.spec.retraining(index) for index in job.indices]
    if job.tunes_lr:
        return [LrCandidate(r, job.lr, job.horizons[-1], 0.5) for r in retrainings]
    return [Record(r, job.lr, steps, 0.5, 1.0) for r in retrainings for steps in job.horizons]


def follow(
    sets: list[EvaluationSet], fails: CoresetSelection | None = None
) -> tuple[JobScheduler, list[Task]]:
    """All tasks of an evaluation, done without training; a coreset's reference is its kind."""
    scheduler = JobScheduler(specs_for(sets), ResultsLog(), lambda done, message: None)
    handler = CoresetScheduler(scheduler, sets, lambda kind: kind)
    tasks = handler.tasks()
    for task in tasks:
        if task == fails:
            tasks += handler.on_failure(task, "no memory")
            continue
        match task:
            case CoresetSelection(kind=kind):
                tasks += handler.on_result(task, kind)
            case Job():
                tasks += handler.on_result(task, pretend(task))
    return scheduler, tasks


def test_two_selections_serve_all_networks_and_lrs(mine: EvaluationSet) -> None:
    """Two networks, each with a tuned lr, on the set, herding and k-means: each coreset is selected once, with one image
    per class, is referenced by each job that trains on it and by no other, and the table is complete."""
    scheduler, tasks = follow([mine])
    selections = [task for task in tasks if isinstance(task, CoresetSelection)]
    assert selections == [CoresetSelection("herding", 1, "mine"), CoresetSelection("k_means", 1, "mine")]
    jobs = [task for task in tasks if isinstance(task, Job)]
    on_coresets = [job for job in jobs if job.coreset is not None]
    assert {(job.spec.subject.kind, job.coreset) for job in on_coresets} == {(k, k) for k in CORESETS}
    assert {job.tunes_lr for job in on_coresets} == {True, False}
    assert all(job.spec.subject.kind == "distilled" for job in jobs if job.coreset is None)
    assert len(scheduler.records()) == 3 * 2 * 2
    assert scheduler.failures == []
    assert all(selection.cost > job.cost for selection in selections for job in on_coresets)


def test_sets_share_a_coreset_of_the_same_images(mine: EvaluationSet) -> None:
    """A set with another inner training has the same coresets; with another seed, or split, it has others."""
    for sections, count in (
        ({"inner": {"augmentation": []}}, 2),
        ({"seed": 1}, 4),
        ({"data": {"validation_fraction": 0.3}}, 4),
    ):
        scheduler, tasks = follow([mine, other(**sections)])
        assert sum(isinstance(task, CoresetSelection) for task in tasks) == count
        assert len(scheduler.records()) == 2 * 3 * 2 * 2


def test_a_selection_that_fails_fails_the_jobs_that_need_it(mine: EvaluationSet) -> None:
    """With its reason; the rest of the table is complete."""
    scheduler, _ = follow([mine], fails=CoresetSelection("k_means", 1, "mine"))
    assert {failure.retraining.kind for failure in scheduler.failures} == {"k_means"}
    assert len(scheduler.failures) == 2 * 2
    reason = "the lr could not be tuned: the selection of its images failed: no memory"
    assert {failure.reason for failure in scheduler.failures} == {reason}
    assert {record.retraining.kind for record in scheduler.records()} == {"distilled", "herding"}
