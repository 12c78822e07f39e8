"""A distilled dataset that describes how to use it: a torch Dataset and its file.

Distilled images are useless without their preprocessing and training protocol: networks trained on them and tested on
images with another preprocessing are at chance. So both are part of the file (`artifacts.parquet`).
"""

import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ray_distill import __version__
from ray_distill.artifacts.parquet import PLAIN_FIELDS, ArtifactContents, ArtifactError, read, to_table
from ray_distill.builders.settings import training_protocol
from ray_distill.config.config import Config
from ray_distill.data.preprocessing import Preprocessing
from ray_distill.data.splits import DevelopmentData
from ray_distill.errors import first_line, is_user_error
from ray_distill.utils.atomic import atomic_write


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DistilledDataset(Dataset[tuple[Tensor, Tensor]]):
    """Distilled images and labels, with all that is needed to train on them and to test the networks.

    Item i is (image float32 [C, H, W], label probabilities float32 [K]).
    Raises: ArtifactError for values with the wrong shape or dtype, or not finite.
    """

    images_NCHW: Tensor
    """float32, already preprocessed."""
    labels_NK: Tensor
    """float32 target probabilities; learnt rows need not sum to 1."""
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    """Fitted on the real training images; test images need it too."""
    protocol: dict[str, Any]
    """How to train on the set: network, optimiser, learning rate, steps, augmentation, batch."""
    config: dict[str, Any]
    """Of the run that made it."""
    config_hash: str
    provenance: dict[str, Any]
    """Versions, time, seed, outer steps; see `provenance`."""

    def __post_init__(self) -> None:
        for name, tensor, ndim in (("images_NCHW", self.images_NCHW, 4), ("labels_NK", self.labels_NK, 2)):
            if tensor.dtype != torch.float32 or tensor.ndim != ndim or tensor.numel() == 0:
                raise ArtifactError(
                    f"{name} must be float32 with {ndim} axes, not empty; got {tensor.dtype} {list(tensor.shape)}"
                )
            if not bool(torch.isfinite(tensor).all()):
                raise ArtifactError(f"{name} has values that are not finite")
        num_images, num_classes = self.labels_NK.shape
        if len(self.images_NCHW) != num_images or len(self.class_names) != num_classes:
            raise ArtifactError(
                f"sizes do not match: {len(self.images_NCHW)} images, {num_images} rows of {num_classes} label "
                f"probabilities, {len(self.class_names)} class names"
            )
        for name in PLAIN_FIELDS:
            _check_plain(name, getattr(self, name))
        try:
            self.preprocessing.check_shape(self.images_NCHW)
        except ValueError as error:
            raise ArtifactError(f"the preprocessing does not fit: {error}") from error

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images_NCHW[index], self.labels_NK[index]

    def __repr__(self) -> str:
        shape = "x".join(str(n) for n in self.images_NCHW.shape)
        return (
            f"<DistilledDataset {shape}, {len(self.class_names)} classes, preprocessing "
            f"{self.preprocessing.kind}; print() it to see how to use it>"
        )

    def __str__(self) -> str:
        return self.describe()

    def describe(self) -> str:
        """What the set is, how to train on it and how to preprocess test images, on one screen."""
        num_images, channels, height, width = self.images_NCHW.shape
        names = ", ".join(self.class_names[:10]) + (", ..." if len(self.class_names) > 10 else "")
        sums = self.labels_NK.sum(dim=1)
        lines = [
            f"Distilled dataset: {num_images} images of {channels}x{height}x{width}",
            f"Classes: {len(self.class_names)} ({names})",
            f"Labels: cross-entropy target probabilities; rows sum to {sums.min():.3g} .. {sums.max():.3g}",
            f"Preprocessing: {self.preprocessing.describe()}",
            "  These images are already preprocessed: train on them directly.",
            "  Apply preprocess(pixels in [0, 1], NCHW) to real images, including test images, and nothing else.",
            "  View the images with to_pixels().",
            "To train a new network on it:",
            *(f"  {key}: {value}" for key, value in self.protocol.items()),
            "Provenance:",
            *(f"  {key}: {value}" for key, value in self.provenance.items()),
            f"  config hash: {self.config_hash}",
        ]
        # Text from an untrusted file must not control the terminal.
        return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)

    def preprocess(self, images_NCHW: Tensor) -> Tensor:
        """Preprocess real images with pixels in [0, 1] for networks trained on this set: float32 NCHW."""
        return self.preprocessing.apply(images_NCHW)

    def to_pixels(self) -> Tensor:
        """The distilled images for viewing: float32 in [0, 1], NCHW (see the preprocessing's `to_pixels`)."""
        return self.preprocessing.to_pixels(self.images_NCHW)

    def save(self, path: str | Path) -> None:
        """Write the file atomically. Raises: ArtifactError if it cannot be written."""
        import pyarrow.parquet as pq

        path = Path(path)
        try:
            with atomic_write(path) as file:
                # Statistics would copy chunks of the preprocessing into the footer.
                pq.write_table(
                    to_table(ArtifactContents(*(getattr(self, name) for name in ArtifactContents._fields))),
                    file,
                    compression="none",
                    use_dictionary=False,
                    write_statistics=False,
                    write_page_checksum=True,
                )
        except OSError as error:
            if not is_user_error(error):
                raise
            raise ArtifactError(f"{path} cannot be written: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> "DistilledDataset":
        """Read a file that `save` wrote.

        Raises: ArtifactError for a file that is missing, corrupt, of another format version, or not a distilled dataset.
        """
        path = Path(path)
        if not path.is_file():
            raise ArtifactError(f"{path} is not a file")
        with _read_errors(path):
            return cls(**read(path)._asdict())


def build_dataset(
    config: Config, data: DevelopmentData, images_NCHW: Tensor, labels_NK: Tensor, **facts: Any
) -> DistilledDataset:
    """A dataset for a configuration and its real data; `facts` go into its provenance."""
    return DistilledDataset(
        images_NCHW=images_NCHW,
        labels_NK=labels_NK,
        class_names=data.class_names,
        preprocessing=data.preprocessing,
        protocol=training_protocol(config, data.num_classes),
        config=config.experiment(),
        config_hash=config.hash,
        provenance=provenance(**facts),
    )


def provenance(**facts: Any) -> dict[str, Any]:
    """The given facts (seed, outer steps, ...), the versions in use, and the time: plain data."""
    return {
        **facts,
        "ray_distill": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _check_plain(name: str, value: dict[str, Any]) -> None:
    """Raises: ArtifactError unless the value survives a JSON round trip."""
    try:
        same = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{name} is not plain data: {error}") from error
    if not same or not isinstance(value, dict):
        raise ArtifactError(f"{name} is not plain data: use string keys, lists for tuples, finite numbers")


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Turns any error of reading a file into an ArtifactError of one line that names it."""
    try:
        yield
    except Exception as error:
        raise ArtifactError(f"{path} is not an intact distilled dataset: {first_line(error)}") from error
