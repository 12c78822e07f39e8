"""The section `data` of a configuration: which real images, which of them, and how they are preprocessed.

`data/sources.py` documents the sources; their names are repeated here, since importing it imports torch. A test keeps the
two equal.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, ValidationInfo, field_validator

from ray_distill.config.base import PositiveInt, Section, Size, invalid, only_if, sibling, without_password

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
"""The side of each named source's images; None if their sizes differ."""
PATH_KINDS = ("folder", "parquet", "npz", "torch")
ENCODED_SOURCES = ("tiny-imagenet", "cub200", "imagenet", "folder", "parquet")
"""Sources of separately encoded images, some of which may be broken."""
DEFAULT_SIZES = {"imagenet": 64}
MIN_CLASSES = 2


def _class_list(value: Any) -> Any:
    """A YAML list as a tuple; anything but names and indices refused."""
    if value is None:
        return None
    plain = isinstance(value, list | tuple) and all(type(v) is int or isinstance(v, str) for v in value)
    if not plain or len(value) < MIN_CLASSES or len(set(value)) != len(value):
        raise invalid("must be a list of two or more classes by name or index, each once")
    return tuple(value)


def _kind(source: str) -> str:
    return source.partition(":")[0]


class DataConfig(Section):
    """The real data."""

    source: str
    """A named dataset (`digits`, `mnist`, `fashion-mnist`, `cifar10`, `cifar100`, `tiny-imagenet`, `cub200`,
    `imagenet`), or KIND:PATH: `folder:PATH` (class folders in train and in test or val), `parquet:PATH`
    (train*.parquet and test*.parquet in the hubs' image layout, or training files only), `npz:PATH` or `torch:PATH`
    (arrays x_train, y_train, x_test, y_test). PATH may be a URI, e.g. s3://bucket/folder."""
    test_source: str | None = None
    """KIND:PATH of the test split if `source` holds training data only; of the same KIND. Default: the test split of
    `source`."""
    root: str | None = Field(default=None, min_length=1)
    """Folder or URI of the named datasets' files. Default: data in $RAY_DISTILL_CACHE, or in ~/.cache/ray_distill."""
    cache: str | None = Field(default=None, min_length=1)
    """Folder for prepared (decoded, fitted, whitened) data, which runs share and map into memory; or a URI, e.g.
    s3://bucket/folder, by which machines share them, each with a copy in the default folder. Default: prepared in
    $RAY_DISTILL_CACHE, or in ~/.cache/ray_distill."""
    image_size: Size | None = Field(default=None, validate_default=True)
    """Scale the shorter side of each image to this many pixels, then crop the central square. Default: 64 for imagenet;
    otherwise the images as they are, which must have one size. Required for cub200."""
    classes: Annotated[tuple[str | int, ...] | None, BeforeValidator(_class_list)] = None
    """Use only these classes (a list of names or indices), numbered in this order. Default: all."""
    preprocessing: Literal["none", "normalise", "zca"] = "normalise"
    """Fitted on the training split: `none`, `normalise` (mean and standard deviation of each channel), or `zca` (ZCA
    whitening)."""
    zca_shrinkage: PositiveFloat | None = Field(default=None, validate_default=True)
    """ZCA only: added to each eigenvalue of the covariance, as a fraction of their mean. Default: 0.1."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Fraction of each class's training images held out for validation: for choosing the best D and stopping early."""
    limit: PositiveInt | None = None
    """Use only this many development (training and validation) images, class-balanced, for a small trial. Default: all."""
    max_broken: Annotated[float, Field(ge=0.0)] = 0.0
    """Images that may be skipped because they cannot be decoded: a number, or a fraction if below 1. They are reported."""

    @field_validator("source")
    @classmethod
    def _supported(cls, value: str) -> str | None:
        kind, separator, path = value.partition(":")
        if not (kind in PATH_KINDS and path if separator else value in NAMED_SIZES):
            kinds = ", ".join(f"'{kind}:PATH'" for kind in PATH_KINDS)
            raise invalid(f"must be one of {', '.join(map(repr, NAMED_SIZES))}, {kinds}")
        return without_password(value)

    @field_validator("test_source")
    @classmethod
    def _same_kind(cls, value: str | None, info: ValidationInfo) -> str | None:
        source = sibling(info, "source")
        if value is None or source is None:
            return value
        if source in NAMED_SIZES:
            raise invalid(f"has no effect with data.source {source}, whose test split is fixed; remove it")
        kind, _, path = value.partition(":")
        if kind != _kind(source) or not path:
            raise invalid(f"must be '{_kind(source)}:PATH', of the same kind as data.source")
        return without_password(value)

    @field_validator("root")
    @classmethod
    def _named_only(cls, value: str | None, info: ValidationInfo) -> str | None:
        source = sibling(info, "source")
        if value is not None and source is not None and (source not in NAMED_SIZES or source == "digits"):
            raise invalid(f"has no effect with data.source {source}, whose files are elsewhere; remove it")
        return without_password(value)

    @field_validator("cache")
    @classmethod
    def _without_password(cls, value: str | None) -> str | None:
        return without_password(value)

    @field_validator("image_size")
    @classmethod
    def _has_effect(cls, value: int | None, info: ValidationInfo) -> int | None:
        source = sibling(info, "source")
        if value is None and source == "cub200":
            raise invalid(
                "is required: cub200 has images of many sizes; set the side to scale them to, e.g. 64",
                show_value=False,
            )
        if value is not None and source in NAMED_SIZES and value == NAMED_SIZES[source]:
            raise invalid(f"has no effect with data.source {source}, whose images have this size; remove it")
        return DEFAULT_SIZES.get(source) if value is None else value

    @field_validator("zca_shrinkage")
    @classmethod
    def _with_zca(cls, value: float | None, info: ValidationInfo) -> Any:
        zca = sibling(info, "preprocessing") == "zca"
        return only_if(zca, "data.preprocessing is zca", value, default=0.1)

    @field_validator("max_broken")
    @classmethod
    def _encoded_only(cls, value: float, info: ValidationInfo) -> float:
        source = sibling(info, "source")
        if value >= 1 and value != int(value):
            raise invalid("must be a number of images, or a fraction below 1")
        if value > 0 and source is not None and _kind(source) not in ENCODED_SOURCES:
            raise invalid(
                f"has no effect with data.source {_kind(source)}, whose images are not encoded; remove it"
            )
        return value
