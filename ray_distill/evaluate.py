"""How good a distilled set is: a pool of Ray actors retrains networks on it and tests them.

The only user of the test split (`data.held_out`). Every job is one retraining: (training set, network,
index), and its result is a pure function of that, so a job whose actor died is done again elsewhere and
gives the same number. Baselines stand beside the distilled set and use the same protocol: random real
images of the same budget, and the whole training set.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from ray_distill import build
from ray_distill.artifact import DistilledDataset
from ray_distill.build_data import data_spec
from ray_distill.config import Config, parse
from ray_distill.core.distilled import DistilledData, TrainingSet, class_balanced_rows
from ray_distill.core.retrain import retrain
from ray_distill.core.rng import Stream
from ray_distill.data.decoding import Progress
from ray_distill.data.held_out import check_test, load_test
from ray_distill.data.labelled_images import DataError
from ray_distill.data.preprocessing import Preprocessing
from ray_distill.data.real_data import RealData
from ray_distill.data.splits import DevelopmentData, Ticket, issue, redeem, redeem_development
from ray_distill.errors import FailedError
from ray_distill.progress import Update

import ray  # isort: skip  (after ray_distill.cluster, which sets its environment)
from ray.exceptions import RayActorError, RayTaskError

DISTILLED = "distilled"
RANDOM_REAL = "random_real"
WHOLE_TRAIN = "whole_train"
MAX_TRIES = 3
"""Actors that a job may lose before the evaluation gives up."""


class EvaluationError(FailedError):
    """An evaluation that could not be brought to its end."""


@dataclass(frozen=True)
class Job:
    """One retraining: what is trained on, which network, and which of its fresh starts."""

    trained_on: str
    network: str
    index: int


@dataclass(frozen=True)
class Record:
    """The outcome of one job. The accuracy is a fraction of the test images."""

    trained_on: str
    network: str
    index: int
    inner_steps: int
    test_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Row:
    """A line of the result table: mean and sample standard deviation over n retrainings (fractions)."""

    trained_on: str
    network: str
    mean: float
    std: float | None
    n: int


class Tickets(NamedTuple):
    """For what networks are trained and tested on: each process redeems them for itself."""

    train: Ticket
    test: Ticket


class RealSets(NamedTuple):
    """Preprocessed training and test images."""

    train: RealData
    test: RealData


def tickets_for(
    config: Config, dataset: DistilledDataset, data: DevelopmentData, progress: Progress | None = None
) -> Tickets:
    """The training images, and the source's test split with the set's preprocessing. Raises: DataError."""
    spec = data_spec(config)
    test = load_test(spec, progress)
    if test.class_names != dataset.class_names or test.image_shape != tuple(dataset.images_NCHW.shape[1:]):
        raise DataError(
            f"the test split has {test.image_shape} images of the classes {', '.join(test.class_names)}; the set has "
            f"{tuple(dataset.images_NCHW.shape[1:])} images of {', '.join(dataset.class_names)}"
        )
    ticket, _ = issue(spec, test, dataset.preprocessing, progress)
    return Tickets(data.ticket, ticket)


def real_sets(config: Config, tickets: Tickets, fitted: Callable[[], Preprocessing]) -> RealSets:
    """The images that the tickets are for, as the evaluation takes them. Raises: DataError."""
    train, _ = redeem_development(tickets.train, fitted)
    images = redeem(tickets.test, load_test, fitted)
    test = RealData.of(images, torch.arange(len(images)), tickets.test.applied)
    return RealSets(*(build.real_data(config, data, build.CPU) for data in (train, test)))


def check_test_source(config: Config) -> None:
    """Raises: DataError if there is no test split to evaluate on. Opens none of its files."""
    check_test(data_spec(config))


def jobs_of(config: Config) -> list[Job]:
    """The jobs of an evaluation, the longest first so that no actor is left with one at the end."""
    evaluation, own = config.evaluation, config.network.name
    return [
        *(Job(WHOLE_TRAIN, own, i) for i in range(evaluation.whole_train_seeds)),
        *(Job(DISTILLED, name, i) for name in evaluation.networks for i in range(evaluation.seeds)),
        *(
            Job(RANDOM_REAL, name, i)
            for name in evaluation.networks
            for i in range(evaluation.random_real_draws)
        ),
    ]


def run_job(config: Config, distilled: DistilledData, real: RealSets, job: Job) -> Record:
    """Train one fresh network as the job says, and test it once."""
    began = time.perf_counter()
    train, num_classes = real.train, distilled.num_classes
    data: TrainingSet = distilled
    batch, steps = None, config.evaluation.horizon
    if job.trained_on == RANDOM_REAL:
        stream = Stream(seed=config.seed, name="random-real", replica=job.index)
        data = train.rows(class_balanced_rows(stream, train.labels_N, num_classes, config.distilled.ipc))
    elif job.trained_on == WHOLE_TRAIN:
        data = train
        batch = min(config.evaluation.whole_train_batch, train.num_images)
        steps = config.evaluation.whole_train_epochs * (train.num_images // batch)
    shape = real.test.image_shape
    network = build.network_for(config, job.network, shape, num_classes)
    # The seed's stream is the evaluation's own: no network is one that D was distilled through.
    seed = Stream(seed=config.seed, name="evaluation").key()[0]
    problem = build.inner_problem(config, network, shape, num_classes)
    (score,) = retrain(problem, data, real.test.batches, [steps], seed=seed, index=job.index, batch=batch)
    return Record(
        **asdict(job), inner_steps=steps, test_accuracy=score.accuracy, seconds=time.perf_counter() - began
    )


class _Retrainer:
    """An actor of the pool: keeps the data at hand and does one job after another."""

    def __init__(self, config: dict[str, Any], references: list[Any]) -> None:
        torch.set_num_threads(1)
        self._config = parse(config)
        distilled, tickets, fitted = references
        self._distilled = DistilledData(*(torch.from_numpy(a.copy()) for a in ray.get(distilled)))
        self._real = real_sets(self._config, tickets, lambda: ray.get(fitted))

    def ready(self) -> None:
        """Answers once the actor has started and holds the data."""

    def run(self, job: Job) -> Record:
        """See `run_job`."""
        return run_job(self._config, self._distilled, self._real, job)


Retrainer: Any = ray.remote(num_cpus=1)(_Retrainer)


def run_pool(
    config: Config, dataset: DistilledDataset, tickets: Tickets, jobs: Sequence[Job], update: Update
) -> list[Record]:
    """All jobs' records, in the order of the jobs. Actors that die are replaced and their jobs done again.

    An actor is given work once it has started, so the pool makes do with those that the cluster has room
    for. Raises: EvaluationError if a job fails or loses MAX_TRIES actors, or if actors do not start.
    """
    dtype = build.dtype(config)
    arrays = [x.to(dtype).numpy() for x in (dataset.images_NCHW, dataset.labels_NK)]
    references = [ray.put(arrays), tickets, ray.put(dataset.preprocessing)]
    size = min(len(jobs), max(1, int(ray.cluster_resources().get("CPU", 1))))
    busy: dict[Any, tuple[Any, Job | None]] = {}
    tries: dict[Job, int] = {}
    failed_starts = 0

    def hire() -> None:
        actor = Retrainer.remote(config.to_dict(), references)
        busy[actor.ready.remote()] = (actor, None)

    for _ in range(size):
        hire()
    todo, done = deque(jobs), dict[Job, Record]()
    while len(done) < len(jobs):
        (finished, *_), _ = ray.wait(list(busy), num_returns=1)
        actor, job = busy.pop(finished)
        try:
            record = ray.get(finished)
        except RayActorError as e:
            if job is None:
                failed_starts += 1
                if failed_starts == size + MAX_TRIES:
                    raise EvaluationError(f"evaluation actors do not start: {e}") from e
            else:
                tries[job] = tries.get(job, 0) + 1
                if tries[job] == MAX_TRIES:
                    raise EvaluationError(
                        f"{job}: {MAX_TRIES} actors died of it, the last one of: {e}"
                    ) from e
                todo.appendleft(job)
            hire()
            continue
        except RayTaskError as e:
            raise EvaluationError(f"{job or 'an actor of the evaluation'}: {e.cause!r}") from e
        if job is None:
            failed_starts = 0
        else:
            done[job] = record
            update(len(done), f"{job.network} on {job.trained_on}")
        if todo:
            job = todo.popleft()
            busy[actor.run.remote(job)] = (actor, job)
    return [done[job] for job in jobs]


def rows_of(records: Sequence[Record]) -> list[Row]:
    """Mean, std and n for each training set and network, the distilled set first."""
    order = [DISTILLED, RANDOM_REAL, WHOLE_TRAIN]
    groups: dict[tuple[str, str], list[float]] = {}
    for record in records:
        groups.setdefault((record.trained_on, record.network), []).append(record.test_accuracy)
    return [
        Row(on, network, statistics.fmean(a), statistics.stdev(a) if len(a) > 1 else None, len(a))
        for (on, network), a in sorted(groups.items(), key=lambda item: order.index(item[0][0]))
    ]


def evaluate(config: Config, dataset: DistilledDataset, tickets: Tickets, update: Update) -> list[Record]:
    """The records of a whole evaluation on the connected Ray cluster. Raises: EvaluationError."""
    return run_pool(config, dataset, tickets, jobs_of(config), update)
