"""Evaluation on a pool of Ray actors that retrain networks on distilled sets and baselines, and test them.

With `retraining`, whose work the actors do, this is the only user of the test split (`data.test_split`). Distilled sets,
preprocessings and selected coresets travel once to each node, through Ray's object store; all other real images are files
that all processes of a machine map into memory.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ray_distill.artifacts.dataset import DistilledDataset
from ray_distill.builders.data import data_spec
from ray_distill.cluster.actor_pool import ActorSpec, PoolStats, run_jobs
from ray_distill.config.config import Config, ConfigError
from ray_distill.data.labelled_images import DataError
from ray_distill.data.splits import DevelopmentData, create_handle
from ray_distill.data.test_split import check_test, load_test
from ray_distill.evaluation.jobs import RetrainingSpec
from ray_distill.evaluation.journal import ResultsLog
from ray_distill.evaluation.retraining import EvaluationData, run_job
from ray_distill.evaluation.scheduler import CoresetScheduler, CoresetSelection, JobScheduler, Task
from ray_distill.evaluation.subjects import EvaluationSet
from ray_distill.utils.progress import Bar, Update, percent, silent

import ray  # isort: skip  (after ray_distill.cluster.connection, which sets its environment)

DEFAULT_GPUS_PER_ACTOR = 0.25


def check_test_source(config: Config) -> None:
    """Raises: DataError if the data source has no test split. Opens none of its files."""
    check_test(data_spec(config))


def load_evaluation_set(
    name: str, dataset: DistilledDataset, config: Config, data: DevelopmentData, bar: Bar = silent
) -> EvaluationSet:
    """A set with its real images: `data`, and the source's test split with the set's preprocessing.

    Raises: DataError if they do not fit.
    """
    spec, shape = data_spec(config), tuple(dataset.images_NCHW.shape[1:])
    with bar("test images", 100) as update:
        test = load_test(spec, percent(update))
        if test.class_names != dataset.class_names or test.image_shape != shape:
            raise DataError(
                f"the test split has {test.image_shape} images of the classes {', '.join(test.class_names)}; the set "
                f"{name} has {shape} images of {', '.join(dataset.class_names)}"
            )
        handle, _ = create_handle(spec, test, dataset.preprocessing, percent(update))
    return EvaluationSet(
        name=name,
        dataset=dataset,
        config=config,
        train=data.handle,
        test=handle,
        num_train=data.train.num_images,
        num_validation=data.validation.num_images,
        num_test=len(test),
    )


class _Retrainer:
    """An actor of the pool."""

    def __init__(self, sets: dict[str, Callable[[], EvaluationData]]) -> None:
        torch.set_num_threads(1)
        self._sets = {name: load() for name, load in sets.items()}

    def run(self, task: Task) -> Any:
        """Records, lr candidates, or the images and labels of a coreset."""
        if isinstance(task, CoresetSelection):
            return self._sets[task.set_name].select_coreset(task.kind, task.ipc)
        data = self._sets[task.spec.subject.set_name]
        coreset = None if task.coreset is None else data.to_device(ray.get(task.coreset))
        return run_job(data, task, coreset)


def _gpus_per_actor(config: Config) -> float:
    return (config.evaluation.gpus_per_actor or DEFAULT_GPUS_PER_ACTOR) if config.cluster.use_gpu else 0.0


def check_gpus(config: Config) -> None:
    """Raises: ConfigError if the connected cluster can never place an actor (the pool would wait for ever)."""
    available, needed = ray.cluster_resources().get("GPU", 0.0), _gpus_per_actor(config)
    if needed > available:
        raise ConfigError(
            f"cluster.use_gpu: an actor needs {needed:g} GPU, the cluster has {available:g}; connect to a cluster with "
            "GPUs, or evaluate with --set cluster.use_gpu=false"
        )


def _actors(sets: Sequence[EvaluationSet]) -> ActorSpec:
    loaders = {}
    for each in sets:
        arrays = [x.numpy() for x in (each.dataset.images_NCHW, each.dataset.labels_NK)]
        fetch = [partial(ray.get, ray.put(value)) for value in (arrays, each.dataset.preprocessing)]
        loaders[each.name] = partial(EvaluationData, each.config.to_dict(), each.train, each.test, *fetch)
    return ActorSpec(cls=_Retrainer, args=[loaders], num_gpus=_gpus_per_actor(sets[0].config))


def retrain_on_pool(
    sets: Sequence[EvaluationSet], specs: Sequence[RetrainingSpec], log: ResultsLog, update: Update
) -> tuple[JobScheduler, PoolStats | None]:
    """Compute what the log lacks on the connected Ray cluster.

    Returns: the scheduler, with the results; and the pool's statistics, None if nothing was missing.
    Raises: PoolError if no actor can be started.
    """
    scheduler = JobScheduler(specs, log, update)
    handler = CoresetScheduler(scheduler, sets, ray.put)
    if not (tasks := handler.tasks()):
        return scheduler, None
    return scheduler, run_jobs(_actors(sets), tasks, handler, lambda task: task.cost)
