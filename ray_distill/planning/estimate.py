"""A plan: a run's time and memory for several numbers of workers, estimated from probes on this machine.

Time: an outer step of a worker is, for each group of its replicas,

    E[burn-in] b + E[window] w + E[replayed] b + draws + outer loss,

with the seconds b, w of a burn-in and a window step and the means of the truncation rule over the run. The
all-reduce and the outer optimiser, which work on a tensor of the size of D, are left out; so are Ray's start,
reports and checkpoints, and the evaluation after the run.

Memory: a worker's libraries plus the largest of: the states of a window with the real batch and the activations of a
microbatch; drawing a real batch; scoring a batch of held-out images in validation.
"""

import math
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

from ray_distill.builders import settings
from ray_distill.builders.checks import check_image_options, check_worker_count
from ray_distill.builders.experiment import build_experiment
from ray_distill.config.config import Config, ConfigError
from ray_distill.core.metagradient import segment_length
from ray_distill.core.schedules import Constant, integer_at
from ray_distill.core.truncation import BPTT, RBPTT, TBPTT, Truncation
from ray_distill.data.real_data import GPU_MEMORY_FRACTION
from ray_distill.planning.images import ImageInfo, image_info
from ray_distill.planning.probes import (
    BatchProbe,
    ProbeSettings,
    StepProbe,
    ValidationProbe,
    probe_batch,
    probe_device,
    probe_steps,
    probe_validation,
    run_probe,
)
from ray_distill.utils.progress import Update


class MeanInnerSteps(NamedTuple):
    """Inner steps of one replica per outer step, averaged over the run."""

    burn_in: float
    window: float
    replayed: float
    """Steps of the window that are computed twice to save memory."""


def replayed_steps(length: int, max_states: int | None) -> int:
    """The steps of a window that are replayed: all but those of the last segment."""
    segment = segment_length(length, max_states)
    return (-(-length // segment) - 1) * segment


def stored_states(length: int, max_states: int | None) -> int:
    """The states of a window that are stored at a time."""
    segment = segment_length(length, max_states)
    return length if segment == length else -(-length // segment) + segment


def mean_steps(rule: Truncation, outer_steps: int, max_states: int | None) -> MeanInnerSteps:
    """The truncation rule's inner steps, averaged over the run and its draws.

    A forward curriculum's moves are not known in advance: its window counts as half-way.
    """
    schedules = [rule.unroll_length, *([rule.window_length] if hasattr(rule, "window_length") else [])]
    fixed = all(isinstance(schedule, Constant) for schedule in schedules)
    steps = 1 if fixed else outer_steps
    lengths = Counter(tuple(integer_at(s, step) for s in schedules) for step in range(steps))
    sums = [0.0, 0.0, 0.0]
    for (unroll, *windowed), count in lengths.items():
        one = _mean_for_lengths(rule, unroll, windowed[0] if windowed else unroll, max_states)
        sums = [total + count * value for total, value in zip(sums, one, strict=True)]
    return MeanInnerSteps(*(total / steps for total in sums))


def _mean_for_lengths(rule: Truncation, unroll: int, window: int, max_states: int | None) -> MeanInnerSteps:
    """The means for one pair of lengths."""
    if isinstance(rule, RBPTT):
        replayed = sum(replayed_steps(length, max_states) for length in range(1, unroll + 1)) / unroll
        return MeanInnerSteps(0.0, (1 + unroll) / 2, replayed)
    replayed = float(replayed_steps(window, max_states))
    if isinstance(rule, BPTT):
        return MeanInnerSteps(0.0, float(unroll), replayed)
    last = unroll - window
    first = last if isinstance(rule, TBPTT) else rule.min_window_start
    return MeanInnerSteps((first + last) / 2, float(window), replayed)


WORKERS = (1, 2, 4, 8)
GIB = 2**30
CUDA_CONTEXT_BYTES = GIB // 2
"""Of a GPU's memory, beside what torch allocates: about that, not measured."""


@dataclass(frozen=True, kw_only=True)
class GroupCost:
    """The cost of replicas that are computed together."""

    steps: StepProbe
    batch: BatchProbe
    mean: MeanInnerSteps
    states: int
    """Stored for the longest window."""

    def seconds_of_loss(self, outer_batch: int) -> float:
        """Seconds of the outer loss of a real batch, proportional to its number of microbatches."""
        b, size = self.batch, self.steps.images_per_pass or outer_batch
        microbatches, measured = (-(-count // size) for count in (outer_batch, b.images))
        return b.loss_s * microbatches / measured

    def seconds(self, outer_batch: int) -> float:
        """Seconds of an outer step."""
        s, mean = self.steps, self.mean
        inner = (mean.burn_in + mean.replayed) * s.burn_in_step_s + mean.window * s.window_step_s
        return inner + self.batch.draws_s + self.seconds_of_loss(outer_batch)


@dataclass(frozen=True, kw_only=True)
class WorkerMemory:
    """Bytes of one worker."""

    libraries: int
    data: int
    """Real images on its GPU, if they fit. On a CPU they are memory-mapped from a file, and do not count."""
    states: int
    passes: int
    batch_held: int
    batch_drawn: int
    scoring: int

    @property
    def unrolled(self) -> int:
        """During the unroll, with the window's states."""
        return self.states + self.passes + self.batch_held

    @property
    def work(self) -> int:
        """The peak of an outer step or a validation."""
        return max(self.unrolled, self.batch_drawn, self.scoring)

    @property
    def total(self) -> int:
        """The peak."""
        return self.libraries + self.data + self.work


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """The run with a number of workers."""

    workers: int
    replicas_each: int
    """Of the worker with the most."""
    idle: int
    """Workers without a group of replicas; a run with any is refused."""
    outer_step_s: float
    validation_s: float
    run_s: float
    """From the first outer step to the last, with validations and with compiling."""
    device_s: float
    """`run_s` of all workers together."""
    worker_bytes: int
    needed_bytes: int
    """Memory required: on each GPU, or on a machine that runs all workers."""
    fits: bool


@dataclass(frozen=True, kw_only=True)
class ProbeResults:
    """Everything that a plan is computed from."""

    config: Config
    images: ImageInfo
    sizes: list[int]
    """Replicas of each group, in the order in which workers share them."""
    groups: dict[int, GroupCost]
    """By the number of replicas; always has 1, for validation networks."""
    validation: ValidationProbe
    memory_bytes: int
    """Of this machine, or of each GPU."""

    @property
    def on_gpu(self) -> bool:
        """Whether each worker has a GPU; then its memory is the limit."""
        return self.config.cluster.use_gpu

    def shares(self, workers: int) -> list[list[int]]:
        """The group sizes of each worker."""
        return [self.sizes[rank::workers] for rank in range(workers)]

    @property
    def memory(self) -> WorkerMemory:
        """Of a worker, whatever their number."""
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
        """Of the memory-mapped file of real images: whitened floats, or pixels."""
        size = 4 if self.config.data.preprocessing == "zca" else 1
        return size * math.prod(self.images.shape) * self.num_images

    def shared_bytes(self) -> int:
        """Of a machine, whatever its number of workers: the driver."""
        return 0 if self.on_gpu else self.validation.library_bytes

    def needed_bytes(self, workers: int) -> int:
        """Of each GPU; or of a machine that runs all workers."""
        return self.shared_bytes() + (1 if self.on_gpu else workers) * self.memory.total

    def free_bytes(self, workers: int) -> int:
        """The bytes available to each worker for its work."""
        each = (self.memory_bytes - self.shared_bytes()) // (1 if self.on_gpu else workers)
        return each - self.memory.libraries - self.memory.data


def num_validations(config: Config) -> int:
    """Validations on the cadence and after the last outer step."""
    return -(-config.outer.steps // config.validation.every)


def plan_row(probed: ProbeResults, workers: int) -> PlanRow:
    """The run with a number of workers, each on a device like the probed one."""
    config = probed.config
    used = min(workers, len(probed.sizes))
    shares = probed.shares(used)
    step_s = max(
        sum(probed.groups[size].seconds(config.outer.batch_size) for size in share) for share in shares
    )
    validation_network_s = (
        probed.images.num_validation / probed.validation.images * probed.validation.score_s
        + config.validation.horizon * probed.groups[1].steps.burn_in_step_s
    )
    validation_s = -(-config.validation.num_networks // used) * validation_network_s
    compile_s = sum(probed.groups[size].steps.compile_s for size in {1, *shares[0]})
    run_s = compile_s + config.outer.steps * step_s + num_validations(config) * validation_s
    return PlanRow(
        workers=workers,
        replicas_each=max(sum(share) for share in shares),
        idle=workers - used,
        outer_step_s=step_s,
        validation_s=validation_s,
        run_s=run_s,
        device_s=workers * run_s,
        worker_bytes=probed.memory.total,
        needed_bytes=probed.needed_bytes(used),
        fits=probed.needed_bytes(used) <= probed.memory_bytes,
    )


def table_rows(probed: ProbeResults) -> list[PlanRow]:
    """For 1, 2, 4 and 8 workers, and for the configured maximum and minimum."""
    cluster = probed.config.cluster
    own = {cluster.num_workers, cluster.min_workers or cluster.num_workers}
    return [plan_row(probed, workers) for workers in sorted({*WORKERS, *own})]


Bar = Callable[[str, int], AbstractContextManager[Update]]
"""(what, total units) -> a progress bar."""


def probe(config: Config, *, memory_bytes: int, compiled: bool, bar: Bar) -> ProbeResults:
    """Run the probes for a plan on this machine.

    Args:
        memory_bytes: of the machine, or of each GPU.
        compiled: the step functions go through torch.compile first.

    Raises: ConfigError for a configuration that does not fit its images or this machine; DataError for a source
        that is neither a known dataset nor readable; RunError if a probe was killed.
    """
    images = image_info(config)
    _check(config, images)
    sizes = _sizes(config, images)
    groups: dict[int, GroupCost] = {}
    with bar("probing", 1 + 2 * len({1, *sizes})) as update:
        for size in sorted({1, *sizes}):
            setting = ProbeSettings(
                config=config.to_dict(), images=images, group_size=size, compiled=compiled
            )
            update(2 * len(groups), "inner steps")
            steps = run_probe(probe_steps, setting)
            update(2 * len(groups) + 1, "a real batch")
            batch = run_probe(probe_batch, setting)
            groups[size] = _group(setting, steps, batch)
        update(2 * len(groups), "validation")
        validation = run_probe(probe_validation, setting)
        update(2 * len(groups) + 1, "")
    return ProbeResults(
        config=config,
        images=images,
        sizes=sizes,
        groups=groups,
        validation=validation,
        memory_bytes=memory_bytes,
    )


def _check(config: Config, images: ImageInfo) -> None:
    """Raises: ConfigError for what cannot be planned."""
    probe_device(config)
    check_image_options(config, images.shape, images.num_classes)
    check_worker_count(config, images.shape, images.num_classes)
    if config.engine == "higher":
        raise ConfigError(
            "engine: only `adjoint` can be planned; for `higher`, use `ray-distill bench metagradient`"
        )
    if config.outer.batch_size > images.num_train:
        raise ConfigError(
            f"outer.batch_size: must be at most the {images.num_train} training images (got {config.outer.batch_size})"
        )


def _sizes(config: Config, images: ImageInfo) -> list[int]:
    """The sizes of the groups of replicas."""
    experiment = build_experiment(config, images.shape, images.num_classes, probe_device(config))
    return [len(group) for group in experiment.groups]


def _group(setting: ProbeSettings, steps: StepProbe, batch: BatchProbe) -> GroupCost:
    config = setting.fixed_config()
    rule, _ = settings.truncation_rule(config)
    most = max(1, int(config.compute.state_memory_gib * GIB / steps.bytes_per_state))
    return GroupCost(
        steps=steps,
        batch=batch,
        mean=mean_steps(rule, config.outer.steps, most),
        states=stored_states(settings.longest_window(config), most),
    )
