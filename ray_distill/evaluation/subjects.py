"""Distilled sets to evaluate, each with its protocol and handles of the real images that it is compared with."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ray_distill.artifacts.dataset import DistilledDataset
from ray_distill.builders.networks import network_for
from ray_distill.config.config import Config
from ray_distill.core.distilled import one_hot
from ray_distill.core.networks.network import ImageShape, Network
from ray_distill.data.splits import DataHandle


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationSet:
    """A distilled set to evaluate, and the real images that networks are trained and tested on beside it."""

    name: str
    dataset: DistilledDataset
    config: Config
    """Its protocol, and how it is evaluated."""
    train: DataHandle
    """Of the training and validation images."""
    test: DataHandle
    num_train: int
    num_validation: int
    num_test: int

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.dataset.class_names)

    @property
    def image_shape(self) -> ImageShape:
        """(C, H, W)."""
        channels, height, width = self.dataset.images_NCHW.shape[1:]
        return channels, height, width

    @cached_property
    def digest(self) -> str:
        """Of the distilled images and labels."""
        return _digest([self.dataset.images_NCHW, self.dataset.labels_NK])

    @cached_property
    def preprocessing_digest(self) -> str:
        """Of the preprocessing of real images."""
        description, tensors = self.dataset.preprocessing.to_record()
        return _digest(tensors.values(), json.dumps(description, sort_keys=True))

    @cached_property
    def has_hard_labels(self) -> bool:
        """Whether all labels are one-hot."""
        labels_NK = self.dataset.labels_NK
        return torch.equal(labels_NK, one_hot(labels_NK.argmax(dim=1), self.num_classes, labels_NK.dtype))

    def network(self, name: str) -> tuple[Network, int]:
        """A network, and the floating-point operations of one image's forward pass.

        Raises: ConfigError if it does not fit the images.
        """
        if name not in self._networks:
            network = network_for(
                self.config, name, self.image_shape, self.num_classes, "evaluation.networks"
            )
            self._networks[name] = network, network.forward_flops(self.image_shape)
        return self._networks[name]

    @cached_property
    def _networks(self) -> dict[str, tuple[Network, int]]:
        """Built once for all rows of the table."""
        return {}


def _digest(tensors: Iterable[Tensor], text: str = "") -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
