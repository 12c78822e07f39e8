"""What an evaluation retrains: the lines of its table, and the jobs that fill them.

A line is one network trained on one subject under one treatment: a distilled set, or a baseline beside it, as the set's
own protocol says. Its retrainings differ in their index alone, the number of a fresh start and, where the subject is
drawn at random, of a draw. A job trains some of them. So a new baseline is a new kind of subject, and a new robustness
score a new treatment; the pool that does the jobs, and the files that keep the results, know of neither.

The fingerprint of a line is a hash of all that determines its numbers beside index, lr and inner steps: what was
found out once, under one fingerprint, need not be found out again.

With `evaluation.tune_lr` the lr is chosen line by line among multiples of the set's own: the best mean accuracy on the
validation split after the last horizon, of networks that are not among those that are tested. A job that chooses never
sees the test split.
"""

import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
    """Something that networks are trained on."""

    name: str
    kind: Kind
    of_set: str
    """The judged set whose protocol, seed and real images it goes with."""
    num_images: int

    @property
    def is_drawn(self) -> bool:
        """Whether each index has images of its own."""
        return self.kind in ("subset", "random_real")


@dataclass(frozen=True, kw_only=True)
class TableRowSpec:
    """What the retrainings of one line of the table have in common."""

    subject: Subject
    treatment: Treatment
    network: str
    num_networks: int
    at_once: int
    """Networks that are trained as one computation."""
    horizons: tuple[int, ...]
    batch: int | None
    """None: the protocol's class-balanced batches; otherwise random ones of so many images."""
    own_lr: float
    grid: tuple[float, ...]
    """Lrs to choose among; empty if the own one is taken."""
    num_choosing: int
    """Networks for each of them."""
    choosing_at_once: int
    """Of those, too."""
    fingerprint: str
    step_flops: float
    """Of an inner step of one network; roughly, as the next two."""
    test_flops: float
    validation_flops: float

    def retraining(self, index: int) -> Retraining:
        """One of its retrainings."""
        subject = self.subject
        return Retraining(subject.name, subject.kind, self.treatment, subject.num_images, self.network, index)

    @property
    def num_trainings(self) -> int:
        """Those that choose the lr too."""
        return self.num_networks + len(self.grid) * self.num_choosing


@dataclass(frozen=True, kw_only=True)
class Job:
    """Some of a line's networks, trained at one lr: for the table, or to choose the lr."""

    line: TableRowSpec
    indices: tuple[int, ...]
    lr: float
    choosing: bool

    @property
    def horizons(self) -> tuple[int, ...]:
        """Inner steps after which the networks are judged."""
        return self.line.horizons[-1:] if self.choosing else self.line.horizons

    @property
    def cost(self) -> float:
        """Floating-point operations, roughly: enough to tell long jobs from short ones."""
        line = self.line
        judging = (line.validation_flops if self.choosing else line.test_flops) * len(self.horizons)
        return len(self.indices) * (line.step_flops * self.horizons[-1] + judging)


@dataclass(frozen=True)
class LrCandidate:
    """How a network that helps to choose an lr has done. The accuracy is a fraction of the validation images."""

    of: Retraining
    lr: float
    inner_steps: int
    validation_accuracy: float


def jobs_for(line: TableRowSpec, indices: Iterable[int], lr: float, *, choosing: bool = False) -> list[Job]:
    """Jobs for these networks of a line, each of as many as are trained at once.

    Those that are missing stay in the groups in which they would have been without the others.
    """
    size = line.choosing_at_once if choosing else line.at_once
    groups = itertools.groupby(sorted(indices), lambda index: index // size)
    return [Job(line=line, indices=tuple(group), lr=lr, choosing=choosing) for _, group in groups]


def best_lr(own_lr: float, accuracies: Mapping[float, Sequence[float]]) -> float:
    """The lr with the best mean accuracy; of equally good ones the nearest to the own, then the smaller."""

    def rank(lr: float) -> tuple[float, float, float]:
        return -statistics.fmean(accuracies[lr]), abs(math.log(lr / own_lr)), lr

    return min(accuracies, key=rank)


def lines_of(sets: Sequence[EvaluationSet]) -> list[TableRowSpec]:
    """The lines of the table of some sets, the baselines after them.

    A baseline that is the same beside several sets, since they have one protocol and size, stands there once.
    Raises: ConfigError if two of the sets are the same; or for a network that does not fit the images.
    """
    lines = [line for judged in sets for line in _set_lines(judged)]
    seen: dict[str, str] = {}
    for line in lines:
        name = seen.setdefault(line.fingerprint, line.subject.name)
        if name != line.subject.name:
            raise ConfigError(
                f"{name} and {line.subject.name} are the same set with the same protocol; name it once"
            )
    for kind in sets[0].config.evaluation.baselines:
        different: dict[tuple[str, ...], list[TableRowSpec]] = {}
        for judged in sets:
            beside = _lines(judged, kind, kind)
            different.setdefault(tuple(line.fingerprint for line in beside), beside)
        for beside in different.values():
            lines += beside if len(different) == 1 else map(_named_by_set, beside)
    return lines


def _named_by_set(line: TableRowSpec) -> TableRowSpec:
    subject = line.subject
    return replace(line, subject=replace(subject, name=f"{subject.name} beside {subject.of_set}"))


def baselines_beside(
    sets: Iterable[EvaluationSet], lines: Iterable[TableRowSpec]
) -> dict[str, dict[Kind, str]]:
    """For each set the names that its baselines have in the table."""
    names = {line.fingerprint: line.subject.name for line in lines}
    return {
        judged.name: {
            kind: names[_lines(judged, kind, kind)[0].fingerprint]
            for kind in judged.config.evaluation.baselines
        }
        for judged in sets
    }


def _set_lines(judged: EvaluationSet) -> list[TableRowSpec]:
    """A distilled set's, and those of its subsets. Raises: ConfigError for one that is as large as the set."""
    evaluation, ipc = judged.config.evaluation, len(judged.dataset) // judged.num_classes
    lines = _lines(judged, judged.name, "distilled")
    for size in evaluation.subsets:
        if size >= ipc:
            raise ConfigError(
                f"evaluation.subsets: must be below {ipc}, the images per class of {judged.name} (found {size})"
            )
        subject = Subject(judged.name, "subset", judged.name, size * judged.num_classes)
        lines += [
            _line(judged, subject, "own", network, evaluation.subset_draws or 0)
            for network in evaluation.networks
        ]
    return lines


def _lines(judged: EvaluationSet, name: str, kind: Kind) -> list[TableRowSpec]:
    """A line for each treatment of a subject, and each network that is trained on it."""
    evaluation, own = judged.config.evaluation, judged.config.network.name
    if kind == "whole_train":
        subject = Subject(name, kind, judged.name, judged.num_train)
        # The robustness scores of a network compare with the whole training set by the same network.
        networks = evaluation.networks if evaluation.robustness else (own,)
        return [
            _line(judged, subject, "own", network, evaluation.whole_train_seeds or 0) for network in networks
        ]
    subject = Subject(name, kind, judged.name, len(judged.dataset))
    num = (evaluation.random_real_draws or 0) if kind == "random_real" else evaluation.seeds
    treatments = _treatments(judged, kind)
    return [
        _line(judged, subject, how, network, num) for how in treatments for network in evaluation.networks
    ]


def _treatments(judged: EvaluationSet, kind: Kind) -> list[Treatment]:
    """Beside its own, what the robustness scores are made of (`robustness`), as far as that is something else."""
    if kind not in ("distilled", "random_real") or not judged.config.evaluation.robustness:
        return ["own"]
    inner = judged.config.inner
    own = Augmentation(inner.augmentation, inner.augmentation_mode)
    differs: dict[Treatment, bool] = {
        "own": True,
        "hard_labels": kind == "distilled" and not judged.has_hard_labels,
        "no_augmentation": bool(own.operations),
        "augmentation": own != DD_RANKING,
    }
    return [treatment for treatment, does in differs.items() if does]


def _line(
    judged: EvaluationSet, subject: Subject, treatment: Treatment, name: str, num_networks: int
) -> TableRowSpec:
    """One line; `name` is the network's."""
    config, evaluation = judged.config, judged.config.evaluation
    batch, horizons = None, evaluation.horizons
    if subject.kind == "whole_train":
        assert evaluation.whole_train_batch is not None
        assert evaluation.whole_train_epochs is not None
        batch = min(evaluation.whole_train_batch, judged.num_train)
        horizons = (evaluation.whole_train_epochs * (judged.num_train // batch),)
    own_lr = settings.evaluation_inner_lr(config)
    network, flops = judged.network(name)

    def at_once(count: int, least_groups: int) -> int:
        of = (config, network, judged.image_shape, judged.num_classes, settings.device_for(config))
        size = batching.network_group_size(*of, count, batch=batch, min_groups=least_groups)
        return 1 if subject.is_drawn else size

    num_choosing = evaluation.lr_networks or 0
    return TableRowSpec(
        subject=subject,
        treatment=treatment,
        network=name,
        num_networks=num_networks,
        at_once=at_once(num_networks, batching.MIN_GROUPS),
        horizons=horizons,
        batch=batch,
        own_lr=own_lr,
        # Rounded: 0.3 x 0.001 would be 0.00030000000000000003 in every file.
        grid=tuple(float(f"{own_lr * factor:.12g}") for factor in evaluation.lr_grid or ()),
        num_choosing=num_choosing,
        # There is a job for each lr to share out already.
        choosing_at_once=at_once(num_choosing, 1) if num_choosing else 1,
        fingerprint=_fingerprint(judged, subject, treatment, name, batch),
        step_flops=3.0 * flops * (batch or settings.inner_batch_size(config, judged.num_classes)),
        test_flops=float(flops * judged.num_test),
        validation_flops=float(flops * judged.num_validation),
    )


def _fingerprint(
    judged: EvaluationSet, subject: Subject, treatment: Treatment, network: str, batch: int | None
) -> str:
    """32 hex digits over what determines the numbers: neither names nor where and how fast they are computed."""
    config, of_set = judged.config, subject.kind in ("distilled", "subset")
    inner: dict[str, Any] = config.inner.model_dump(mode="json", exclude={"lr"})
    if batch is not None:
        del inner["batch_per_class"], inner["classes_per_batch"]
    values = {
        "subject": [subject.kind, subject.num_images],
        "images": judged.digest if of_set else config.data.validation_fraction,
        "preprocessing": judged.preprocessing_digest,
        "data": [ticket.pixels_digest for ticket in judged.tickets],
        "treatment": treatment,
        "network": {"name": network}
        if network.startswith(TORCHVISION)
        else asdict(network_spec(config, network)),
        "inner": inner,
        "batch": batch,
        "seed": config.seed,
        "precision": config.precision,
    }
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()
