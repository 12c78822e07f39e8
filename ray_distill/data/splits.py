"""Development data ready for a distillation: train and validation, preprocessed.

The validation split is held out of the training data; it chooses the best iterate, stops early and
selects in a search. Nothing is fitted on it: the preprocessing sees train rows only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ray_distill.core.rng import Stream
from ray_distill.data.arrow_file import open_images
from ray_distill.data.cache import fetched
from ray_distill.data.decoding import Progress
from ray_distill.data.labelled_images import DataError, LabelledImages
from ray_distill.data.preprocessed import fitted_preprocessing, preprocessed
from ray_distill.data.preprocessing import Preprocessing
from ray_distill.data.real_data import RealData
from ray_distill.data.sources import load_development
from ray_distill.data.spec import DataSpec
from ray_distill.data.strata import stratified_split

Load = Callable[[DataSpec], LabelledImages]
"""Has a split's pixels from the cache, decoded first if need be."""


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """What another process needs to open the same images: small, and without the images.

    It finds them where they lie, on the same machine or in a folder that machines share. On a machine that lacks
    them they are made again from the source, and must turn out the same.
    """

    spec: DataSpec
    pixels: Path
    pixels_digest: str
    drawn: Path
    """The file that batches are drawn from: the pixels, or whitened images."""
    applied: Preprocessing | None
    """To what is drawn."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DevelopmentData:
    """Preprocessed real data that a distillation may see."""

    train: RealData
    validation: RealData
    """Empty if no validation fraction was held out."""
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    """As fitted on the training images."""
    broken: tuple[str, ...]
    """Images that were left out because they cannot be decoded."""
    ticket: Ticket
    files: tuple[Path, ...]
    """What of the cache they take: pixels, fitted preprocessing, whitened images."""

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
    """Load a source, hold validation out of it, and fit the preprocessing on the rest; all of it in the cache.

    Args:
        fitted: a preprocessing to use in place of one that is fitted here.

    Raises: DataError for data that cannot be used; ValueError for a value outside its range.
    """
    images = load_development(spec, progress)
    train_rows, _ = _split(images, spec)
    preprocessing, files = fitted, [images.path]
    if preprocessing is None:
        preprocessing, path = fitted_preprocessing(images, train_rows, spec, progress)
        files.append(path)
    ticket, drawn = issue(spec, images, preprocessing, progress)
    train, validation = (RealData.of(drawn, rows, ticket.applied) for rows in _split(images, spec))
    return DevelopmentData(
        train=train,
        validation=validation,
        class_names=images.class_names,
        preprocessing=preprocessing,
        broken=images.broken,
        ticket=ticket,
        files=tuple(dict.fromkeys([*files, drawn.path])),
    )


def _split(images: LabelledImages, spec: DataSpec) -> tuple[Tensor, Tensor]:
    """The rows of train and of validation: a function of the labels, the fraction and the seed."""
    stream = Stream(seed=spec.seed, name="validation split")
    return stratified_split(images.labels_N, spec.validation_fraction, stream)


def issue(
    spec: DataSpec, images: LabelledImages, preprocessing: Preprocessing, progress: Progress | None = None
) -> tuple[Ticket, LabelledImages]:
    """Preprocess images as far as that is kept: the ticket for them, and what batches are drawn from."""
    drawn, applied = preprocessed(images, preprocessing, spec, progress)
    ticket = Ticket(
        spec=spec, pixels=images.path, pixels_digest=images.digest, drawn=drawn.path, applied=applied
    )
    return ticket, drawn


def redeem(ticket: Ticket, load: Load, fitted: Callable[[], Preprocessing]) -> LabelledImages:
    """What batches are drawn from, in another process than the one that issued the ticket.

    Args:
        load: has the pixels on a machine that lacks them.
        fitted: fetches the preprocessing, on a machine that lacks whitened images.

    Raises: DataError if this machine's source gives other images than the ticket is for.
    """
    shared = ticket.spec.shared
    if fetched(ticket.drawn, shared):
        return open_images(ticket.drawn)
    images = open_images(ticket.pixels) if fetched(ticket.pixels, shared) else load(ticket.spec)
    if images.digest != ticket.pixels_digest:
        raise DataError(
            f"{ticket.spec.source} holds other images on this machine than where the run was started; put the same "
            "files there, or let data.cache name a folder or a URI that all machines share"
        )
    if ticket.applied is not None:
        return images
    return preprocessed(images, fitted(), ticket.spec)[0]


def redeem_development(ticket: Ticket, fitted: Callable[[], Preprocessing]) -> tuple[RealData, RealData]:
    """Train and validation, in another process than the one that prepared them. Raises: DataError."""
    images = redeem(ticket, load_development, fitted)
    train, validation = (RealData.of(images, rows, ticket.applied) for rows in _split(images, ticket.spec))
    return train, validation
