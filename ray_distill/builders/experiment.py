"""From a configuration and its data to the objects of `core`: the place where one becomes the other.

The values that need neither data nor network are in `build_settings`, what pays in `build_pace`, networks in
`build_networks`. (Schedules alone are made in `config_schedules`, since the configuration is checked at every outer step.)
"""

import torch

from ray_distill.builders.batching import replica_batch_size, should_compile
from ray_distill.builders.data import data_spec
from ray_distill.builders.networks import network_for
from ray_distill.builders.settings import (
    CPU,
    dtype,
    inner_batch_size,
    inner_optimizer,
    longest_window,
    over_the_run,
    truncation,
)
from ray_distill.config.config import Config, ConfigError
from ray_distill.core.augment import Augmentation
from ray_distill.core.distilled import (
    NOISE,
    DistilledData,
    class_balanced_rows,
    class_labels,
    one_hot,
)
from ray_distill.core.metagradient import GroupEngine, adjoint_metagradients, one_by_one, segment_length
from ray_distill.core.microbatches import images_per_pass
from ray_distill.core.networks.network import ImageShape, Network
from ray_distill.core.outer_loop import Cadence, Experiment, Validation
from ray_distill.core.outer_optimizer import OuterOptimizer
from ray_distill.core.rng import Stream
from ray_distill.core.step_functions import StepFunctions
from ray_distill.core.unroll import InnerProblem
from ray_distill.data.decoding import Progress
from ray_distill.data.preprocessing import Preprocessing
from ray_distill.data.real_data import RealData
from ray_distill.data.splits import DevelopmentData, prepare_development


def engine(config: Config) -> GroupEngine:
    """The function that computes the replicas' metagradients."""
    if config.engine == "adjoint":
        return adjoint_metagradients
    # Imported here: `higher` is needed for the reference alone.
    from ray_distill.core.higher_reference import higher_metagradient

    return one_by_one(higher_metagradient)


def check_fits(config: Config, image_shape: ImageShape, num_classes: int) -> None:
    """Raises: ConfigError for options that do not fit the images or their classes, whatever the network."""
    classes = config.inner.classes_per_batch
    if classes is not None and classes > num_classes:
        raise ConfigError(
            f"inner.classes_per_batch: must be at most the {num_classes} classes of the data (found {classes}); "
            "lower it, or remove it to take all"
        )
    if image_shape[0] == 1:
        for key, operations in (("inner", config.inner.augmentation), ("outer", config.outer.augmentation)):
            if "saturation" in operations:
                raise ConfigError(
                    f"{key}.augmentation: saturation has no effect on images of one channel "
                    f"(found {list(operations)}); remove it"
                )


def step_functions(
    config: Config,
    network: Network,
    image_shape: ImageShape,
    num_classes: int,
    device: torch.device,
    *,
    compiled: bool = False,
    at_once: int = 1,
) -> StepFunctions:
    """How the network's gradients and products are computed on the device, for `at_once` replicas."""
    compute, batch = config.compute, inner_batch_size(config, num_classes)
    autocast = torch.bfloat16 if config.precision == "bf16" else None
    # A network that joins images takes whole batches, whatever is chosen for the others that judge D.
    chosen = None if network.joins_images else compute.images_per_pass
    return StepFunctions(
        network,
        product_form=compute.product,
        images_per_pass=chosen
        or images_per_pass(network, image_shape, batch, dtype(config), device, at_once),
        compiled=compiled,
        cuda_graphs=compiled and device.type == "cuda",
        autocast=autocast,
    )


def bytes_per_state(config: Config, network: Network, num_moments: int, at_once: int) -> int:
    """What one state of `at_once` replicas takes, with its gradients."""
    return at_once * (2 + num_moments) * network.num_parameters * dtype(config).itemsize


def most_states(config: Config, network: Network, num_moments: int, at_once: int) -> int:
    """States of `at_once` replicas, with their gradients, that the memory for a window's states has room for."""
    each = bytes_per_state(config, network, num_moments, at_once)
    return max(1, int(config.compute.state_memory_gib * 2**30 / each))


def inner_problem(
    config: Config,
    network: Network,
    image_shape: ImageShape,
    num_classes: int,
    device: torch.device = CPU,
    *,
    compiled: bool = False,
    at_once: int = 1,
) -> InnerProblem:
    """The inner training of a network at the end of the run: the protocol by which sets are judged."""
    optimizer = inner_optimizer(config)
    return InnerProblem(
        functions=step_functions(
            config, network, image_shape, num_classes, device, compiled=compiled, at_once=at_once
        ),
        optimizer=optimizer,
        augmentation=Augmentation(config.inner.augmentation, config.inner.augmentation_mode),
        inner_batch_per_class=config.inner.batch_per_class or config.distilled.ipc,
        classes_per_inner_batch=config.inner.classes_per_batch,
        most_states=most_states(config, network, optimizer.num_moments, at_once),
    )


def _check_window_memory(config: Config, problem: InnerProblem) -> None:
    """Raises: ConfigError if the longest window does not fit into the memory for states even when replayed."""
    try:
        segment_length(longest_window(config), problem.most_states)
    except ValueError as e:
        raise ConfigError(
            f"compute.state_memory_gib: {e} (found {config.compute.state_memory_gib}); raise it, or shorten "
            "the window"
        ) from None


def experiment(
    config: Config, image_shape: ImageShape, num_classes: int, device: torch.device = CPU
) -> Experiment:
    """All that determines the numbers of the run. Raises: ConfigError if something does not fit the data."""
    check_fits(config, image_shape, num_classes)
    network = network_for(config, config.network.name, image_shape, num_classes)
    if network.joins_images and config.compute.images_per_pass is not None:
        raise ConfigError(
            f"compute.images_per_pass: has no effect with network.name {config.network.name}, whose batch norm "
            f"joins the images of a batch (found {config.compute.images_per_pass}); remove it"
        )
    compiled = config.compute.compile == "always" or (
        config.compute.compile == "auto"
        and config.engine == "adjoint"
        and should_compile(config, network, image_shape, num_classes, device)
    )
    at_once = replica_batch_size(config, network, image_shape, num_classes, device)
    inner = inner_problem(
        config, network, image_shape, num_classes, device, compiled=compiled, at_once=at_once
    )
    _check_window_memory(config, inner)
    rule, redraw_every = truncation(config)
    outer = config.outer
    return Experiment(
        seed=config.seed,
        outer_steps=outer.steps,
        replicas=config.replicas,
        inner=inner,
        inner_lr=over_the_run(config, config.inner.lr),
        truncation=rule,
        redraw_every=redraw_every,
        engine=engine(config),
        replicas_at_once=at_once,
        outer=OuterOptimizer(
            lr=over_the_run(config, outer.lr),
            clip_ema_decay=outer.clip_ema_decay,
            clip_multiple=outer.clip_multiple,
            label_lr_scale=config.distilled.label_lr_scale,
        ),
        outer_batch_size=outer.batch_size,
        real_augmentation=Augmentation(outer.augmentation, outer.augmentation_mode),
        max_nonfinite_steps=outer.max_nonfinite_steps,
        validation=Validation(num_networks=config.validation.num_networks, horizon=config.validation.horizon),
        cadence=Cadence(
            report_every=config.tracking.report_every,
            validate_every=config.validation.every,
            checkpoint_every=config.checkpoint.every,
        ),
    )


def development_data(
    config: Config, fitted: Preprocessing | None = None, progress: Progress | None = None
) -> DevelopmentData:
    """The run's real data, without the test split. Raises: DataError.

    Args:
        fitted: a preprocessing to use in place of one that is fitted here.
        progress: told what is being prepared, and how much of it is done.
    """
    return prepare_development(data_spec(config), fitted, progress)


def real_data(config: Config, data: RealData, device: torch.device) -> RealData:
    """Real images as the run takes them: in its dtype, on its device."""
    return data.to(device, dtype(config))


def initial_data(config: Config, train: RealData, device: torch.device) -> DistilledData:
    """D before the first outer step, with hard labels. Raises: ConfigError if real images are too few."""
    kind, ipc, num_classes = dtype(config), config.distilled.ipc, train.num_classes
    stream = Stream(seed=config.seed, name="distilled")
    if config.distilled.init == "real":
        try:
            rows = class_balanced_rows(stream, train.labels_N.cpu(), num_classes, ipc)
        except ValueError as e:
            raise ConfigError(f"distilled.ipc: {e}") from None
        images_NCHW = train.images(rows).to(kind)
    else:
        images_NCHW = NOISE[config.distilled.init](stream, num_classes * ipc, train.image_shape, kind)
    labels_NK = one_hot(class_labels(num_classes, ipc, torch.device("cpu")), num_classes, kind)
    return DistilledData(images_NCHW.to(device), labels_NK.to(device))
