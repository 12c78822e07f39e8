"""Sets to judge, made of the tiny experiment, that tests share."""

from collections.abc import Sequence
from functools import partial

import torch

from ray_distill.artifacts.dataset import DistilledDataset, provenance
from ray_distill.builders.experiment import load_development_data
from ray_distill.config.config import Config
from ray_distill.core.distilled import DistilledData
from ray_distill.data.preprocessing import NoPreprocessing
from ray_distill.evaluation.jobs import lines_of
from ray_distill.evaluation.journal import ResultsLog
from ray_distill.evaluation.results import Record
from ray_distill.evaluation.retraining import LoadedSet, Shipped, run_job
from ray_distill.evaluation.scheduler import JobScheduler
from ray_distill.evaluation.subjects import EvaluationSet
from ray_distill.evaluation.worker import evaluation_set
from tests.helpers.tiny import Bench

Number = tuple[str, str, int, int, float, float]
"""Subject, network, index, inner steps, lr, test accuracy."""


def dataset_of(config: Config, *, scale: float = 1.0) -> DistilledDataset:
    """The set that a run of this configuration begins with, its images multiplied."""
    b = Bench(config)
    return DistilledDataset(
        images_NCHW=b.initial.images_NCHW.float() * scale,
        labels_NK=b.initial.labels_NK.float(),
        class_names=b.data.class_names,
        preprocessing=b.data.preprocessing,
        protocol={},
        config=config.experiment(),
        config_hash=config.hash,
        provenance=provenance(),
    )


def grey_set(config: Config) -> DistilledDataset:
    """Ten random grey images of 8x8, which nothing is done to, as of a run of this configuration."""
    return DistilledDataset(
        images_NCHW=torch.rand(10, 1, 8, 8),
        labels_NK=torch.eye(10),
        class_names=tuple("0123456789"),
        preprocessing=NoPreprocessing(),
        protocol={},
        config=config.experiment(),
        config_hash=config.hash,
        provenance=provenance(),
    )


def judged_of(config: Config, name: str = "mine", *, scale: float = 1.0) -> EvaluationSet:
    """That set, ready to be judged."""
    dataset = dataset_of(config, scale=scale)
    return evaluation_set(name, dataset, config, load_development_data(config, dataset.preprocessing))


def at_hand(judged: EvaluationSet) -> LoadedSet:
    """What an actor makes of it, here."""
    arrays = [x.numpy() for x in DistilledData(judged.dataset.images_NCHW, judged.dataset.labels_NK)]
    fetch = (partial(list, arrays), lambda: judged.dataset.preprocessing)
    return LoadedSet(Shipped(judged.config.to_dict(), judged.tickets, *fetch))


def done_here(sets: list[EvaluationSet]) -> list[Record]:
    """Their evaluation without Ray: every job of its course, one by one."""
    journal = ResultsLog()
    course = JobScheduler(lines_of(sets), journal, lambda done, said: None)
    here = {judged.name: at_hand(judged) for judged in sets}
    jobs = course.jobs()
    for job in jobs:
        jobs += course.on_result(job, run_job(here[job.line.subject.of_set], job))
    return course.records()


def numbers(records: Sequence[Record]) -> list[Number]:
    """What does not depend on who did it, and when."""
    return sorted(
        (r.of.subject, r.of.network, r.of.index, r.inner_steps, r.lr, r.test_accuracy) for r in records
    )
