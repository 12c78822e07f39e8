"""How good distilled sets are: a pool of Ray actors retrains networks on them and on baselines, and tests them.

What an actor does is `evaluation_work`'s: with it the only user of the test split (`data.held_out`). A job whose actor
died is done again elsewhere.

Distilled sets, preprocessings, and real images that one job has chosen for others (`evaluation_choices`) are shipped once
per node, through Ray's object store; all other real images are files that all processes of a machine map.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from ray_distill.artifacts.dataset import DistilledDataset
from ray_distill.builders.data import data_spec
from ray_distill.cluster.actor_pool import ActorSpec, PoolStats, run_jobs
from ray_distill.config.config import Config, ConfigError
from ray_distill.data.decoding import Progress
from ray_distill.data.labelled_images import DataError
from ray_distill.data.splits import DevelopmentData, create_handle
from ray_distill.data.test_split import check_test, load_test
from ray_distill.evaluation.jobs import TableRowSpec
from ray_distill.evaluation.journal import ResultsLog
from ray_distill.evaluation.retraining import LoadedSet, Shipped, run_job
from ray_distill.evaluation.scheduler import Choice, Choices, CoresetChoice, JobScheduler, Order
from ray_distill.evaluation.subjects import EvaluationSet, Tickets
from ray_distill.utils.progress import Update

import ray  # isort: skip  (after ray_distill.cluster.connection, which sets its environment)

DEFAULT_GPUS_PER_ACTOR = 0.25


def check_test_source(config: Config) -> None:
    """Raises: DataError if there is no test split to evaluate on. Opens none of its files."""
    check_test(data_spec(config))


def evaluation_set(
    name: str,
    dataset: DistilledDataset,
    config: Config,
    data: DevelopmentData,
    progress: Progress | None = None,
) -> EvaluationSet:
    """A set with the real images that it is judged with: those that it may be trained beside, and the source's test
    split with the set's preprocessing. Raises: DataError if they do not fit."""
    spec = data_spec(config)
    test = load_test(spec, progress)
    if test.class_names != dataset.class_names or test.image_shape != tuple(dataset.images_NCHW.shape[1:]):
        raise DataError(
            f"the test split has {test.image_shape} images of the classes {', '.join(test.class_names)}; the set has "
            f"{tuple(dataset.images_NCHW.shape[1:])} images of {', '.join(dataset.class_names)}"
        )
    ticket, _ = create_handle(spec, test, dataset.preprocessing, progress)
    return EvaluationSet(
        name=name,
        dataset=dataset,
        config=config,
        tickets=Tickets(data.handle, ticket),
        num_train=data.train.num_images,
        num_validation=data.validation.num_images,
        num_test=len(test),
    )


class _Retrainer:
    """An actor of the pool: keeps the data at hand and does one job after another."""

    def __init__(self, shipped: dict[str, tuple[dict[str, Any], Tickets, list[Any]]]) -> None:
        torch.set_num_threads(1)
        self._sets = {
            name: LoadedSet(Shipped(config, tickets, partial(ray.get, arrays), partial(ray.get, fitted)))
            for name, (config, tickets, (arrays, fitted)) in shipped.items()
        }

    def run(self, order: Order) -> Any:
        """Records, trials of an lr, or images that were chosen."""
        match order:
            case Choice():
                return self._sets[order.of_set].choose(order)
            case CoresetChoice(job=job, at=at):
                here = self._sets[job.line.subject.of_set]
                return run_job(here, job, here.taken(ray.get(at[0])))
            case _:
                return run_job(self._sets[order.line.subject.of_set], order)


def _gpus(config: Config) -> float:
    """What an actor takes."""
    return (config.evaluation.gpus_per_actor or DEFAULT_GPUS_PER_ACTOR) if config.cluster.use_gpu else 0.0


def check_gpus(config: Config) -> None:
    """Raises: ConfigError if no actor could ever be placed on the connected cluster (the pool would wait for ever)."""
    there, gpus = ray.cluster_resources().get("GPU", 0.0), _gpus(config)
    if gpus > there:
        raise ConfigError(
            f"cluster.use_gpu: an actor takes {gpus:g} GPU, the cluster has {there:g}; connect to one that has GPUs, or "
            "evaluate with --set cluster.use_gpu=false"
        )


def workers(sets: Sequence[EvaluationSet]) -> ActorSpec:
    """The actors that judge these sets."""
    shipped = {}
    for judged in sets:
        dataset = judged.dataset
        arrays = [x.numpy() for x in (dataset.images_NCHW, dataset.labels_NK)]
        references = [ray.put(arrays), ray.put(dataset.preprocessing)]
        shipped[judged.name] = (judged.config.to_dict(), judged.tickets, references)
    return ActorSpec(cls=_Retrainer, args=[shipped], num_gpus=_gpus(sets[0].config))


def retrain_on_pool(
    sets: Sequence[EvaluationSet], lines: Sequence[TableRowSpec], journal: ResultsLog, update: Update
) -> tuple[JobScheduler, PoolStats | None]:
    """Have what is missing in the journal done on the connected Ray cluster.

    Returns: what has come of it; and how the pool has used its time, None if nothing was missing.
    Raises: PoolError if no actor can be started.
    """
    course = JobScheduler(lines, journal, update)
    # In a list, Ray passes the reference on, instead of what it refers to.
    choices = Choices(course, sets, lambda arrays: [ray.put(arrays)])
    orders = choices.jobs()
    if not orders:
        return course, None
    return course, run_jobs(workers(sets), orders, choices, lambda order: order.cost)
