"""Sets to judge, made of the tiny experiment, that tests share."""

from functools import partial

import torch
from tiny import Bench

from ray_distill import build
from ray_distill.artifact import DistilledDataset, provenance
from ray_distill.config import Config
from ray_distill.core.distilled import DistilledData
from ray_distill.data.preprocessing import NoPreprocessing
from ray_distill.evaluate import SetAtHand, Shipped, judged_set
from ray_distill.judged_sets import JudgedSet


def dataset_of(config: Config, *, scale: float = 1.0) -> DistilledDataset:
    """The set that a run of this configuration begins with, its images multiplied."""
    b = Bench(config)
    return DistilledDataset(
        images_NCHW=b.initial.images_NCHW.float() * scale,
        labels_NK=b.initial.labels_NK.float(),
        class_names=b.data.class_names,
        preprocessing=b.data.preprocessing,
        protocol={},
        config=config.experiment(),
        config_hash=config.hash,
        provenance=provenance(),
    )


def grey_set(config: Config) -> DistilledDataset:
    """Ten random grey images of 8x8, which nothing is done to, as of a run of this configuration."""
    return DistilledDataset(
        images_NCHW=torch.rand(10, 1, 8, 8),
        labels_NK=torch.eye(10),
        class_names=tuple("0123456789"),
        preprocessing=NoPreprocessing(),
        protocol={},
        config=config.experiment(),
        config_hash=config.hash,
        provenance=provenance(),
    )


def judged_of(config: Config, name: str = "mine", *, scale: float = 1.0) -> JudgedSet:
    """That set, ready to be judged."""
    dataset = dataset_of(config, scale=scale)
    return judged_set(name, dataset, config, build.development_data(config, dataset.preprocessing))


def at_hand(judged: JudgedSet) -> SetAtHand:
    """What an actor makes of it, here."""
    arrays = [x.numpy() for x in DistilledData(judged.dataset.images_NCHW, judged.dataset.labels_NK)]
    fetch = (partial(list, arrays), lambda: judged.dataset.preprocessing)
    return SetAtHand(Shipped(judged.config.to_dict(), judged.tickets, *fetch))
