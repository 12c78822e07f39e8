"""How good distilled sets are: a pool of Ray actors retrains networks on them and on baselines, and tests them.

The only user of the test split (`data.held_out`). What a network is trained on, and its draws, are functions of its
line and index (`evaluation_jobs`), so a job whose actor died is done again elsewhere and gives the same number, and
the number does not depend on which job a network was part of. An actor opens the test split when the first of its jobs
needs it: those that choose an lr are judged on validation, and never do.

Distilled sets, preprocessings, and real images that one job has chosen for others (`evaluation_choices`) are shipped once
per node, through Ray's object store; all other real images are files that all processes of a machine map.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch

from ray_distill import build, build_settings
from ray_distill.artifact import DistilledDataset
from ray_distill.baselines import herding_rows, k_means_centres, random_real_rows, subset_rows
from ray_distill.build_data import data_spec
from ray_distill.build_networks import network_for
from ray_distill.config import Config, ConfigError, parse
from ray_distill.core.augment import NONE as NO_AUGMENTATION
from ray_distill.core.distilled import DistilledData, TrainingSet, one_hot
from ray_distill.core.retrain import Batches, retrain_group
from ray_distill.core.rng import Stream
from ray_distill.core.unroll import InnerProblem
from ray_distill.data.decoding import Progress
from ray_distill.data.held_out import check_test, load_test
from ray_distill.data.labelled_images import DataError
from ray_distill.data.preprocessing import Preprocessing
from ray_distill.data.real_data import RealData
from ray_distill.data.splits import DevelopmentData, issue, redeem, redeem_development
from ray_distill.evaluation_choices import Choice, Choices, Chosen, Order
from ray_distill.evaluation_course import Course
from ray_distill.evaluation_jobs import DD_RANKING, Job, Line, LrTrial
from ray_distill.evaluation_journal import Journal
from ray_distill.evaluation_records import Record
from ray_distill.judged_sets import JudgedSet, Tickets
from ray_distill.pool import PoolReport, Workers, run_jobs
from ray_distill.progress import Update

import ray  # isort: skip  (after ray_distill.cluster, which sets its environment)

DEFAULT_GPUS_PER_ACTOR = 0.25


def check_test_source(config: Config) -> None:
    """Raises: DataError if there is no test split to evaluate on. Opens none of its files."""
    check_test(data_spec(config))


def judged_set(
    name: str,
    dataset: DistilledDataset,
    config: Config,
    data: DevelopmentData,
    progress: Progress | None = None,
) -> JudgedSet:
    """A set with the real images that it is judged with: those that it may be trained beside, and the source's test
    split with the set's preprocessing. Raises: DataError if they do not fit."""
    spec = data_spec(config)
    test = load_test(spec, progress)
    if test.class_names != dataset.class_names or test.image_shape != tuple(dataset.images_NCHW.shape[1:]):
        raise DataError(
            f"the test split has {test.image_shape} images of the classes {', '.join(test.class_names)}; the set has "
            f"{tuple(dataset.images_NCHW.shape[1:])} images of {', '.join(dataset.class_names)}"
        )
    ticket, _ = issue(spec, test, dataset.preprocessing, progress)
    return JudgedSet(
        name=name,
        dataset=dataset,
        config=config,
        tickets=Tickets(data.ticket, ticket),
        num_train=data.train.num_images,
        num_validation=data.validation.num_images,
        num_test=len(test),
    )


@dataclass(frozen=True)
class Shipped:
    """A judged set on its way to an actor."""

    config: dict[str, Any]
    tickets: Tickets
    distilled: Callable[[], list[Any]]
    """Fetches images and labels, as arrays."""
    fitted: Callable[[], Preprocessing]
    """Fetches the preprocessing, on a machine that lacks the preprocessed images."""


class SetAtHand:
    """A judged set in an actor: whatever of its data is asked for is opened then, and kept."""

    def __init__(self, shipped: Shipped) -> None:
        self._shipped, self.config = shipped, parse(shipped.config)
        self.device = build_settings.device_of(self.config)
        build_settings.set_tf32(self.config)

    @cached_property
    def distilled(self) -> DistilledData:
        """What networks are trained on."""
        return self.taken(self._shipped.distilled())

    def taken(self, arrays: Iterable[Any]) -> DistilledData:
        """Images and labels that were shipped."""
        dtype = build_settings.dtype(self.config)
        return DistilledData(*(torch.from_numpy(array.copy()).to(self.device, dtype) for array in arrays))

    @cached_property
    def _development(self) -> tuple[RealData, RealData]:
        train, validation = redeem_development(self._shipped.tickets.train, self._shipped.fitted)
        return self._taken(train), self._taken(validation)

    @property
    def train(self) -> RealData:
        """Real images to train on."""
        return self._development[0]

    @property
    def validation(self) -> RealData:
        """Real images to choose by."""
        return self._development[1]

    @cached_property
    def test(self) -> RealData:
        """Real images to report on."""
        ticket = self._shipped.tickets.test
        images = redeem(ticket, load_test, self._shipped.fitted)
        return self._taken(RealData.of(images, torch.arange(len(images)), ticket.applied))

    def _taken(self, data: RealData) -> RealData:
        return build.real_data(self.config, data, self.device)

    def training_set(
        self, line: Line, index: int, seed: int, chosen: DistilledData | None = None
    ) -> TrainingSet:
        """What one network of a line is trained on; `seed` is that of what is drawn anew for each network.

        Args:
            chosen: real images, for a line that is trained on some that were chosen once for all (`choose`).

        Raises: ValueError if there are too few real images.
        """
        subject, num_classes = line.subject, self.distilled.num_classes
        ipc = subject.num_images // num_classes
        match subject.kind:
            case "distilled":
                data = self.distilled
            case "subset":
                whole = self.distilled.num_images // num_classes
                data = self.distilled.rows(subset_rows(num_classes, whole, ipc, seed, index).to(self.device))
            case "random_real":
                data = self.train.rows(random_real_rows(self.train, ipc, seed, index))
            case "herding" | "k_means":
                assert chosen is not None
                data = chosen
            case "whole_train":
                return self.train
        return _with_hard_labels(data) if line.treatment == "hard_labels" else data

    def choose(self, choice: Choice) -> list[Any]:
        """Images and labels, as arrays."""
        if choice.kind == "herding":
            chosen = self.train.rows(herding_rows(self.train, choice.ipc))
        else:
            chosen = k_means_centres(self.train, choice.ipc, self.config.seed)
        return [x.cpu().numpy() for x in chosen]


def _with_hard_labels(data: DistilledData) -> DistilledData:
    """With the most probable class for a label."""
    labels_NK = one_hot(data.labels_NK.argmax(dim=1), data.num_classes, data.dtype)
    return data._replace(labels_NK=labels_NK)


def run_job(here: SetAtHand, job: Job, chosen: DistilledData | None = None) -> list[Record] | list[LrTrial]:
    """Train fresh networks as the job says. The records are in the order of its indices and horizons."""
    line = job.line
    # Streams of its own: no network is one that D was distilled through, and those that choose an lr, and the images
    # that are drawn for them, are none of those of the table.
    own = here.config.seed
    seed = Stream(seed=own, name="evaluation-lr" if job.choosing else "evaluation").key()[0]
    judge = here.validation if job.choosing else here.test
    data = here.training_set(line, job.indices[0], seed if job.choosing else own, chosen)
    clock = _Clock(judge.batches)
    scores = retrain_group(
        _problem(here, job, judge),
        data,
        clock.batches,
        job.horizons,
        seed=seed,
        indices=job.indices,
        batch=line.batch,
    )
    of = [line.retraining(index) for index in job.indices]
    if job.choosing:
        return [
            LrTrial(one, job.lr, job.horizons[-1], score[-1].accuracy)
            for one, score in zip(of, scores, strict=True)
        ]
    seconds = clock.seconds(len(job.horizons), len(of))
    return [
        Record(one, job.lr, steps, score.accuracy, took)
        for one, of_one in zip(of, scores, strict=True)
        for steps, score, took in zip(job.horizons, of_one, seconds, strict=True)
    ]


def _problem(here: SetAtHand, job: Job, judge: RealData) -> InnerProblem:
    """The set's own training, with the lr and the treatment that the job says."""
    config, shape, num_classes = here.config, judge.image_shape, judge.num_classes
    network = network_for(config, job.line.network, shape, num_classes)
    problem = build.inner_problem(config, network, shape, num_classes, here.device, at_once=len(job.indices))
    problem = replace(problem, optimizer=replace(problem.optimizer, lr=job.lr))
    match job.line.treatment:
        case "no_augmentation":
            return replace(problem, augmentation=NO_AUGMENTATION)
        case "augmentation":
            return replace(problem, augmentation=DD_RANKING)
        case _:
            return problem


class _Clock:
    """Notes when the images that a network is judged by have been gone through."""

    def __init__(self, batches: Callable[[], Batches]) -> None:
        self._batches, self._last = batches, time.perf_counter()
        self._took: list[float] = []

    def batches(self) -> Batches:
        """The images, from the beginning."""
        yield from self._batches()
        now = time.perf_counter()
        self._took.append(now - self._last)
        self._last = now

    def seconds(self, num_horizons: int, num_networks: int) -> list[float]:
        """From the beginning to each horizon, a network's share of it."""
        return [sum(self._took[: h + 1]) / num_networks for h in range(num_horizons)]


class _Retrainer:
    """An actor of the pool: keeps the data at hand and does one job after another."""

    def __init__(self, shipped: dict[str, tuple[dict[str, Any], Tickets, list[Any]]]) -> None:
        torch.set_num_threads(1)
        self._sets = {
            name: SetAtHand(Shipped(config, tickets, partial(ray.get, arrays), partial(ray.get, fitted)))
            for name, (config, tickets, (arrays, fitted)) in shipped.items()
        }

    def run(self, order: Order) -> Any:
        """Records, trials of an lr, or images that were chosen."""
        match order:
            case Choice():
                return self._sets[order.of_set].choose(order)
            case Chosen(job=job, at=at):
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


def workers(sets: Sequence[JudgedSet]) -> Workers:
    """The actors that judge these sets."""
    shipped = {}
    for judged in sets:
        dataset = judged.dataset
        arrays = [x.numpy() for x in (dataset.images_NCHW, dataset.labels_NK)]
        references = [ray.put(arrays), ray.put(dataset.preprocessing)]
        shipped[judged.name] = (judged.config.to_dict(), judged.tickets, references)
    return Workers(of=_Retrainer, arguments=[shipped], gpus=_gpus(sets[0].config))


def evaluate(
    sets: Sequence[JudgedSet], lines: Sequence[Line], journal: Journal, update: Update
) -> tuple[Course, PoolReport | None]:
    """Have what is missing in the journal done on the connected Ray cluster.

    Returns: what has come of it; and how the pool has used its time, None if nothing was missing.
    Raises: PoolError if no actor can be started.
    """
    course = Course(lines, journal, update)
    # In a list, Ray passes the reference on, instead of what it refers to.
    choices = Choices(course, sets, lambda arrays: [ray.put(arrays)])
    orders = choices.jobs()
    if not orders:
        return course, None
    return course, run_jobs(workers(sets), orders, choices, lambda order: order.cost)
