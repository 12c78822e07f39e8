"""Development data ready for a distillation: train and validation, preprocessed.

The validation split is held out of the training data; it chooses the best iterate, stops early and
selects in a search. Nothing is fitted on it: the preprocessing sees train rows only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ray_distill.core.rng import Stream
from ray_distill.data.labelled_images import LabelledImages
from ray_distill.data.preprocessing import Preprocessing, fit_preprocessing
from ray_distill.data.sources import Progress, load_development
from ray_distill.data.strata import stratified_split

__all__ = ["DevelopmentData", "prepare_development", "stratified_split"]


@dataclass(frozen=True, kw_only=True, eq=False)
class DevelopmentData:
    """Preprocessed real data that a distillation may see."""

    train_images_NCHW: Tensor
    train_labels_N: Tensor
    validation_images_NCHW: Tensor
    """Empty if no validation fraction was held out."""
    validation_labels_N: Tensor
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    """As fitted on the training images."""

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.train_images_NCHW.shape[1:]
        return channels, height, width


def prepare_development(
    source: str,
    *,
    preprocessing: str | Preprocessing,
    zca_shrinkage: float,
    validation_fraction: float,
    limit: int | None,
    seed: int,
    progress: Progress | None = None,
) -> DevelopmentData:
    """Load a source, hold validation out of it, fit the preprocessing on the rest and apply it to both.

    Args:
        preprocessing: `none`, `normalise` or `zca`, to be fitted here; or one that is fitted already.
        zca_shrinkage: share of the mean eigenvalue that is added to each (`zca` only).
        validation_fraction: share of each class that is held out, in [0, 1).
        limit: keep only that many images of the source, None for all.
        seed: decides which images are held out.
        progress: called with (images decoded, images in all).

    Raises: DataError for data that cannot be used; ValueError for an argument outside its range.
    """
    images = load_development(source, limit=limit, progress=progress)
    stream = Stream(seed=seed, name="validation split")
    train_rows, validation_rows = stratified_split(images.labels_N, validation_fraction, stream)
    fitted = preprocessing
    if isinstance(fitted, str):
        fitted = fit_preprocessing(fitted, images.pixel_chunks(train_rows), zca_shrinkage=zca_shrinkage)
    return DevelopmentData(
        train_images_NCHW=_preprocessed(images, train_rows, fitted),
        train_labels_N=images.labels_N[train_rows],
        validation_images_NCHW=_preprocessed(images, validation_rows, fitted),
        validation_labels_N=images.labels_N[validation_rows],
        class_names=images.class_names,
        preprocessing=fitted,
    )


def _preprocessed(images: LabelledImages, rows: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The images at these rows, preprocessed chunk by chunk: float32 [len(rows), C, H, W]."""
    out = torch.empty(len(rows), *images.image_shape, dtype=torch.float32)
    done = 0
    for chunk in images.pixel_chunks(rows):
        out[done : done + len(chunk)] = preprocessing.apply(chunk)
        done += len(chunk)
    return out
