"""A tiny colour source and a distilled set for it, shared by the tests of import and export."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ray_distill.artifacts.dataset import DistilledDataset, provenance
from ray_distill.builders.experiment import load_development_data
from ray_distill.builders.settings import training_protocol
from ray_distill.config.config import Config
from ray_distill.data.preprocessing import Preprocessing
from tests.helpers.tiny import tiny_config

CLASSES = ("cat", "dog", "owl")
SHAPE = (3, 4, 6)
"""Channels, height and width differ, so that no order of axes looks like another."""


class World(NamedTuple):
    """Images of three classes, the configuration that names them, and six images as a set of two per class."""

    config: Config
    preprocessing: Preprocessing
    pixels_NCHW: Tensor
    """In [0, 1], multiples of 1/255."""
    whitened_NCHW: Tensor
    labels_N: Tensor


def make_world(folder: Path, preprocessing: str = "zca", shape: tuple[int, int, int] = SHAPE) -> World:
    """A source of 60 smooth random images, which whitening changes a lot."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (60, *shape)).cumsum(axis=3) // np.arange(1, shape[2] + 1)
    images = images.astype(np.uint8)
    source = folder / "source.npz"
    labels = np.arange(60) % 3
    names = np.array(CLASSES)
    channels_last = images.transpose(0, 2, 3, 1)
    np.savez(source, images=channels_last, labels=labels, class_names=names)
    config = tiny_config(
        precision="float32",
        data={"source": f"npz:{source}", "limit": None, "preprocessing": preprocessing},
    )
    fitted = load_development_data(config).preprocessing
    pixels_NCHW = torch.from_numpy(images[:6].astype(np.float32)) / 255
    return World(config, fitted, pixels_NCHW, fitted.apply(pixels_NCHW), torch.arange(6) // 2)


def set_of(world: World, **changes: Any) -> DistilledDataset:
    """The world's six images as a distilled dataset, with hard labels by default."""
    return DistilledDataset(
        **{
            "images_NCHW": world.whitened_NCHW,
            "labels_NK": torch.eye(3)[world.labels_N],
            "class_names": CLASSES,
            "preprocessing": world.preprocessing,
            "protocol": training_protocol(world.config, 3),
            "config": world.config.experiment(),
            "config_hash": world.config.hash,
            "provenance": provenance(seed=0),
            **changes,
        }
    )
