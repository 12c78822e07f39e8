"""What a configuration and its data must have in common, checked before anything is distilled."""

import torch

from ray_distill import build
from ray_distill.build_networks import network_for
from ray_distill.config import Config, ConfigError
from ray_distill.data.splits import DevelopmentData


def check_fits_data(config: Config, data: DevelopmentData) -> None:
    """Raises: ConfigError for what does not fit the data, and would only be noticed later."""
    build.experiment(config, data.image_shape, data.num_classes)
    build.check_groups(config, data.image_shape, data.num_classes)
    for name in config.evaluation.networks:
        network_for(config, name, data.image_shape, data.num_classes, "evaluation.networks")
    count, size = data.train.num_images, config.outer.batch_size
    if size > count:
        raise ConfigError(f"outer.batch_size: must be at most the {count} training images (found {size})")
    fewest = int(torch.bincount(data.train.labels_N, minlength=data.num_classes).min())
    if config.distilled.ipc > fewest:
        raise ConfigError(
            f"distilled.ipc: must be at most {fewest}, the training images of the smallest class "
            f"(found {config.distilled.ipc})"
        )
