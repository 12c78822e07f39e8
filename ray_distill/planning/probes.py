"""Probes: measure time and memory of the parts of a run on this machine, each in its own process.

A probe calls the same functions as a worker, with the run's shapes, on noise. It measures few inner steps and few
microbatches, from which `estimate` extrapolates to a whole window, real batch or validation. Memory is measured at the
run's sizes, except for a window's states, whose bytes are known.
"""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, NamedTuple, TypeVar

import torch

from ray_distill.builders import settings
from ray_distill.builders.experiment import build_experiment, bytes_per_state
from ray_distill.config.config import Config, ConfigError
from ray_distill.config.load import parse_config
from ray_distill.core.distilled import NOISE, DistilledData, class_labels, one_hot
from ray_distill.core.microbatches import Batches
from ray_distill.core.networks.group import NetworkGroup
from ray_distill.core.outer_loop import Experiment, draw_real_batch, inner_at
from ray_distill.core.retrain import scores
from ray_distill.core.rng import Stream
from ray_distill.core.schedules import integer_at
from ray_distill.core.truncation import Window
from ray_distill.core.unroll import InnerDraws, draw_inner, initial_state, run_steps
from ray_distill.data.labelled_images import CHUNK_IMAGES
from ray_distill.data.preprocessing import Normalisation
from ray_distill.data.real_data import RealData
from ray_distill.errors import RunError
from ray_distill.planning.images import ImageInfo
from ray_distill.utils.memory import MemoryGrowth
from ray_distill.utils.timing import median_seconds

MIN_MEASURED_S = 2.0
"""Target duration of a measurement; a longer call is measured once."""
MAX_CALLS = 20

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """The settings of a probe, as picklable values."""

    config: dict[str, Any]
    images: ImageInfo
    group_size: int
    """Replicas that are computed together."""
    compiled: bool

    def fixed_config(self) -> Config:
        """The configuration with compiling, group size and workers fixed instead of automatic."""
        config = parse_config(self.config)
        compute = config.compute.model_copy(
            update={"compile": "always" if self.compiled else "never", "replicas_at_once": self.group_size}
        )
        cluster = config.cluster.model_copy(update={"num_workers": 1})
        return config.model_copy(update={"compute": compute, "cluster": cluster})


class StepProbe(NamedTuple):
    """Steps of the inner training of a group of replicas."""

    burn_in_step_s: float
    window_step_s: float
    """Forward and backward."""
    bytes_per_state: int
    pass_bytes: int
    """Memory of a window besides its states: mainly the activations of a microbatch."""
    images_per_pass: int | None
    """None if batches must stay whole."""
    compile_s: float
    compile_failed: str
    """The reason, or an empty string."""


class BatchProbe(NamedTuple):
    """The outer loss of a group of replicas."""

    draws_s: float
    """All random draws of the longest unroll, and the real batches."""
    loss_s: float
    """Of `images` of the real batch."""
    images: int
    draw_bytes: int
    """While the real batches are drawn and augmented."""
    held_bytes: int
    """Of the real batches, until the metagradients are computed."""


class ValidationProbe(NamedTuple):
    """The score of one network on held-out images, and the memory of an idle worker process."""

    score_s: float
    """Of `images` of the validation split."""
    images: int
    score_bytes: int
    library_bytes: int
    """Of Python, torch, Ray and this package."""


def run_probe(function: Callable[[ProbeSettings], Result], setting: ProbeSettings) -> Result:
    """The function's result from a fresh process. Raises: RunError if that was killed."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, setting).result()
        except BrokenProcessPool:
            raise RunError(
                "a probe's process was killed, probably for lack of memory; lower "
                "compute.images_per_pass, outer.batch_size or network.width, and plan again"
            ) from None


def probe_steps(setting: ProbeSettings) -> StepProbe:
    """Measure inner steps: burn-in steps directly, window steps as the difference between two window lengths."""
    experiment, data = _prepare(setting)
    inner, per_pass = inner_at(experiment, 0), _per_pass(experiment)
    draws = _draws(experiment, data, setting.group_size, 3)
    real = [_noise(setting, data, per_pass) for _ in draws]
    memory = MemoryGrowth(data.images_NCHW.is_cuda)
    compile_s, failed = 0.0, ""
    if setting.compiled:
        began = time.perf_counter()
        failed = inner.functions.try_compile(draws[0].theta_P, real[0], [len(draws)])
        compile_s = time.perf_counter() - began

    def window(length: int) -> Callable[[], object]:
        return lambda: experiment.engine(inner, data, draws, Window(0, length), real)

    start = initial_state(inner, draws)
    one, three, burn_in = median_s(
        data, window(1), window(3), lambda: run_steps(inner, data, draws, start, 2)
    )
    states = bytes_per_state(
        setting.fixed_config(), inner.network, inner.optimizer.num_moments, setting.group_size
    )
    return StepProbe(
        burn_in_step_s=burn_in / 2,
        # At least a burn-in step, which is a part of it, however noisy the timing.
        window_step_s=max((three - one) / 2, burn_in / 2),
        bytes_per_state=states,
        pass_bytes=max(0, memory.peak_growth() - 3 * states),
        images_per_pass=None if inner.network.has_batch_norm else per_pass,
        compile_s=compile_s,
        compile_failed=failed,
    )


def probe_batch(setting: ProbeSettings) -> BatchProbe:
    """Measure drawing the real batches, and the outer loss on a few microbatches of them."""
    experiment, data = _prepare(setting)
    inner, images = inner_at(experiment, 0), setting.images
    train = _real_images(setting, data, images.num_train)
    memory = MemoryGrowth(data.images_NCHW.is_cuda)
    began = time.perf_counter()
    draws = _draws(experiment, data, setting.group_size, _longest_unroll(experiment))
    real = [draw_real_batch(experiment, train, 0, r) for r in range(setting.group_size)]
    batches = Batches.stack(real)
    _wait(data)
    draws_s, draw_bytes = time.perf_counter() - began, memory.peak_growth()
    theta_RP, per_pass = torch.stack([one.theta_P for one in draws]), _per_pass(experiment)

    def loss(count: int) -> Callable[[], object]:
        few = Batches(*(x[:, :count] for x in batches))
        return lambda: inner.functions.gradients(theta_RP, few)

    # The first call in a process is slower.
    loss(per_pass)()
    (one_pass,) = median_seconds(data.images_NCHW.device.type, loss(per_pass), repeats=1)
    count = min(experiment.outer_batch_size, per_pass * max(1, int(MIN_MEASURED_S / one_pass)))
    (loss_s,) = median_s(data, loss(count))
    held = sum(x.numel() * x.element_size() for x in batches) * (1 if setting.group_size == 1 else 2)
    return BatchProbe(draws_s=draws_s, loss_s=loss_s, images=count, draw_bytes=draw_bytes, held_bytes=held)


def probe_validation(setting: ProbeSettings) -> ValidationProbe:
    """Measure the score of a network on a batch of held-out images; and the libraries of a worker."""
    # A worker's imports, including Ray.
    import ray_distill.distillation.trainer  # noqa: F401

    experiment, data = _prepare(setting)
    network = NetworkGroup(experiment.inner.network, 1)
    libraries = MemoryGrowth(data.images_NCHW.is_cuda).before
    count = min(CHUNK_IMAGES, setting.images.num_validation)
    held_out = _real_images(setting, data, count)
    (draws,) = _draws(experiment, data, 1, 1)
    theta_RP, statistics = draws.theta_P[None], network.initial_statistics(draws.theta_P)
    memory = MemoryGrowth(data.images_NCHW.is_cuda)
    with torch.no_grad():
        (score_s,) = median_s(
            data, lambda: scores(network, theta_RP, statistics, held_out.batches()), warm=False
        )
    return ValidationProbe(
        score_s=score_s, images=count, score_bytes=memory.peak_growth(), library_bytes=libraries
    )


def median_s(data: DistilledData, *calls: Callable[[], object], warm: bool = True) -> list[float]:
    """The median seconds of each call; they alternate, as often as MIN_MEASURED_S allows."""
    device = data.images_NCHW.device.type
    if warm:
        for call in calls:
            call()
    first = median_seconds(device, *calls, repeats=1)
    repeats = min(MAX_CALLS, int(MIN_MEASURED_S / sum(first)))
    return median_seconds(device, *calls, repeats=repeats) if repeats > 1 else first


def probe_device(config: Config) -> torch.device:
    """A worker's device. Raises: ConfigError if there is no such GPU."""
    if not config.cluster.use_gpu:
        return settings.CPU
    if not torch.cuda.is_available():
        raise ConfigError(
            "cluster.use_gpu: a plan is measured on this machine, and torch sees no GPU here; plan where one is, "
            "or with --set cluster.use_gpu=false"
        )
    return torch.device("cuda")


def _prepare(setting: ProbeSettings) -> tuple[Experiment, DistilledData]:
    """The experiment and a D of noise, as in a worker before its first step."""
    config = setting.fixed_config()
    torch.set_num_threads(config.cluster.cpus_per_worker)
    settings.set_tf32(config)
    device, images, dtype = probe_device(config), setting.images, settings.dtype(config)
    experiment = build_experiment(config, images.shape, images.num_classes, device)
    count = images.num_classes * config.distilled.ipc
    pixels = NOISE["unit-noise"](Stream(seed=config.seed, name="distilled"), count, images.shape, dtype)
    labels_N = class_labels(images.num_classes, config.distilled.ipc, device)
    return experiment, DistilledData(pixels.to(device), one_hot(labels_N, images.num_classes, dtype))


def _draws(experiment: Experiment, data: DistilledData, replicas: int, steps: int) -> list[InnerDraws]:
    inner = inner_at(experiment, 0)
    return [draw_inner(inner, experiment.seed, 0, r, steps, data) for r in range(replicas)]


def _longest_unroll(experiment: Experiment) -> int:
    """The larger of the first and the last outer step's, since schedules move between the two."""
    ends = (0, experiment.outer_steps - 1)
    return max(integer_at(experiment.truncation.unroll_length, step) for step in ends)


def _per_pass(experiment: Experiment) -> int:
    """Images in a microbatch of the real batch."""
    whole = experiment.outer_batch_size
    return min(whole, experiment.inner.functions.images_per_pass or whole)


def _real_images(setting: ProbeSettings, data: DistilledData, count: int) -> RealData:
    """Images of noise, stored as in the run: whitened floats, or pixels that are normalised when loaded.

    They take no memory: each overlaps the one before, shifted by one element.
    """
    channels, height, width = setting.images.shape
    numbers = NOISE["noise"](
        Stream(seed=0, name="probe"), 1, (1, 1, count + channels * height * width), torch.float32
    )
    whitened = setting.fixed_config().data.preprocessing == "zca"
    stored = numbers.flatten() if whitened else (40 * numbers + 128).clamp(0, 255).flatten().to(torch.uint8)
    by_channel = Normalisation(mean_C=torch.full((channels,), 0.5), std_C=torch.full((channels,), 0.25))
    return RealData(
        source_NCHW=stored.to(data.images_NCHW.device).as_strided(
            (count, channels, height, width), (1, height * width, width, 1)
        ),
        rows_N=torch.arange(count, device=data.images_NCHW.device),
        labels_N=torch.arange(count, device=data.images_NCHW.device) % setting.images.num_classes,
        num_classes=setting.images.num_classes,
        white=255,
        preprocessing=None if whitened else by_channel,
        mapping=None,
        dtype=data.images_NCHW.dtype,
    )


def _noise(setting: ProbeSettings, data: DistilledData, count: int) -> DistilledData:
    """A real batch of `count` images of noise."""
    return _real_images(setting, data, count).rows(torch.arange(count))


def _wait(data: DistilledData) -> None:
    if data.images_NCHW.is_cuda:
        torch.cuda.synchronize()
