"""Builds the objects of `core` from a configuration and its data.

`settings` has the values that need neither data nor network, `batching` decides on compiling and grouping. Schedules
are built in `config.schedules`, since the configuration is checked at every outer step.
"""

import torch

from ray_distill.builders.batching import replica_group_size, should_compile
from ray_distill.builders.checks import (
    check_evaluation_networks,
    check_image_options,
    check_real_images,
    check_window_memory,
    check_worker_count,
)
from ray_distill.builders.data import data_spec
from ray_distill.builders.networks import network_for
from ray_distill.builders.settings import (
    CPU,
    dtype,
    inner_batch_size,
    inner_optimizer,
    run_schedule,
    truncation_rule,
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
from ray_distill.core.metagradient import GroupEngine, adjoint_metagradients, per_replica
from ray_distill.core.microbatches import microbatch_size
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


def build_engine(config: Config) -> GroupEngine:
    """The function that computes the metagradients of a group of replicas."""
    if config.engine == "adjoint":
        return adjoint_metagradients
    # Imported here: only the reference engine needs `higher`.
    from ray_distill.core.higher_reference import higher_metagradient

    return per_replica(higher_metagradient)


def build_step_functions(
    config: Config,
    network: Network,
    image_shape: ImageShape,
    num_classes: int,
    device: torch.device,
    *,
    compiled: bool = False,
    group_size: int = 1,
) -> StepFunctions:
    """The network's gradients and second-order products on the device, for groups of `group_size` replicas."""
    compute, batch = config.compute, inner_batch_size(config, num_classes)
    autocast = torch.bfloat16 if config.precision == "bf16" else None
    # Batch norm needs whole batches, even where other evaluation networks use the configured size.
    chosen = None if network.has_batch_norm else compute.images_per_pass
    return StepFunctions(
        network,
        product_form=compute.product,
        images_per_pass=chosen
        or microbatch_size(network, image_shape, batch, dtype(config), device, group_size),
        compiled=compiled,
        cuda_graphs=compiled and device.type == "cuda",
        autocast=autocast,
    )


def bytes_per_state(config: Config, network: Network, num_moments: int, group_size: int) -> int:
    """Memory of one inner state of `group_size` replicas, its gradient included."""
    return group_size * (2 + num_moments) * network.num_parameters * dtype(config).itemsize


def max_states(config: Config, network: Network, num_moments: int, group_size: int) -> int:
    """How many inner states of `group_size` replicas fit into `compute.state_memory_gib`; at least 1."""
    state_bytes = bytes_per_state(config, network, num_moments, group_size)
    return max(1, int(config.compute.state_memory_gib * 2**30 / state_bytes))


def build_inner_problem(
    config: Config,
    network: Network,
    image_shape: ImageShape,
    num_classes: int,
    device: torch.device = CPU,
    *,
    compiled: bool = False,
    group_size: int = 1,
) -> InnerProblem:
    """The inner training of a network with the inner lr of the last outer step, as evaluation uses it."""
    optimizer = inner_optimizer(config)
    return InnerProblem(
        functions=build_step_functions(
            config, network, image_shape, num_classes, device, compiled=compiled, group_size=group_size
        ),
        optimizer=optimizer,
        augmentation=Augmentation(config.inner.augmentation, config.inner.augmentation_mode),
        inner_batch_per_class=config.inner.batch_per_class or config.distilled.ipc,
        classes_per_inner_batch=config.inner.classes_per_batch,
        max_states=max_states(config, network, optimizer.num_moments, group_size),
    )


def build_experiment(
    config: Config, image_shape: ImageShape, num_classes: int, device: torch.device = CPU
) -> Experiment:
    """Everything that determines the numbers of the run. Raises: ConfigError if something does not fit the data."""
    check_image_options(config, image_shape, num_classes)
    network = network_for(config, config.network.name, image_shape, num_classes)
    if network.has_batch_norm and config.compute.images_per_pass is not None:
        raise ConfigError(
            f"compute.images_per_pass: has no effect with network.name {config.network.name}, whose batch norm "
            f"needs whole batches (got {config.compute.images_per_pass}); remove it"
        )
    compiled = config.compute.compile == "always" or (
        config.compute.compile == "auto"
        and config.engine == "adjoint"
        and should_compile(config, network, image_shape, num_classes, device)
    )
    group_size = replica_group_size(config, network, image_shape, num_classes, device)
    inner = build_inner_problem(
        config, network, image_shape, num_classes, device, compiled=compiled, group_size=group_size
    )
    check_window_memory(config, inner.max_states)
    rule, redraw_every = truncation_rule(config)
    outer = config.outer
    return Experiment(
        seed=config.seed,
        outer_steps=outer.steps,
        replicas=config.replicas,
        inner=inner,
        inner_lr=run_schedule(config, config.inner.lr),
        truncation=rule,
        redraw_every=redraw_every,
        engine=build_engine(config),
        group_size=group_size,
        outer=OuterOptimizer(
            lr=run_schedule(config, outer.lr),
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


def check_fits_data(config: Config, data: DevelopmentData) -> None:
    """Raises: ConfigError for anything in the configuration that does not fit the data."""
    build_experiment(config, data.image_shape, data.num_classes)
    check_worker_count(config, data.image_shape, data.num_classes)
    check_evaluation_networks(config, data)
    check_real_images(config, data)


def load_development_data(
    config: Config, fitted: Preprocessing | None = None, progress: Progress | None = None
) -> DevelopmentData:
    """The run's real data, without the test split. Raises: DataError.

    Args:
        fitted: a preprocessing to apply, instead of fitting one.
        progress: called with the current stage and how much of it is done.
    """
    return prepare_development(data_spec(config), fitted, progress)


def to_run_device(config: Config, data: RealData, device: torch.device) -> RealData:
    """Real images on the device, in the run's dtype."""
    return data.to(device, dtype(config))


def initial_distilled_data(config: Config, train: RealData, device: torch.device) -> DistilledData:
    """D before the first outer step, with hard labels. Raises: ConfigError if there are too few real images."""
    image_dtype, ipc, num_classes = dtype(config), config.distilled.ipc, train.num_classes
    stream = Stream(seed=config.seed, name="distilled")
    if config.distilled.init == "real":
        try:
            rows = class_balanced_rows(stream, train.labels_N.cpu(), num_classes, ipc)
        except ValueError as e:
            raise ConfigError(f"distilled.ipc: {e}") from None
        images_NCHW = train.images(rows).to(image_dtype)
    else:
        images_NCHW = NOISE[config.distilled.init](stream, num_classes * ipc, train.image_shape, image_dtype)
    labels_NK = one_hot(class_labels(num_classes, ipc, torch.device("cpu")), num_classes, image_dtype)
    return DistilledData(images_NCHW.to(device), labels_NK.to(device))
