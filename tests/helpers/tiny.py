"""A tiny experiment that tests of the package share."""

import torch

from ray_distill.builders.experiment import (
    build_experiment,
    initial_distilled_data,
    load_development_data,
    to_run_device,
)
from ray_distill.config.config import Config
from ray_distill.config.load import parse_config
from ray_distill.core.outer_loop import Experiment
from ray_distill.data.real_data import RealData
from ray_distill.data.splits import DevelopmentData

TINY = {
    "name": "tiny",
    "precision": "float64",
    "replicas": 2,
    "data": {"source": "digits", "limit": 200, "validation_fraction": 0.2},
    "distilled": {"ipc": 1},
    "network": {"name": "convnet1", "width": 4},
    "inner": {"augmentation": ["rotate"]},
    "truncation": {"rule": "rat-bptt", "unroll_length": 6, "window_length": 3},
    "outer": {"steps": 20, "lr": 0.01, "batch_size": 32, "augmentation": ["rotate"]},
    "validation": {"every": 5, "num_networks": 2, "horizon": 6},
    "evaluation": {
        "networks": ["convnet1", "mlp1"],
        "seeds": 2,
        "horizons": 6,
        "random_real_draws": 2,
        "whole_train_epochs": 1,
    },
    "checkpoint": {"every": 5},
    "tracking": {"report_every": 5},
}


def tiny_config(**sections: object) -> Config:
    """The tiny experiment in float64, with values laid over its sections."""
    merged: dict[str, object] = {}
    for key in TINY | sections:
        base, over = TINY.get(key), sections.get(key)
        merged[key] = (
            base | over if isinstance(base, dict) and isinstance(over, dict) else sections.get(key, base)
        )
    return parse_config(merged)


def tiny_data(config: Config) -> DevelopmentData:
    """Its real data."""
    return load_development_data(config)


class Bench:
    """The objects that the outer loop takes, built from a configuration."""

    def __init__(self, config: Config) -> None:
        cpu = torch.device("cpu")
        self.config, self.data = config, tiny_data(config)
        self.experiment: Experiment = build_experiment(config, self.data.image_shape, self.data.num_classes)
        self.train: RealData = to_run_device(config, self.data.train, cpu)
        self.validation: RealData = to_run_device(config, self.data.validation, cpu)
        self.initial = initial_distilled_data(config, self.data.train, cpu)


def whole(data: RealData) -> tuple[torch.Tensor, torch.Tensor]:
    """All images of some real data, preprocessed, and their classes."""
    return data.images(torch.arange(data.num_images)), data.labels_N
