"""Development data ready for a distillation: train and validation, preprocessed.

Validation images are held out of training: they choose the best iterate, stop early and rank the trials of a search.
Nothing is fitted on them: the preprocessing is fitted on train alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ray_distill.core.rng import Stream
from ray_distill.data.arrow_file import open_images
from ray_distill.data.cache import fetch
from ray_distill.data.decoding import Progress
from ray_distill.data.labelled_images import DataError, LabelledImages
from ray_distill.data.preprocessed import cached_images, cached_preprocessing
from ray_distill.data.preprocessing import Preprocessing
from ray_distill.data.real_data import RealData
from ray_distill.data.sources import load_development
from ray_distill.data.spec import DataSpec
from ray_distill.data.strata import stratified_split

PixelLoader = Callable[[DataSpec], LabelledImages]
"""Loads a split's pixels: from the cache, decoding them into it first if necessary."""


@dataclass(frozen=True, kw_only=True)
class DataHandle:
    """What another process needs to open the same images, without the images: small enough to send.

    The files are found at the same paths, on this machine or in a folder that machines share. A machine without them
    prepares them again from the source, and must get the same images.
    """

    spec: DataSpec
    pixels_path: Path
    pixels_digest: str
    images_path: Path
    """The file that batches are taken from: the pixels, or whitened images."""
    preprocessing: Preprocessing | None
    """Applied to each batch; None if the images in the file are preprocessed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DevelopmentData:
    """Preprocessed real data that a distillation may see."""

    train: RealData
    validation: RealData
    """Empty if the validation fraction is 0."""
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    """Fitted on the training images."""
    broken: tuple[str, ...]
    """Images left out because they cannot be decoded: where they are, and why."""
    handle: DataHandle
    files: tuple[Path, ...]
    """The files in the cache: pixels, fitted preprocessing, whitened images."""

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.train.image_shape


def prepare_development(
    spec: DataSpec, fitted: Preprocessing | None = None, progress: Progress | None = None
) -> DevelopmentData:
    """Load a source, hold out validation, and fit the preprocessing on the rest; all results are cached.

    Args:
        fitted: use this preprocessing instead of fitting one.

    Raises: DataError for unusable data; ValueError for a value out of range.
    """
    images = load_development(spec, progress)
    train_rows, _ = _split(images, spec)
    preprocessing, files = fitted, [images.path]
    if preprocessing is None:
        preprocessing, path = cached_preprocessing(images, train_rows, spec, progress)
        files.append(path)
    handle, source = create_handle(spec, images, preprocessing, progress)
    train, validation = _train_and_validation(source, handle)
    return DevelopmentData(
        train=train,
        validation=validation,
        class_names=images.class_names,
        preprocessing=preprocessing,
        broken=images.broken,
        handle=handle,
        files=tuple(dict.fromkeys([*files, source.path])),
    )


def _split(images: LabelledImages, spec: DataSpec) -> tuple[Tensor, Tensor]:
    """The rows of train and of validation: a function of the labels, the fraction and the seed."""
    stream = Stream(seed=spec.seed, name="validation split")
    return stratified_split(images.labels_N, spec.validation_fraction, stream)


def _train_and_validation(source: LabelledImages, handle: DataHandle) -> tuple[RealData, RealData]:
    train_rows, validation_rows = _split(source, handle.spec)
    return (
        RealData.from_images(source, train_rows, handle.preprocessing),
        RealData.from_images(source, validation_rows, handle.preprocessing),
    )


def create_handle(
    spec: DataSpec, images: LabelledImages, preprocessing: Preprocessing, progress: Progress | None = None
) -> tuple[DataHandle, LabelledImages]:
    """Preprocess images as far as the result is cached: their handle, and the images that batches are taken from."""
    source, remaining = cached_images(images, preprocessing, spec, progress)
    handle = DataHandle(
        spec=spec,
        pixels_path=images.path,
        pixels_digest=images.digest,
        images_path=source.path,
        preprocessing=remaining,
    )
    return handle, source


def open_handle(handle: DataHandle, load: PixelLoader, fitted: Callable[[], Preprocessing]) -> LabelledImages:
    """The images that batches are taken from, in another process than the one that prepared them.

    Args:
        load: loads the pixels on a machine that lacks them.
        fitted: fetches the preprocessing on a machine that lacks the whitened images.

    Raises: DataError if the source has other images on this machine.
    """
    shared = handle.spec.shared
    if fetch(handle.images_path, shared):
        return open_images(handle.images_path)
    images = open_images(handle.pixels_path) if fetch(handle.pixels_path, shared) else load(handle.spec)
    if images.digest != handle.pixels_digest:
        raise DataError(
            f"{handle.spec.source} has different images on this machine than where the run was started; copy the same "
            "files here, or set data.cache to a folder or URI that all machines share"
        )
    if handle.preprocessing is not None:
        return images
    return cached_images(images, fitted(), handle.spec)[0]


def open_development(handle: DataHandle, fitted: Callable[[], Preprocessing]) -> tuple[RealData, RealData]:
    """Train and validation, in another process than the one that prepared them. Raises: DataError."""
    return _train_and_validation(open_handle(handle, load_development, fitted), handle)
