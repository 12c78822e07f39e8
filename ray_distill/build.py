"""From a configuration and its data to the objects of `core`: the place where one becomes the other.

(Schedules alone are made in `config_schedules`, since the configuration is checked at every outer step.)
"""

import torch

from ray_distill.build_data import data_spec
from ray_distill.build_networks import network_for
from ray_distill.config import Config, ConfigError
from ray_distill.config_schedules import ScheduledFloat, ScheduledInt, schedule
from ray_distill.config_truncation import BpttConfig, ForwardConfig, RatBpttConfig, RbpttConfig, TbpttConfig
from ray_distill.core.augment import Augmentation
from ray_distill.core.distilled import (
    NOISE,
    DistilledData,
    class_balanced_rows,
    class_labels,
    one_hot,
)
from ray_distill.core.inner_optimizer import SGD, Adam, InnerOptimizer
from ray_distill.core.metagradient import GroupEngine, adjoint_metagradients, one_by_one, segment_length
from ray_distill.core.networks import ImageShape, Network
from ray_distill.core.outer_optimizer import OuterOptimizer
from ray_distill.core.rng import Stream
from ray_distill.core.schedules import Constant, Schedule, integer_at
from ray_distill.core.side_by_side import check_side_by_side
from ray_distill.core.step_functions import StepFunctions, images_per_pass
from ray_distill.core.truncation import BPTT, RBPTT, TBPTT, ForwardCurriculum, RaTBPTT, Truncation
from ray_distill.core.unroll import InnerProblem
from ray_distill.data.decoding import Progress
from ray_distill.data.preprocessing import Preprocessing
from ray_distill.data.real_data import RealData
from ray_distill.data.splits import DevelopmentData, prepare_development
from ray_distill.outer_loop import Cadence, Experiment, Validation

CPU = torch.device("cpu")


def dtype(config: Config) -> torch.dtype:
    """The type of all tensors of the run; TF32 and bfloat16 are ways to multiply float32."""
    return torch.float64 if config.precision == "float64" else torch.float32


def device_of(config: Config) -> torch.device:
    """Of a process by itself; Ray Train tells its workers which of several GPUs is theirs."""
    return torch.device("cuda" if config.cluster.use_gpu else "cpu")


def set_tf32(config: Config) -> None:
    """Have this process multiply float32 in TF32 where the configuration says so, and nowhere else."""
    tf32 = config.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32


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


def over_the_run(config: Config, value: ScheduledFloat | ScheduledInt) -> Schedule:
    """A value of the configuration as a function of the outer step."""
    return schedule(value, config.outer.steps)


def judging_inner_lr(config: Config) -> float:
    """The inner step size at the last outer step, which all networks that judge D are trained with."""
    return over_the_run(config, config.inner.lr).at(config.outer.steps - 1)


def inner_optimizer(config: Config) -> InnerOptimizer:
    """The optimiser of all networks that judge D; those that D is learnt through may have another lr."""
    inner, lr = config.inner, judging_inner_lr(config)
    if inner.optimizer == "sgd":
        assert inner.momentum is not None
        assert inner.weight_decay is not None
        return SGD(lr=lr, momentum=inner.momentum, weight_decay=inner.weight_decay)
    return Adam(lr=lr, eps_convention=inner.eps_convention or "torch")


def inner_batch_size(config: Config, num_classes: int) -> int:
    """Images in an inner batch."""
    return (config.inner.batch_per_class or config.distilled.ipc) * (
        config.inner.classes_per_batch or num_classes
    )


EAGER_FLOPS_PER_SECOND = {"cpu": 5e10, "cuda": 1e13}
"""Rough, for one device: what decides whether a compiler's minute is worth while, from the configuration
alone, so that a run's numbers do not hang on how busy its machine was."""
SECONDS_PER_CALL = 5e-3
"""What a call of an eager step function takes at least."""
WORTH_COMPILING_S = 600.0


def worth_compiling(
    config: Config, network: Network, image_shape: ImageShape, num_classes: int, device: torch.device
) -> bool:
    """Whether the whole run's step functions would take ten minutes or more without torch.compile."""
    rule, _ = truncation(config)
    unroll = rule.unroll_length.at(0)
    window = rule.window_length.at(0) if hasattr(rule, "window_length") else unroll
    batch = inner_batch_size(config, num_classes)
    # A gradient is three forward passes; a window step has another gradient and six more.
    per_inner_step = 3 * batch * network.forward_flops(image_shape)
    rate = EAGER_FLOPS_PER_SECOND.get(device.type, EAGER_FLOPS_PER_SECOND["cpu"])
    seconds = (unroll + 3 * window) * (per_inner_step / rate + SECONDS_PER_CALL)
    return seconds * config.outer.steps * config.replicas >= WORTH_COMPILING_S


SMALL_MAPS = 100_000
"""Numbers that the largest layer puts out for one network's batch."""
SMALL_THETA = 100_000
"""Parameters. Up to both, groups of four were 1.3 to 2.5 times as fast as one by one on a CPU; above either, most
gained little, and some took twice as long (LOG, 2026-11-25)."""
MOST_AT_ONCE = 8
LEAST_AT_ONCE = 3
"""Of networks that are judged: pairs were 1.3 times as fast as one by one, threes 1.4 to 1.75 (LOG, 2026-11-25)."""
AUTO_GROUPS = 2
"""At least so many groups, so that two workers can share them."""


def _pays_at_once(network: Network, image_shape: ImageShape, batch: int, device: torch.device) -> bool:
    """Whether several networks, each with a batch of so many images, are quicker as one computation."""
    maps = batch * network.largest_map(image_shape)
    return device.type == "cpu" and maps <= SMALL_MAPS and network.num_parameters <= SMALL_THETA


def _of_even_groups(count: int, least_groups: int) -> int:
    """The size of so many groups, or more, none larger than the most."""
    return -(-count // max(least_groups, -(-count // MOST_AT_ONCE)))


def _of_groups_that_pay(count: int, least_groups: int) -> int:
    """Likewise, but rather fewer groups than small ones; 1 where even one group would be."""
    if count < LEAST_AT_ONCE:
        return 1
    return _of_even_groups(count, min(least_groups, count // LEAST_AT_ONCE))


def networks_at_once(
    config: Config,
    network: Network,
    image_shape: ImageShape,
    num_classes: int,
    device: torch.device,
    count: int,
    *,
    batch: int | None = None,
    least_groups: int = AUTO_GROUPS,
) -> int:
    """How many of `count` fresh networks are trained as one computation, on a set that is to be judged.

    Like `replicas_at_once` a function of the experiment and not of how many processes share the work.

    Args:
        batch: images of each network in a step, where it is not the inner training's.
        least_groups: at least so many groups, where there are networks enough, so that processes can share them.
    """
    images = inner_batch_size(config, num_classes) if batch is None else batch
    if not _pays_at_once(network, image_shape, images, device):
        return 1
    try:
        check_side_by_side(network.module)
    except ValueError:
        return 1
    return _of_groups_that_pay(count, least_groups)


def replicas_at_once(
    config: Config, network: Network, image_shape: ImageShape, num_classes: int, device: torch.device
) -> int:
    """How many replicas are computed as one: the size of the groups that workers share out.

    A function of the experiment and not of the number of workers. In float32 a group rounds otherwise than its
    replicas alone, and an unroll makes much of that (LOG, 2026-11-25): groups that followed the workers would
    give another D on another cluster.

    Raises: ConfigError if more than one are asked for, of a network that cannot be set side by side.
    """
    chosen, replicas = config.compute.replicas_at_once, config.replicas
    try:
        check_side_by_side(network.module)
    except ValueError as e:
        if chosen != "auto" and chosen > 1:
            raise ConfigError(f"compute.replicas_at_once: {e} (found {chosen}); set it to 1") from None
        return 1
    if chosen != "auto":
        return chosen
    pays = _pays_at_once(network, image_shape, inner_batch_size(config, num_classes), device)
    return _of_even_groups(replicas, AUTO_GROUPS) if pays and config.engine == "adjoint" else 1


def check_groups(config: Config, image_shape: ImageShape, num_classes: int) -> None:
    """Raises: ConfigError if there are more workers than groups of replicas to share out."""
    network = network_for(config, config.network.name, image_shape, num_classes)
    device = device_of(config)
    at_once = replicas_at_once(config, network, image_shape, num_classes, device)
    groups, workers = -(-config.replicas // at_once), config.cluster.num_workers
    if workers > groups:
        raise ConfigError(
            f"cluster.num_workers: must be at most {groups}, since the {config.replicas} replicas are computed "
            f"in groups of {at_once} (found {workers}); lower it, or set compute.replicas_at_once to 1"
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


def truncation(config: Config) -> tuple[Truncation, int]:
    """The truncation rule and how many outer steps share a window."""
    section = config.truncation
    unroll = over_the_run(config, section.unroll_length)
    match section:
        case BpttConfig():
            return BPTT(unroll_length=unroll), 1
        case RbpttConfig():
            return RBPTT(unroll_length=unroll), section.redraw_every
    window = over_the_run(config, section.window_length)
    match section:
        case TbpttConfig():
            return TBPTT(unroll_length=unroll, window_length=window), 1
        case RatBpttConfig(min_window_start=earliest):
            rule = RaTBPTT(unroll_length=unroll, window_length=window, min_window_start=earliest)
            return rule, section.redraw_every
        case ForwardConfig(min_window_start=earliest, patience=patience):
            forward = ForwardCurriculum(
                unroll_length=unroll, window_length=window, min_window_start=earliest, patience=patience
            )
            return forward, 1


def longest_window(config: Config) -> int:
    """The most inner steps that any outer step may differentiate."""
    rule, _ = truncation(config)
    lengths = rule.window_length if hasattr(rule, "window_length") else rule.unroll_length
    # A constant is not looked up tens of millions of times.
    steps = 1 if isinstance(lengths, Constant) else config.outer.steps
    return max(integer_at(lengths, step) for step in range(steps))


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
        and worth_compiling(config, network, image_shape, num_classes, device)
    )
    at_once = replicas_at_once(config, network, image_shape, num_classes, device)
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
