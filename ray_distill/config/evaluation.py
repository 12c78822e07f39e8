"""The section `evaluation`: how a distilled set is evaluated on the test split, and against which baselines."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
)

from ray_distill.config.base import Section, invalid, only_if, sibling
from ray_distill.config.network import network_name

Baseline = Literal["random_real", "herding", "k_means", "whole_train"]
DEFAULT_BASELINES: tuple[Baseline, ...] = ("random_real", "whole_train")

DEFAULT_LR_GRID = (0.1, 0.3, 1.0, 3.0, 10.0)


def _as_tuple(value: Any) -> Any:
    """One number or a YAML list as a tuple."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _increasing(value: tuple[float, ...]) -> tuple[float, ...]:
    if list(value) != sorted(set(value)):
        raise invalid("must be strictly increasing")
    return value


def _unique_names(value: Any) -> Any:
    """A YAML list of names as a tuple; repeated names refused."""
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise invalid("must be a list of names")
    if len(set(value)) != len(value):
        raise invalid("has a duplicate name; remove it")
    return tuple(value)


Names = Annotated[tuple[str, ...], BeforeValidator(_unique_names)]
Baselines = Annotated[tuple[Baseline, ...], BeforeValidator(_unique_names)]
Increasing = Annotated[tuple[PositiveInt, ...], BeforeValidator(_as_tuple), AfterValidator(_increasing)]
Grid = Annotated[tuple[PositiveFloat, ...], BeforeValidator(_as_tuple), AfterValidator(_increasing)]


class EvaluationConfig(Section):
    """Evaluation of the finished set on the test split: networks are newly initialised, trained on it, and tested."""

    networks: Names = Field(default=("convnet3",), min_length=1)
    """Networks to train (a list), named as in `network.name`. Those of its family use its width, activation and pooling
    (convnets and mlps count as one family); the others are as published."""
    seeds: PositiveInt = 8
    """Independent trainings of each network."""
    horizons: Increasing = Field(default=(1000,), min_length=1)
    """Inner steps after which networks are tested, all in one training: a number, or an increasing list."""
    baselines: Baselines = DEFAULT_BASELINES
    """Training sets evaluated for comparison, by the same protocol (a list): as many real images as the distilled set
    has, drawn at random (`random_real`), chosen by herding (`herding`), or k-means centres (`k_means`); and the whole
    training set, on which `network` alone is trained (`whole_train`)."""
    random_real_draws: PositiveInt | None = Field(default=None, validate_default=True)
    """With baseline random_real only: random draws. Default: 4."""
    whole_train_seeds: PositiveInt | None = Field(default=None, validate_default=True)
    """With baseline whole_train only: independent trainings. Default: 1."""
    whole_train_epochs: PositiveInt | None = Field(default=None, validate_default=True)
    """With baseline whole_train only: epochs of each training. Default: 20."""
    whole_train_batch: PositiveInt | None = Field(default=None, validate_default=True)
    """With baseline whole_train only: batch size. Default: 128."""
    tune_lr: bool = False
    """Choose the learning rate for each network and training set on the validation split. Otherwise all are trained with
    the learning rate of the distillation, `inner.lr`."""
    lr_grid: Grid | None = Field(default=None, validate_default=True)
    """With `tune_lr` only: the learning rates to choose from, as multiples of `inner.lr` (an increasing list). Default: 0.1,
    0.3, 1, 3, 10."""
    lr_networks: PositiveInt | None = Field(default=None, validate_default=True)
    """With `tune_lr` only: networks trained for each learning rate, apart from those that are tested. Default: 2."""
    subsets: Increasing = ()
    """Sizes of random subsets of the distilled set to evaluate too, in images per class: a number, or an increasing list,
    below `distilled.ipc`."""
    subset_draws: PositiveInt | None = Field(default=None, validate_default=True)
    """With `subsets` only: random draws of each size. Default: 8."""
    robustness: bool = False
    """Train also with hard labels, without augmentation, and with DD-Ranking's augmentation: the basis of its
    label-robust and augmentation-robust scores. Requires the baselines random_real and whole_train."""
    gpus_per_actor: PositiveFloat | None = None
    """With `cluster.use_gpu` only: GPUs of each evaluation actor, a fraction of one or a whole number. Default: 0.25."""

    @field_validator("networks")
    @classmethod
    def _valid_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(network_name(name) for name in value)

    @field_validator("robustness")
    @classmethod
    def _with_baselines(cls, value: bool, info: ValidationInfo) -> bool:
        baselines = sibling(info, "baselines")
        if value and baselines is not None and not set(DEFAULT_BASELINES) <= set(baselines):
            raise invalid(f"requires {' and '.join(DEFAULT_BASELINES)} in evaluation.baselines")
        return value

    @field_validator("random_real_draws", "whole_train_seeds", "whole_train_epochs", "whole_train_batch")
    @classmethod
    def _with_baseline(cls, value: Any, info: ValidationInfo) -> Any:
        name, baselines = str(info.field_name), sibling(info, "baselines")
        if baselines is None:
            return value
        baseline = next(b for b in DEFAULT_BASELINES if name.startswith(b))
        default = {"draws": 4, "seeds": 1, "epochs": 20, "batch": 128}[name.rpartition("_")[2]]
        return only_if(baseline in baselines, f"{baseline} is one of evaluation.baselines", value, default)

    @field_validator("lr_grid", "lr_networks")
    @classmethod
    def _with_tune_lr(cls, value: Any, info: ValidationInfo) -> Any:
        tuned = sibling(info, "tune_lr")
        default = DEFAULT_LR_GRID if info.field_name == "lr_grid" else 2
        return value if tuned is None else only_if(tuned, "evaluation.tune_lr is true", value, default)

    @field_validator("subset_draws")
    @classmethod
    def _with_subsets(cls, value: Any, info: ValidationInfo) -> Any:
        sizes = sibling(info, "subsets")
        return (
            value if sizes is None else only_if(bool(sizes), "evaluation.subsets has sizes", value, default=8)
        )
