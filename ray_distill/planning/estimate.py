"""A plan: what a run takes, for some numbers of workers, worked out from a few probes on this machine.

Time: an outer step of a worker is, for each group of its replicas,

    E[burn-in] b + E[window] w + E[replayed] b + draws + passes over the real batch,

with the seconds b, w of a burn-in and a window step and the means of the truncation rule over the run. The
all-reduce and the outer optimiser, which work on a tensor of the size of D, are left out; so are Ray's start,
reports and checkpoints, and the evaluation after the run.

Memory: a worker has its libraries and, at the worst moment, either the states of a window with the real batch
and the activations of a pass, or the drawing of a real batch, or a batch of held-out images in validation.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ray_distill.builders import settings
from ray_distill.builders.checks import check_image_options, check_worker_count
from ray_distill.builders.experiment import build_experiment
from ray_distill.config.config import Config, ConfigError
from ray_distill.data.real_data import GPU_MEMORY_FRACTION
from ray_distill.planning.images import RealImages, real_images
from ray_distill.planning.probes import (
    BatchProbe,
    Setting,
    StepProbe,
    ValidationProbe,
    device_of,
    in_own_process,
    probe_batch,
    probe_steps,
    probe_validation,
)
from ray_distill.planning.unroll_memory import InnerSteps, mean_steps, states_kept
from ray_distill.utils.progress import Update

WORKERS = (1, 2, 4, 8)
GIB = 2**30
CUDA_CONTEXT_BYTES = GIB // 2
"""Of a GPU's memory, beside what torch allocates: about that, not measured."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Replicas that are one computation: their probes, and what is asked of them."""

    steps: StepProbe
    batch: BatchProbe
    mean: InnerSteps
    states: int
    """That the longest window keeps at once."""

    def seconds_of_loss(self, outer_batch: int) -> float:
        """Of the outer loss of a real batch: as many times as long as it has passes."""
        b, size = self.batch, self.steps.images_per_pass or outer_batch
        passes, measured = (-(-count // size) for count in (outer_batch, b.images))
        return b.loss_s * passes / measured

    def seconds(self, outer_batch: int) -> float:
        """Of an outer step."""
        s, mean = self.steps, self.mean
        inner = (mean.burn_in + mean.replayed) * s.burn_in_step_s + mean.window * s.window_step_s
        return inner + self.batch.draws_s + self.seconds_of_loss(outer_batch)


@dataclass(frozen=True, kw_only=True)
class WorkerMemory:
    """Bytes of one worker."""

    libraries: int
    data: int
    """Real images on its GPU, if that has the room. On a machine they are mapped from a file, and do not count."""
    states: int
    passes: int
    batch_held: int
    batch_drawn: int
    scoring: int

    @property
    def unrolled(self) -> int:
        """With the window's states kept."""
        return self.states + self.passes + self.batch_held

    @property
    def work(self) -> int:
        """At the worst moment of an outer step or a validation."""
        return max(self.unrolled, self.batch_drawn, self.scoring)

    @property
    def total(self) -> int:
        """At the worst moment."""
        return self.libraries + self.data + self.work


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """The run with so many workers."""

    workers: int
    replicas_each: int
    """Of the worker that has most."""
    idle: int
    """Workers without a group of replicas; such a number is refused."""
    outer_step_s: float
    validation_s: float
    run_s: float
    """From the first outer step to the last, with validations and with compiling."""
    device_s: float
    """`run_s` of all workers together."""
    worker_bytes: int
    needed_bytes: int
    """What must be there for the run: of a GPU its own, of a machine for all workers on it."""
    fits: bool


@dataclass(frozen=True, kw_only=True)
class Probed:
    """All that a plan is worked out from."""

    config: Config
    images: RealImages
    sizes: list[int]
    """Replicas of each group that is one computation, in the order in which workers share them out."""
    groups: dict[int, Group]
    """By the number of replicas; a group of one, as which validation networks are trained, is always there."""
    validation: ValidationProbe
    memory_bytes: int
    """Of this machine, or of each GPU."""

    @property
    def on_gpu(self) -> bool:
        """Whether each worker has a GPU, whose memory is the one that counts."""
        return self.config.cluster.use_gpu

    def shares(self, workers: int) -> list[list[int]]:
        """The groups of each of so many workers."""
        return [self.sizes[rank::workers] for rank in range(workers)]

    @property
    def memory(self) -> WorkerMemory:
        """Of a worker, however many there are."""
        group, validation = self.groups[self.sizes[0]], self.validation
        return WorkerMemory(
            libraries=CUDA_CONTEXT_BYTES if self.on_gpu else validation.library_bytes,
            data=self.data_bytes
            if self.on_gpu and self.data_bytes <= GPU_MEMORY_FRACTION * self.memory_bytes
            else 0,
            states=group.states * group.steps.bytes_per_state,
            passes=group.steps.pass_bytes,
            batch_held=group.batch.held_bytes,
            batch_drawn=group.batch.draw_bytes,
            scoring=validation.score_bytes,
        )

    @property
    def num_images(self) -> int:
        """Real images, held-out ones included."""
        return self.images.num_train + self.images.num_validation

    @property
    def data_bytes(self) -> int:
        """Of the file of real images that workers map: whitened numbers, or pixels."""
        size = 4 if self.config.data.preprocessing == "zca" else 1
        return size * math.prod(self.images.shape) * self.num_images

    def shared_bytes(self) -> int:
        """Of a machine, whatever the number of its workers: the driver."""
        return 0 if self.on_gpu else self.validation.library_bytes

    def needed_bytes(self, workers: int) -> int:
        """Of a GPU that one of so many workers has; of a machine that has all of them."""
        each = self.memory.total
        return each if self.on_gpu else self.shared_bytes() + workers * each

    def room(self, workers: int) -> int:
        """The bytes that a worker may take for its work."""
        each = (self.memory_bytes - self.shared_bytes()) // (1 if self.on_gpu else workers)
        return each - self.memory.libraries - self.memory.data


def num_validations(config: Config) -> int:
    """On the cadence, and at the last outer step."""
    return -(-config.outer.steps // config.validation.every)


def row(probed: Probed, workers: int) -> PlanRow:
    """The run with so many workers, each on a device like the one that was probed."""
    config = probed.config
    used = min(workers, len(probed.sizes))
    shares = probed.shares(used)
    step_s = max(
        sum(probed.groups[size].seconds(config.outer.batch_size) for size in share) for share in shares
    )
    of_images = (
        probed.images.num_validation / probed.validation.images * probed.validation.score_s
        + config.validation.horizon * probed.groups[1].steps.burn_in_step_s
    )
    validation_s = -(-config.validation.num_networks // used) * of_images
    compile_s = sum(probed.groups[size].steps.compile_s for size in {1, *shares[0]})
    run_s = compile_s + config.outer.steps * step_s + num_validations(config) * validation_s
    needed = probed.needed_bytes(used)
    return PlanRow(
        workers=workers,
        replicas_each=max(sum(share) for share in shares),
        idle=workers - used,
        outer_step_s=step_s,
        validation_s=validation_s,
        run_s=run_s,
        device_s=workers * run_s,
        worker_bytes=probed.memory.total,
        needed_bytes=needed,
        fits=needed <= probed.memory_bytes,
    )


def rows(probed: Probed) -> list[PlanRow]:
    """For 1, 2, 4 and 8 workers, and for as many as the configuration names, at most and at least."""
    cluster = probed.config.cluster
    own = {cluster.num_workers, cluster.min_workers or cluster.num_workers}
    return [row(probed, workers) for workers in sorted({*WORKERS, *own})]


Bar = Callable[[str, int], AbstractContextManager[Update]]
"""(what, total units) -> a progress bar."""


def probe(config: Config, *, memory_bytes: int, compiled: bool, bar: Bar) -> Probed:
    """Measure on this machine what a plan needs.

    Args:
        memory_bytes: of the machine, or of each GPU.
        compiled: the step functions go through torch.compile first.

    Raises: ConfigError for a configuration that does not fit its images or this machine; DataError for a source
        that is neither known nor there; FailedError if a probe was ended from outside.
    """
    images = real_images(config)
    _check(config, images)
    sizes = _sizes(config, images)
    groups: dict[int, Group] = {}
    with bar("probing", 1 + 2 * len({1, *sizes})) as update:
        for size in sorted({1, *sizes}):
            setting = Setting(config=config.to_dict(), images=images, at_once=size, compiled=compiled)
            update(2 * len(groups), "inner steps")
            steps = in_own_process(probe_steps, setting)
            update(2 * len(groups) + 1, "a real batch")
            batch = in_own_process(probe_batch, setting)
            groups[size] = _group(setting, steps, batch)
        update(2 * len(groups), "validation")
        validation = in_own_process(probe_validation, setting)
        update(2 * len(groups) + 1, "")
    return Probed(
        config=config,
        images=images,
        sizes=sizes,
        groups=groups,
        validation=validation,
        memory_bytes=memory_bytes,
    )


def _check(config: Config, images: RealImages) -> None:
    """Raises: ConfigError for what cannot be planned."""
    device_of(config)
    check_image_options(config, images.shape, images.num_classes)
    check_worker_count(config, images.shape, images.num_classes)
    if config.engine == "higher":
        raise ConfigError(
            "engine: plans are made for the adjoint; what `higher` takes is measured by `ray-distill bench metagradient`"
        )
    if config.outer.batch_size > images.num_train:
        raise ConfigError(
            f"outer.batch_size: must be at most the {images.num_train} training images (got {config.outer.batch_size})"
        )


def _sizes(config: Config, images: RealImages) -> list[int]:
    """Of the groups that the replicas are computed in."""
    experiment = build_experiment(config, images.shape, images.num_classes, device_of(config))
    return [len(group) for group in experiment.groups]


def _group(setting: Setting, steps: StepProbe, batch: BatchProbe) -> Group:
    config = setting.read()
    rule, _ = settings.truncation_rule(config)
    most = max(1, int(config.compute.state_memory_gib * GIB / steps.bytes_per_state))
    return Group(
        steps=steps,
        batch=batch,
        mean=mean_steps(rule, config.outer.steps, most),
        states=states_kept(settings.longest_window(config), most),
    )
