"""The section `evaluation`: how a finished set is judged on the test split, and beside what."""

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

from ray_distill.config.base import Section, invalid, sibling
from ray_distill.config.network import network_name

Baseline = Literal["random_real", "herding", "k_means", "whole_train"]
DEFAULT_BASELINES: tuple[Baseline, ...] = ("random_real", "whole_train")

DEFAULT_LR_GRID = (0.1, 0.3, 1.0, 3.0, 10.0)


def _several(value: Any) -> Any:
    """One number or a YAML list as a tuple."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _increasing(value: tuple[float, ...]) -> tuple[float, ...]:
    if list(value) != sorted(set(value)):
        raise invalid("must increase from each to the next")
    return value


def _each_once(value: Any) -> Any:
    """YAML lists of names as tuples; repeated names refused."""
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise invalid("allowed: a list of names")
    if len(set(value)) != len(value):
        raise invalid("names one twice; remove one")
    return tuple(value)


Names = Annotated[tuple[str, ...], BeforeValidator(_each_once)]
Baselines = Annotated[tuple[Baseline, ...], BeforeValidator(_each_once)]
Increasing = Annotated[tuple[PositiveInt, ...], BeforeValidator(_several), AfterValidator(_increasing)]
Grid = Annotated[tuple[PositiveFloat, ...], BeforeValidator(_several), AfterValidator(_increasing)]


class EvaluationConfig(Section):
    """Judging the finished set on the test split."""

    networks: Names = Field(default=("convnet3",), min_length=1)
    """Networks to retrain, named as network.name is. Those of its family take its width, activation and pooling
    (convnets and mlps count as one family); the others are as published."""
    seeds: PositiveInt = 8
    """Fresh networks of each."""
    horizons: Increasing = Field(default=(1000,), min_length=1)
    """Inner steps after which each retraining is tested, one training for all of them: a list that increases, or a
    single one."""
    baselines: Baselines = DEFAULT_BASELINES
    """What else is judged, by the same protocol: as many real images as the set has, at random, or chosen by herding,
    or the centres of k-means; and the network that the set was distilled through, trained on the whole training set."""
    random_real_draws: PositiveInt | None = Field(default=None, validate_default=True)
    """With the baseline random_real only: draws of it. Default 4."""
    whole_train_seeds: PositiveInt | None = Field(default=None, validate_default=True)
    """With the baseline whole_train only, as are the next two: networks trained on it. Default 1."""
    whole_train_epochs: PositiveInt | None = Field(default=None, validate_default=True)
    """Passes over it. Default 20."""
    whole_train_batch: PositiveInt | None = Field(default=None, validate_default=True)
    """Real images in a batch of it. Default 128."""
    tune_lr: bool = False
    """Choose the inner lr of each network, on each thing that it is trained on, on the validation split. Otherwise all
    are trained with the set's own."""
    lr_grid: Grid | None = Field(default=None, validate_default=True)
    """With tune_lr only: what to choose among, as multiples of the set's own lr. Default 0.1, 0.3, 1, 3, 10."""
    lr_networks: PositiveInt | None = Field(default=None, validate_default=True)
    """With tune_lr only: networks for each lr, others than those that are tested. Default 2."""
    subsets: Increasing = ()
    """Sizes, in images per class, of random subsets of the set that are judged too: a list that increases."""
    subset_draws: PositiveInt | None = Field(default=None, validate_default=True)
    """With subsets only: draws of each size. Default 8."""
    robustness: bool = False
    """Train also with the most probable class for a label, without augmentation and with DD-Ranking's: what its
    label-robust and augmentation-robust scores are made of. Needs both of the usual baselines."""
    gpus_per_actor: PositiveFloat | None = None
    """With cluster.use_gpu only: the part of a GPU that each actor takes, or whole ones. Default 0.25."""

    @field_validator("networks")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(network_name(name) for name in value)

    @field_validator("robustness")
    @classmethod
    def _with_baselines(cls, value: bool, info: ValidationInfo) -> bool:
        baselines = sibling(info, "baselines")
        if value and baselines is not None and not set(DEFAULT_BASELINES) <= set(baselines):
            raise invalid(f"needs {' and '.join(DEFAULT_BASELINES)} among evaluation.baselines")
        return value

    @field_validator(
        "random_real_draws",
        "whole_train_seeds",
        "whole_train_epochs",
        "whole_train_batch",
        "lr_grid",
        "lr_networks",
        "subset_draws",
    )
    @classmethod
    def _of_its_choice(cls, value: Any, info: ValidationInfo) -> Any:
        name = str(info.field_name)
        default: Any = {
            "random_real_draws": 4,
            "whole_train_seeds": 1,
            "whole_train_epochs": 20,
            "whole_train_batch": 128,
            "lr_grid": DEFAULT_LR_GRID,
            "lr_networks": 2,
            "subset_draws": 8,
        }[name]
        if name.startswith("lr_"):
            option, needs = sibling(info, "tune_lr"), "evaluation.tune_lr is true"
        elif name == "subset_draws":
            option, needs = sibling(info, "subsets"), "evaluation.subsets names sizes"
        else:
            baseline = next(b for b in DEFAULT_BASELINES if name.startswith(b))
            baselines = sibling(info, "baselines")
            option = None if baselines is None else baseline in baselines
            needs = f"{baseline} is one of evaluation.baselines"
        if option is None:
            # It was itself wrong, and is told.
            return value
        chosen = bool(option)
        if value is not None and not chosen:
            raise invalid(f"has no effect unless {needs}; remove it")
        return default if chosen and value is None else value
