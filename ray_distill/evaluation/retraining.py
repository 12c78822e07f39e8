"""The work of one job of an evaluation, wherever it is done: networks trained on what the job says, and their scores.

What a network is trained on, and its draws, are functions of its line and index (`evaluation_jobs`), so a job that is
done again elsewhere gives the same number, and the number does not depend on which job a network was part of. The test
split is opened when the first job needs it: those that choose an lr are judged on validation, and never do.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from ray_distill.builders import settings
from ray_distill.builders.experiment import build_inner_problem, to_run_device
from ray_distill.builders.networks import network_for
from ray_distill.config.load import parse_config
from ray_distill.core.augment import NONE as NO_AUGMENTATION
from ray_distill.core.distilled import DistilledData, TrainingSet, one_hot
from ray_distill.core.retrain import LabelledBatches, retrain_group
from ray_distill.core.rng import Stream
from ray_distill.core.unroll import InnerProblem
from ray_distill.data.preprocessing import Preprocessing
from ray_distill.data.real_data import RealData
from ray_distill.data.splits import open_development, open_handle
from ray_distill.data.test_split import load_test
from ray_distill.evaluation.baselines import herding_rows, k_means_centres, random_real_rows, subset_rows
from ray_distill.evaluation.jobs import DD_RANKING, Job, LrCandidate, TableRowSpec
from ray_distill.evaluation.results import Record
from ray_distill.evaluation.scheduler import Choice
from ray_distill.evaluation.subjects import Tickets


@dataclass(frozen=True)
class Shipped:
    """A judged set on its way to an actor."""

    config: dict[str, Any]
    tickets: Tickets
    distilled: Callable[[], list[Any]]
    """Fetches images and labels, as arrays."""
    fitted: Callable[[], Preprocessing]
    """Fetches the preprocessing, on a machine that lacks the preprocessed images."""


class LoadedSet:
    """A judged set in an actor: whatever of its data is asked for is opened then, and kept."""

    def __init__(self, shipped: Shipped) -> None:
        self._shipped, self.config = shipped, parse_config(shipped.config)
        self.device = settings.device_for(self.config)
        settings.set_tf32(self.config)

    @cached_property
    def distilled(self) -> DistilledData:
        """What networks are trained on."""
        return self.taken(self._shipped.distilled())

    def taken(self, arrays: Iterable[Any]) -> DistilledData:
        """Images and labels that were shipped."""
        dtype = settings.dtype(self.config)
        return DistilledData(*(torch.from_numpy(array.copy()).to(self.device, dtype) for array in arrays))

    @cached_property
    def _development(self) -> tuple[RealData, RealData]:
        train, validation = open_development(self._shipped.tickets.train, self._shipped.fitted)
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
        images = open_handle(ticket, load_test, self._shipped.fitted)
        return self._taken(RealData.from_images(images, torch.arange(len(images)), ticket.preprocessing))

    def _taken(self, data: RealData) -> RealData:
        return to_run_device(self.config, data, self.device)

    def training_set(
        self, line: TableRowSpec, index: int, seed: int, chosen: DistilledData | None = None
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


def run_job(
    here: LoadedSet, job: Job, chosen: DistilledData | None = None
) -> list[Record] | list[LrCandidate]:
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
            LrCandidate(one, job.lr, job.horizons[-1], score[-1].accuracy)
            for one, score in zip(of, scores, strict=True)
        ]
    seconds = clock.seconds(len(job.horizons), len(of))
    return [
        Record(one, job.lr, steps, score.accuracy, took)
        for one, of_one in zip(of, scores, strict=True)
        for steps, score, took in zip(job.horizons, of_one, seconds, strict=True)
    ]


def _problem(here: LoadedSet, job: Job, judge: RealData) -> InnerProblem:
    """The set's own training, with the lr and the treatment that the job says."""
    config, shape, num_classes = here.config, judge.image_shape, judge.num_classes
    network = network_for(config, job.line.network, shape, num_classes)
    problem = build_inner_problem(
        config, network, shape, num_classes, here.device, group_size=len(job.indices)
    )
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

    def __init__(self, batches: Callable[[], LabelledBatches]) -> None:
        self._batches, self._last = batches, time.perf_counter()
        self._took: list[float] = []

    def batches(self) -> LabelledBatches:
        """The images, from the beginning."""
        yield from self._batches()
        now = time.perf_counter()
        self._took.append(now - self._last)
        self._last = now

    def seconds(self, num_horizons: int, num_networks: int) -> list[float]:
        """From the beginning to each horizon, a network's share of it."""
        return [sum(self._took[: h + 1]) / num_networks for h in range(num_horizons)]
