"""Checks that a configuration fits its data, before anything is distilled."""

import torch

from ray_distill.builders.batching import replica_group_size
from ray_distill.builders.networks import network_for
from ray_distill.builders.settings import device_for, longest_window
from ray_distill.config.config import Config, ConfigError
from ray_distill.core.metagradient import segment_length
from ray_distill.core.networks.network import ImageShape
from ray_distill.data.splits import DevelopmentData


def check_image_options(config: Config, image_shape: ImageShape, num_classes: int) -> None:
    """Raises: ConfigError for options that do not fit the images or their classes, whatever the network."""
    classes = config.inner.classes_per_batch
    if classes is not None and classes > num_classes:
        raise ConfigError(
            f"inner.classes_per_batch: must be at most the {num_classes} classes of the data (got {classes}); "
            "lower it, or remove it to use all classes"
        )
    if image_shape[0] == 1:
        for key, operations in (("inner", config.inner.augmentation), ("outer", config.outer.augmentation)):
            if "saturation" in operations:
                raise ConfigError(
                    f"{key}.augmentation: saturation has no effect on images with one channel "
                    f"(got {list(operations)}); remove it"
                )


def check_window_memory(config: Config, max_states: int | None) -> None:
    """Raises: ConfigError if the longest window does not fit into the memory for states, even when replayed."""
    try:
        segment_length(longest_window(config), max_states)
    except ValueError as e:
        raise ConfigError(
            f"compute.state_memory_gib: {e} (got {config.compute.state_memory_gib}); raise it, or shorten the window"
        ) from None


def check_worker_count(config: Config, image_shape: ImageShape, num_classes: int) -> None:
    """Raises: ConfigError if there are more workers than groups of replicas to distribute."""
    network = network_for(config, config.network.name, image_shape, num_classes)
    group_size = replica_group_size(config, network, image_shape, num_classes, device_for(config))
    groups, workers = -(-config.replicas // group_size), config.cluster.num_workers
    if workers > groups:
        raise ConfigError(
            f"cluster.num_workers: must be at most {groups}, since the {config.replicas} replicas are computed "
            f"in groups of {group_size} (got {workers}); lower it, or set compute.replicas_at_once to 1"
        )


def check_real_images(config: Config, data: DevelopmentData) -> None:
    """Raises: ConfigError if there are fewer training images than the configuration takes at once."""
    count, size = data.train.num_images, config.outer.batch_size
    if size > count:
        raise ConfigError(f"outer.batch_size: must be at most the {count} training images (got {size})")
    fewest = int(torch.bincount(data.train.labels_N, minlength=data.num_classes).min())
    if config.distilled.init == "real" and config.distilled.ipc > fewest:
        raise ConfigError(
            f"distilled.ipc: must be at most {fewest} with distilled.init real, the number of training images "
            f"of the smallest class (got {config.distilled.ipc})"
        )


def check_evaluation_networks(config: Config, data: DevelopmentData) -> None:
    """Raises: ConfigError if an evaluation network does not fit the images."""
    for name in config.evaluation.networks:
        network_for(config, name, data.image_shape, data.num_classes, "evaluation.networks")
