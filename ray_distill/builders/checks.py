"""What a configuration and its data must have in common, checked before anything is distilled."""

import torch

from ray_distill.builders import batching, experiment
from ray_distill.builders.networks import network_for
from ray_distill.config.config import Config, ConfigError
from ray_distill.data.splits import DevelopmentData


def check_fits_data(config: Config, data: DevelopmentData) -> None:
    """Raises: ConfigError for what does not fit the data, and would only be noticed later."""
    experiment.experiment(config, data.image_shape, data.num_classes)
    batching.check_groups(config, data.image_shape, data.num_classes)
    check_networks(config, data)
    count, size = data.train.num_images, config.outer.batch_size
    if size > count:
        raise ConfigError(f"outer.batch_size: must be at most the {count} training images (found {size})")
    fewest = int(torch.bincount(data.train.labels_N, minlength=data.num_classes).min())
    if config.distilled.init == "real" and config.distilled.ipc > fewest:
        raise ConfigError(
            f"distilled.ipc: must be at most {fewest}, the training images of the smallest class, with distilled.init "
            f"real (found {config.distilled.ipc})"
        )


def check_networks(config: Config, data: DevelopmentData) -> None:
    """Raises: ConfigError if a network that is to judge does not fit the images."""
    for name in config.evaluation.networks:
        network_for(config, name, data.image_shape, data.num_classes, "evaluation.networks")
