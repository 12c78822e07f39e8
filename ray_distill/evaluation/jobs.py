"""What an evaluation retrains: the rows of its table, and the jobs that fill them.

A row is one network, retrained on one subject (a distilled set, or a baseline) under one treatment, with the set's own
protocol. Its retrainings differ only in their index, the number of a fresh initialisation and, for random subjects, of a
draw. A job trains some of them. A new baseline is thus a new kind of subject, and a new robustness score a new treatment;
the pool that runs the jobs and the files with their results need no change.

A row's fingerprint is a hash of everything that determines its numbers besides index, lr and inner steps: results with an
equal fingerprint can be reused.

With `evaluation.tune_lr` each row's lr is chosen among multiples of the set's own: the best mean accuracy on the
validation split after the last horizon, of other networks than those that are tested. A job that tunes the lr never sees
the test split.
"""

import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ray_distill.builders import batching, settings
from ray_distill.builders.networks import network_spec
from ray_distill.config.config import ConfigError
from ray_distill.config.network import TORCHVISION
from ray_distill.core.augment import Augmentation
from ray_distill.evaluation.results import Kind, Retraining, Treatment
from ray_distill.evaluation.subjects import EvaluationSet

DD_RANKING = Augmentation(("color", "crop", "cutout", "flip", "scale", "rotate"), "single")
"""The augmentation of the augmentation-robust score: DSA's, one operation at each step (`robustness`)."""


@dataclass(frozen=True)
class Subject:
    """What networks are trained on."""

    name: str
    kind: Kind
    set_name: str
    """The evaluated set whose protocol, seed and real images are used."""
    num_images: int

    @property
    def is_random(self) -> bool:
        """Whether each index draws its own images."""
        return self.kind in ("subset", "random_real")


@dataclass(frozen=True, kw_only=True)
class RetrainingSpec:
    """What the retrainings of one row of the table have in common."""

    subject: Subject
    treatment: Treatment
    network: str
    num_networks: int
    networks_per_job: int
    """Trained as one computation."""
    horizons: tuple[int, ...]
    batch_size: int | None
    """Of random batches; None for the protocol's class-balanced ones."""
    protocol_lr: float
    lr_grid: tuple[float, ...]
    """Candidates; empty if the protocol's lr is used."""
    num_lr_networks: int
    """For each candidate."""
    lr_networks_per_job: int
    fingerprint: str
    step_flops: float
    """Of an inner step of one network; an estimate, as the next two."""
    test_flops: float
    validation_flops: float

    def retraining(self, index: int) -> Retraining:
        """One of its retrainings."""
        subject = self.subject
        return Retraining(subject.name, subject.kind, self.treatment, subject.num_images, self.network, index)

    @property
    def num_trainings(self) -> int:
        """Including those that tune the lr."""
        return self.num_networks + len(self.lr_grid) * self.num_lr_networks


@dataclass(frozen=True, kw_only=True)
class Job:
    """Some networks of a row, trained with one lr: for the table, or to tune the lr."""

    spec: RetrainingSpec
    indices: tuple[int, ...]
    lr: float
    tunes_lr: bool
    coreset: Any = field(default=None, compare=False)
    """Reference to the images that it trains on, if they were selected by another task."""

    @property
    def horizons(self) -> tuple[int, ...]:
        """Inner steps after which the networks are tested."""
        return self.spec.horizons[-1:] if self.tunes_lr else self.spec.horizons

    @property
    def cost(self) -> float:
        """Floating-point operations, an estimate to sort jobs by."""
        spec = self.spec
        testing = (spec.validation_flops if self.tunes_lr else spec.test_flops) * len(self.horizons)
        return len(self.indices) * (spec.step_flops * self.horizons[-1] + testing)


@dataclass(frozen=True)
class LrCandidate:
    """The accuracy of one network with one lr, a fraction of the validation images."""

    retraining: Retraining
    lr: float
    inner_steps: int
    validation_accuracy: float


def jobs_for(spec: RetrainingSpec, indices: Iterable[int], lr: float, *, tunes_lr: bool = False) -> list[Job]:
    """Jobs for these networks of a row.

    The groups are those of all the row's networks, so that networks share a computation with the same others whatever
    is missing.
    """
    size = spec.lr_networks_per_job if tunes_lr else spec.networks_per_job
    groups = itertools.groupby(sorted(indices), lambda index: index // size)
    return [Job(spec=spec, indices=tuple(group), lr=lr, tunes_lr=tunes_lr) for _, group in groups]


def best_lr(protocol_lr: float, accuracies: Mapping[float, Sequence[float]]) -> float:
    """The lr with the best mean accuracy; on a tie the nearest to the protocol's by ratio, then the smaller."""

    def rank(lr: float) -> tuple[float, float, float]:
        return -statistics.fmean(accuracies[lr]), abs(math.log(lr / protocol_lr)), lr

    return min(accuracies, key=rank)


def specs_for(sets: Sequence[EvaluationSet]) -> list[RetrainingSpec]:
    """The rows of a table of some sets, followed by the baselines.

    A baseline that is the same for several sets, because they share protocol and size, is one row.
    Raises: ConfigError if two of the sets are the same; or for a network that does not fit the images.
    """
    specs = [spec for each in sets for spec in _set_specs(each)]
    names: dict[str, str] = {}
    for spec in specs:
        name = names.setdefault(spec.fingerprint, spec.subject.name)
        if name != spec.subject.name:
            raise ConfigError(
                f"{name} and {spec.subject.name} are the same set with the same protocol; remove one of them"
            )
    for kind in sets[0].config.evaluation.baselines:
        distinct: dict[tuple[str, ...], list[RetrainingSpec]] = {}
        for each in sets:
            of_set = _subject_specs(each, kind, kind)
            distinct.setdefault(tuple(spec.fingerprint for spec in of_set), of_set)
        for baseline in distinct.values():
            specs += baseline if len(distinct) == 1 else map(_named_by_set, baseline)
    return specs


def _named_by_set(spec: RetrainingSpec) -> RetrainingSpec:
    subject = spec.subject
    return replace(spec, subject=replace(subject, name=f"{subject.name} beside {subject.set_name}"))


def baseline_names(
    sets: Iterable[EvaluationSet], specs: Iterable[RetrainingSpec]
) -> dict[str, dict[Kind, str]]:
    """For each set the names of its baselines in the table."""
    names = {spec.fingerprint: spec.subject.name for spec in specs}
    return {
        each.name: {
            kind: names[_subject_specs(each, kind, kind)[0].fingerprint]
            for kind in each.config.evaluation.baselines
        }
        for each in sets
    }


def _set_specs(each: EvaluationSet) -> list[RetrainingSpec]:
    """Of a distilled set and its subsets. Raises: ConfigError for a subset that is as large as the set."""
    evaluation, ipc = each.config.evaluation, len(each.dataset) // each.num_classes
    specs = _subject_specs(each, each.name, "distilled")
    for size in evaluation.subsets:
        if size >= ipc:
            raise ConfigError(
                f"evaluation.subsets: must be below {ipc}, the images per class of {each.name} (got {size})"
            )
        subject = Subject(each.name, "subset", each.name, size * each.num_classes)
        specs += [
            _spec(each, subject, "own", network, evaluation.subset_draws or 0)
            for network in evaluation.networks
        ]
    return specs


def _subject_specs(each: EvaluationSet, name: str, kind: Kind) -> list[RetrainingSpec]:
    """For each treatment of a subject, and each network that is trained on it."""
    evaluation = each.config.evaluation
    if kind == "whole_train":
        subject = Subject(name, kind, each.name, each.num_train)
        # The robustness scores of a network compare with the whole training set by the same network.
        networks = evaluation.networks if evaluation.robustness else (each.config.network.name,)
        num = evaluation.whole_train_seeds or 0
    else:
        subject = Subject(name, kind, each.name, len(each.dataset))
        networks = evaluation.networks
        num = (evaluation.random_real_draws or 0) if kind == "random_real" else evaluation.seeds
    return [
        _spec(each, subject, treatment, network, num)
        for treatment in _treatments(each, kind)
        for network in networks
    ]


def _treatments(each: EvaluationSet, kind: Kind) -> list[Treatment]:
    """The set's own, and those of the robustness scores (`robustness`) that differ from it."""
    if kind not in ("distilled", "random_real") or not each.config.evaluation.robustness:
        return ["own"]
    inner = each.config.inner
    own = Augmentation(inner.augmentation, inner.augmentation_mode)
    differs: dict[Treatment, bool] = {
        "own": True,
        "hard_labels": kind == "distilled" and not each.has_hard_labels,
        "no_augmentation": bool(own.operations),
        "augmentation": own != DD_RANKING,
    }
    return [treatment for treatment, does in differs.items() if does]


def _spec(
    each: EvaluationSet, subject: Subject, treatment: Treatment, network_name: str, num_networks: int
) -> RetrainingSpec:
    config, evaluation = each.config, each.config.evaluation
    batch_size, horizons = None, evaluation.horizons
    if subject.kind == "whole_train":
        assert evaluation.whole_train_batch is not None
        assert evaluation.whole_train_epochs is not None
        batch_size = min(evaluation.whole_train_batch, each.num_train)
        horizons = (evaluation.whole_train_epochs * (each.num_train // batch_size),)
    lr = settings.evaluation_inner_lr(config)
    network, flops = each.network(network_name)

    def group_size(count: int, min_groups: int) -> int:
        if subject.is_random:
            return 1
        args = (config, network, each.image_shape, each.num_classes, settings.device_for(config))
        return batching.network_group_size(*args, count, batch=batch_size, min_groups=min_groups)

    num_lr_networks = evaluation.lr_networks or 0
    return RetrainingSpec(
        subject=subject,
        treatment=treatment,
        network=network_name,
        num_networks=num_networks,
        networks_per_job=group_size(num_networks, batching.MIN_GROUPS),
        horizons=horizons,
        batch_size=batch_size,
        protocol_lr=lr,
        # Rounded: 0.3 x 0.001 would be 0.00030000000000000003 in every file.
        lr_grid=tuple(float(f"{lr * factor:.12g}") for factor in evaluation.lr_grid or ()),
        num_lr_networks=num_lr_networks,
        # One group: there is already a job for each lr.
        lr_networks_per_job=group_size(num_lr_networks, 1) if num_lr_networks else 1,
        fingerprint=_fingerprint(each, subject, treatment, network_name, batch_size),
        step_flops=3.0 * flops * (batch_size or settings.inner_batch_size(config, each.num_classes)),
        test_flops=float(flops * each.num_test),
        validation_flops=float(flops * each.num_validation),
    )


def _fingerprint(
    each: EvaluationSet, subject: Subject, treatment: Treatment, network: str, batch_size: int | None
) -> str:
    """32 hex digits of everything that determines the numbers: no names, and not where or how fast it is computed."""
    config = each.config
    inner: dict[str, Any] = config.inner.model_dump(mode="json", exclude={"lr"})
    if batch_size is not None:
        del inner["batch_per_class"], inner["classes_per_batch"]
    is_distilled = subject.kind in ("distilled", "subset")
    values = {
        "subject": [subject.kind, subject.num_images],
        "images": each.digest if is_distilled else config.data.validation_fraction,
        "preprocessing": each.preprocessing_digest,
        "data": [each.train.pixels_digest, each.test.pixels_digest],
        "treatment": treatment,
        "network": {"name": network}
        if network.startswith(TORCHVISION)
        else asdict(network_spec(config, network)),
        "inner": inner,
        "batch": batch_size,
        "seed": config.seed,
        "precision": config.precision,
    }
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()
