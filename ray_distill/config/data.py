"""The section `data` of a configuration: which real images, what is kept of them, and how they are prepared.

What a source is, and where its files lie, is told in `data/sources.py`; the names are spelt out here, since
importing that means importing torch, and a test holds the two against each other.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from ray_distill.config.base import PositiveInt, Section, Size, invalid, sibling
from ray_distill.utils.secrets import holds_password

NAMED_SIZES: dict[str, int | None] = {
    "digits": 8,
    "mnist": 28,
    "fashion-mnist": 28,
    "cifar10": 32,
    "cifar100": 32,
    "tiny-imagenet": 64,
    "cub200": None,
    "imagenet": None,
}
"""The side of each named source's images; None where they have many sizes."""
PATH_KINDS = ("folder", "parquet", "npz", "torch")
ENCODED_SOURCES = ("tiny-imagenet", "cub200", "imagenet", "folder", "parquet")
"""Sources whose images are encoded one by one, so that one may be broken."""
DEFAULT_SIZES = {"imagenet": 64}
MIN_CLASSES = 2


def _class_list(value: Any) -> Any:
    """A YAML list as a tuple; what is neither name nor index refused."""
    if value is None:
        return None
    plain = isinstance(value, list | tuple) and all(type(v) is int or isinstance(v, str) for v in value)
    if not plain or len(value) < MIN_CLASSES or len(set(value)) != len(value):
        raise invalid("allowed: a list of two or more classes by name or index, each once")
    return tuple(value)


def _without_password(uri: str, value: str) -> str:
    """The value, unless the URI in it holds a password."""
    if holds_password(uri):
        raise PydanticCustomError(
            "secret",
            "holds a password, and configurations are kept and shared; give it to the store's own variables, as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    return value


def _kind(source: str) -> str:
    return source.partition(":")[0]


class DataConfig(Section):
    """The real data."""

    source: str
    """A name (`digits`, `mnist`, `fashion-mnist`, `cifar10`, `cifar100`, `tiny-imagenet`, `cub200`, `imagenet`), or
    `folder:PATH` (a folder for each class, in train and test or val), `parquet:PATH` (train*.parquet and
    test*.parquet in the hubs' image layout, or the training files alone), `npz:PATH` or `torch:PATH` (arrays x_train,
    y_train, x_test, y_test). PATH may be a URI, as s3://bucket/folder."""
    test_source: str | None = None
    """KIND:PATH of the test split, of the same kind as `source`, where that is the training data alone."""
    root: str | None = Field(default=None, min_length=1)
    """Folder or URI of the named sources' files. Default: data in $RAY_DISTILL_CACHE, or in ~/.cache/ray_distill."""
    cache: str | None = Field(default=None, min_length=1)
    """Folder for decoded, fitted and whitened data, which runs share and map into memory; or a URI, as s3://bucket/folder,
    by which machines share them: each keeps those that it uses in the default folder too. Default: prepared in
    $RAY_DISTILL_CACHE, or in ~/.cache/ray_distill."""
    image_size: Size | None = Field(default=None, validate_default=True)
    """Scale the shorter side to this and cut a square out of the middle. Default: 64 for imagenet; to be given for
    cub200; otherwise the images as they are, which must then have one size."""
    classes: Annotated[tuple[str | int, ...] | None, BeforeValidator(_class_list)] = None
    """Keep these classes, by name or index, numbered in this order. Default: all."""
    preprocessing: Literal["none", "normalise", "zca"] = "normalise"
    """Fitted on the training split: nothing, mean and std of each channel, or ZCA whitening."""
    zca_shrinkage: PositiveFloat | None = Field(default=None, validate_default=True)
    """ZCA only: added to each eigenvalue, as a fraction of their mean. Default 0.1."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """The part of the training images held out for choosing and early stopping."""
    limit: PositiveInt | None = None
    """Keep this many development images (class-balanced) for a small trial."""
    max_broken: Annotated[float, Field(ge=0.0)] = 0.0
    """Images that may be left out because they cannot be decoded: how many, or, below 1, which fraction of them. They
    are counted and named."""

    @field_validator("source")
    @classmethod
    def _known_source(cls, value: str) -> str:
        kind, separator, path = value.partition(":")
        if not (kind in PATH_KINDS and path if separator else value in NAMED_SIZES):
            kinds = ", ".join(f"'{kind}:PATH'" for kind in PATH_KINDS)
            raise invalid(f"allowed: {', '.join(map(repr, NAMED_SIZES))}, {kinds}")
        return _without_password(path, value)

    @field_validator("test_source")
    @classmethod
    def _test_source(cls, value: str | None, info: ValidationInfo) -> str | None:
        source = sibling(info, "source")
        if value is None or source is None:
            return value
        if source in NAMED_SIZES:
            raise invalid(f"has no effect with data.source {source}, whose test split is fixed; remove it")
        kind, _, path = value.partition(":")
        if kind != _kind(source) or not path:
            raise invalid(f"allowed: '{_kind(source)}:PATH', of the same kind as data.source")
        return _without_password(path, value)

    @field_validator("root")
    @classmethod
    def _named_only(cls, value: str | None, info: ValidationInfo) -> str | None:
        source = sibling(info, "source")
        if value is not None and source is not None and (source not in NAMED_SIZES or source == "digits"):
            raise invalid(f"has no effect with data.source {source}, whose files lie elsewhere; remove it")
        return value if value is None else _without_password(value, value)

    @field_validator("cache")
    @classmethod
    def _open(cls, value: str | None) -> str | None:
        return value if value is None else _without_password(value, value)

    @field_validator("image_size")
    @classmethod
    def _size(cls, value: int | None, info: ValidationInfo) -> int | None:
        source = sibling(info, "source")
        if value is None and source == "cub200":
            raise invalid(
                "is missing: cub200 has images of many sizes; give the side to scale them to, as 64"
            )
        if value is not None and source in NAMED_SIZES and value == NAMED_SIZES[source]:
            raise invalid(f"has no effect with data.source {source}, whose images have this size; remove it")
        return DEFAULT_SIZES.get(source) if value is None else value

    @field_validator("zca_shrinkage")
    @classmethod
    def _zca_only(cls, value: float | None, info: ValidationInfo) -> float | None:
        zca = sibling(info, "preprocessing") == "zca"
        if value is not None and not zca:
            raise invalid("has no effect unless data.preprocessing is zca; remove it")
        return 0.1 if zca and value is None else value

    @field_validator("max_broken")
    @classmethod
    def _of_files_only(cls, value: float, info: ValidationInfo) -> float:
        source = sibling(info, "source")
        if value >= 1 and value != int(value):
            raise invalid("allowed: a number of images, or a fraction below 1")
        if value > 0 and source is not None and _kind(source) not in ENCODED_SOURCES:
            raise invalid(
                f"has no effect with data.source {_kind(source)}, whose images are one block; remove it"
            )
        return value
