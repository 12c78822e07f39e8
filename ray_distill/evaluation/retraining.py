"""The work of one job, without Ray: train networks on what the job says, and test them.

A network's training images, draws and initialisation are functions of its row and index (`jobs`), so a job that is
repeated elsewhere gives the same numbers, whatever the grouping into jobs. The test split is opened when the first job
needs it: jobs that tune an lr use the validation split, and never do.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
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
from ray_distill.data.splits import DataHandle, open_development, open_handle
from ray_distill.data.test_split import load_test
from ray_distill.evaluation.baselines import herding_rows, k_means_centres, random_real_rows, subset_rows
from ray_distill.evaluation.jobs import DD_RANKING, Job, LrCandidate, RetrainingSpec
from ray_distill.evaluation.results import Kind, Record


class EvaluationData:
    """The data of an evaluated set in one process, each part opened when it is first used."""

    def __init__(
        self,
        config: dict[str, Any],
        train: DataHandle,
        test: DataHandle,
        fetch_distilled: Callable[[], Iterable[Any]],
        fetch_preprocessing: Callable[[], Preprocessing],
    ) -> None:
        """
        Args:
            train: of training and validation images.
            fetch_distilled: returns images and labels as arrays.
            fetch_preprocessing: called on a machine that lacks the preprocessed images.
        """
        self.config = parse_config(config)
        self.device = settings.device_for(self.config)
        settings.set_tf32(self.config)
        self._train, self._test = train, test
        self._fetch_distilled, self._fetch_preprocessing = fetch_distilled, fetch_preprocessing

    @cached_property
    def distilled(self) -> DistilledData:
        """The distilled set."""
        return self.to_device(self._fetch_distilled())

    def to_device(self, arrays: Iterable[Any]) -> DistilledData:
        """Images and labels, from arrays."""
        dtype = settings.dtype(self.config)
        return DistilledData(*(torch.from_numpy(array.copy()).to(self.device, dtype) for array in arrays))

    @cached_property
    def _development(self) -> tuple[RealData, RealData]:
        train, validation = open_development(self._train, self._fetch_preprocessing)
        return self._real(train), self._real(validation)

    @property
    def train(self) -> RealData:
        """Real training images."""
        return self._development[0]

    @property
    def validation(self) -> RealData:
        """Real images to tune an lr on."""
        return self._development[1]

    @cached_property
    def test(self) -> RealData:
        """The test split."""
        images = open_handle(self._test, load_test, self._fetch_preprocessing)
        return self._real(RealData.from_images(images, torch.arange(len(images)), self._test.preprocessing))

    def _real(self, data: RealData) -> RealData:
        return to_run_device(self.config, data, self.device)

    def training_set(
        self, spec: RetrainingSpec, index: int, seed: int, coreset: DistilledData | None = None
    ) -> TrainingSet:
        """What one network of a row is trained on.

        Args:
            seed: of draws that differ between indices.
            coreset: of `select_coreset`, for rows of herding and k-means.

        Raises: ValueError if there are too few real images.
        """
        subject, num_classes = spec.subject, self.distilled.num_classes
        ipc = subject.num_images // num_classes
        match subject.kind:
            case "distilled":
                data = self.distilled
            case "subset":
                set_ipc = self.distilled.num_images // num_classes
                data = self.distilled.rows(
                    subset_rows(num_classes, set_ipc, ipc, seed, index).to(self.device)
                )
            case "random_real":
                data = self.train.rows(random_real_rows(self.train, ipc, seed, index))
            case "herding" | "k_means":
                assert coreset is not None
                data = coreset
            case "whole_train":
                return self.train
        return _with_hard_labels(data) if spec.treatment == "hard_labels" else data

    def select_coreset(self, kind: Kind, ipc: int) -> list[Any]:
        """Images and labels, as arrays."""
        if kind == "herding":
            coreset = self.train.rows(herding_rows(self.train, ipc))
        else:
            coreset = k_means_centres(self.train, ipc, self.config.seed)
        return [x.cpu().numpy() for x in coreset]


def _with_hard_labels(data: DistilledData) -> DistilledData:
    """With the most probable class as the label."""
    labels_NK = one_hot(data.labels_NK.argmax(dim=1), data.num_classes, data.dtype)
    return data._replace(labels_NK=labels_NK)


def run_job(
    data: EvaluationData, job: Job, coreset: DistilledData | None = None
) -> list[Record] | list[LrCandidate]:
    """Train fresh networks and test them. The results are in the order of the job's indices, then horizons."""
    spec = job.spec
    # Streams of their own: D was distilled through none of these networks, and networks that tune an lr, and the images
    # drawn for them, are none of those in the table.
    set_seed = data.config.seed
    seed = Stream(seed=set_seed, name="evaluation-lr" if job.tunes_lr else "evaluation").key()[0]
    held_out = data.validation if job.tunes_lr else data.test
    training_set = data.training_set(spec, job.indices[0], seed if job.tunes_lr else set_seed, coreset)
    clock = _Clock(held_out.batches)
    scores = retrain_group(
        _inner_problem(data, job, held_out),
        training_set,
        clock.batches,
        job.horizons,
        seed=seed,
        indices=job.indices,
        batch=spec.batch_size,
    )
    retrainings = [spec.retraining(index) for index in job.indices]
    if job.tunes_lr:
        return [
            LrCandidate(retraining, job.lr, job.horizons[-1], at_horizons[-1].accuracy)
            for retraining, at_horizons in zip(retrainings, scores, strict=True)
        ]
    seconds = clock.seconds(len(job.horizons), len(retrainings))
    return [
        Record(retraining, job.lr, steps, score.accuracy, elapsed)
        for retraining, at_horizons in zip(retrainings, scores, strict=True)
        for steps, score, elapsed in zip(job.horizons, at_horizons, seconds, strict=True)
    ]


def _inner_problem(data: EvaluationData, job: Job, held_out: RealData) -> InnerProblem:
    """The set's inner training, with the job's lr and treatment."""
    config, shape, num_classes = data.config, held_out.image_shape, held_out.num_classes
    network = network_for(config, job.spec.network, shape, num_classes)
    problem = build_inner_problem(
        config, network, shape, num_classes, data.device, group_size=len(job.indices)
    )
    problem = replace(problem, optimizer=replace(problem.optimizer, lr=job.lr))
    match job.spec.treatment:
        case "no_augmentation":
            return replace(problem, augmentation=NO_AUGMENTATION)
        case "augmentation":
            return replace(problem, augmentation=DD_RANKING)
        case _:
            return problem


class _Clock:
    """Measures the time until each pass over the test images has ended."""

    def __init__(self, batches: Callable[[], LabelledBatches]) -> None:
        self._batches, self._last = batches, time.perf_counter()
        self._seconds: list[float] = []

    def batches(self) -> LabelledBatches:
        yield from self._batches()
        now = time.perf_counter()
        self._seconds.append(now - self._last)
        self._last = now

    def seconds(self, num_horizons: int, num_networks: int) -> list[float]:
        """From the start to each horizon, per network."""
        return [sum(self._seconds[: h + 1]) / num_networks for h in range(num_horizons)]
