"""Sets to evaluate, made from the tiny experiment."""

from collections.abc import Sequence
from functools import partial

import torch

from ray_distill.artifacts.dataset import DistilledDataset, provenance
from ray_distill.builders.experiment import load_development_data
from ray_distill.config.config import Config
from ray_distill.core.distilled import DistilledData
from ray_distill.data.preprocessing import NoPreprocessing
from ray_distill.evaluation.jobs import specs_for
from ray_distill.evaluation.journal import ResultsLog
from ray_distill.evaluation.results import Record
from ray_distill.evaluation.retraining import EvaluationData, run_job
from ray_distill.evaluation.scheduler import JobScheduler
from ray_distill.evaluation.subjects import EvaluationSet
from ray_distill.evaluation.worker import load_evaluation_set
from tests.helpers.tiny import Bench

Number = tuple[str, str, int, int, float, float]
"""Subject, network, index, inner steps, lr, test accuracy."""


def dataset_of(config: Config, *, scale: float = 1.0) -> DistilledDataset:
    """The initial set of a run with this configuration, its images scaled."""
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
    """Ten random grey 8x8 images without preprocessing, as if made by a run with this configuration."""
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


def evaluation_set_of(config: Config, name: str = "mine", *, scale: float = 1.0) -> EvaluationSet:
    """That set with its real images."""
    dataset = dataset_of(config, scale=scale)
    data = load_development_data(config, dataset.preprocessing)
    return load_evaluation_set(name, dataset, config, data)


def open_here(each: EvaluationSet) -> EvaluationData:
    """A set's data as in an actor."""
    arrays = [x.numpy() for x in DistilledData(each.dataset.images_NCHW, each.dataset.labels_NK)]
    fetch = (partial(list, arrays), lambda: each.dataset.preprocessing)
    return EvaluationData(each.config.to_dict(), each.train, each.test, *fetch)


def evaluate_here(sets: list[EvaluationSet]) -> list[Record]:
    """An evaluation without Ray: all jobs, one by one."""
    scheduler = JobScheduler(specs_for(sets), ResultsLog(), lambda done, message: None)
    data = {each.name: open_here(each) for each in sets}
    jobs = scheduler.jobs()
    for job in jobs:
        jobs += scheduler.on_result(job, run_job(data[job.spec.subject.set_name], job))
    return scheduler.records()


def numbers(records: Sequence[Record]) -> list[Number]:
    """What does not depend on where and when it was computed."""
    return sorted(
        (
            *(r.retraining.subject, r.retraining.network, r.retraining.index),
            *(r.inner_steps, r.lr, r.test_accuracy),
        )
        for r in records
    )
