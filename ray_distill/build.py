"""From a configuration and its data to the objects of `core`: the only place where one becomes the other."""

import torch

from ray_distill.config import Config, ConfigError
from ray_distill.core.distilled import (
    NOISE,
    DistilledData,
    class_balanced_rows,
    class_labels,
    one_hot,
)
from ray_distill.core.inner_optimizer import Adam
from ray_distill.core.metagradient import Engine, adjoint_metagradient
from ray_distill.core.networks import ImageShape, Network, NetworkSpec, build_network
from ray_distill.core.outer_optimizer import OuterOptimizer
from ray_distill.core.rng import Stream
from ray_distill.core.truncation import BPTT, RBPTT, TBPTT, RaTBPTT, Truncation
from ray_distill.core.unroll import InnerProblem
from ray_distill.data.splits import DevelopmentData
from ray_distill.outer_loop import Cadence, Experiment, RealData, Validation

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def engine(config: Config) -> Engine:
    """The function that computes a replica's metagradient."""
    if config.engine == "adjoint":
        return adjoint_metagradient
    # Imported here: `higher` is needed for the reference alone.
    from ray_distill.core.higher_reference import higher_metagradient

    return higher_metagradient


def network_for(
    config: Config, name: str, image_shape: ImageShape, num_classes: int, key: str = "network.name"
) -> Network:
    """The named network at the configuration's width and norm. Raises: ConfigError if it does not fit."""
    norm = (config.network.norm or "instance") if name.startswith("convnet") else "none"
    spec = NetworkSpec(name=name, width=config.network.width, norm=norm)
    try:
        return build_network(spec, image_shape, num_classes)
    except ValueError as e:
        raise ConfigError(f"{key}: {e}") from None


def inner_problem(config: Config, network: Network) -> InnerProblem:
    """The inner training of a network: also the protocol by which the finished set is evaluated."""
    return InnerProblem(
        network=network,
        optimizer=Adam(lr=config.inner.lr, eps_convention=config.inner.eps_convention),
        augmentation=config.inner.augmentation,
        inner_batch_per_class=config.inner.batch_per_class or config.distilled.ipc,
    )


def truncation(config: Config) -> tuple[Truncation, int]:
    """The truncation rule and how many outer steps share a window."""
    match config.truncation.model_dump():
        case {"rule": "bptt", **rest}:
            return BPTT(**rest), 1
        case {"rule": "t-bptt", **rest}:
            return TBPTT(**rest), 1
        case {"rule": "r-bptt", "redraw_every": every, **rest}:
            return RBPTT(**rest), every
        case {"rule": "rat-bptt", "redraw_every": every, **rest}:
            return RaTBPTT(**rest), every
    raise AssertionError(config.truncation)


def experiment(config: Config, image_shape: ImageShape, num_classes: int) -> Experiment:
    """All that determines the numbers of the run. Raises: ConfigError if the network does not fit."""
    network = network_for(config, config.network.name, image_shape, num_classes)
    rule, redraw_every = truncation(config)
    outer = config.outer
    return Experiment(
        seed=config.seed,
        outer_steps=outer.steps,
        replicas=config.replicas,
        inner=inner_problem(config, network),
        truncation=rule,
        redraw_every=redraw_every,
        engine=engine(config),
        outer=OuterOptimizer(
            lr=outer.lr, clip_ema_decay=outer.clip_ema_decay, clip_multiple=outer.clip_multiple
        ),
        outer_batch_size=outer.batch_size,
        real_augmentation=outer.augmentation,
        max_nonfinite_steps=outer.max_nonfinite_steps,
        validation=Validation(num_networks=config.validation.num_networks, horizon=config.validation.horizon),
        cadence=Cadence(
            report_every=config.tracking.report_every,
            validate_every=config.validation.every,
            checkpoint_every=config.checkpoint.every,
        ),
    )


def real_data(
    config: Config, images_NCHW: torch.Tensor, labels_N: torch.Tensor, device: torch.device
) -> RealData:
    """Preprocessed real images in the run's dtype on the run's device."""
    return RealData(images_NCHW.to(device, DTYPES[config.dtype]), labels_N.to(device))


def initial_data(config: Config, data: DevelopmentData, device: torch.device) -> DistilledData:
    """D before the first outer step, with hard labels. Raises: ConfigError if real images are too few."""
    dtype, ipc, num_classes = DTYPES[config.dtype], config.distilled.ipc, data.num_classes
    stream = Stream(seed=config.seed, name="distilled")
    if config.distilled.init == "real":
        try:
            rows = class_balanced_rows(stream, data.train_labels_N, num_classes, ipc)
        except ValueError as e:
            raise ConfigError(f"distilled.ipc: {e}") from None
        images_NCHW = data.train_images_NCHW[rows].to(dtype)
    else:
        images_NCHW = NOISE[config.distilled.init](stream, num_classes * ipc, data.image_shape, dtype)
    labels_NK = one_hot(class_labels(num_classes, ipc, torch.device("cpu")), num_classes, dtype)
    return DistilledData(images_NCHW.to(device), labels_NK.to(device))
