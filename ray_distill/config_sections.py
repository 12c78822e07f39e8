"""The sections of a configuration: what every key means, and what it may be.

Every field has its meaning below it. An option that would have no effect in the chosen mode is refused,
as an unknown key is: a truncation rule has its own section type, other options are checked against what
was read before them.

Names of networks and operations are spelt out here and not taken from `core`, since importing that means
importing torch: a mistake in a file is told at once. A test holds the two against each other.
"""

import re
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

Operation = Literal["flip", "rotate"]
NETWORK_FAMILIES = ("convnet", "mlp")

NonNegativeInt = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class Section(BaseModel):
    """Frozen; no unknown keys; no silent conversion of types (an int is accepted for a float)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def _refuse(message: str) -> PydanticCustomError:
    # The value that was found is added where the error is printed; braces would be taken as a template.
    return PydanticCustomError("impossible", "{message}", {"message": message})


def _earlier(info: ValidationInfo, name: str) -> Any:
    """A sibling field that was validated before this one; None if it was itself wrong."""
    return info.data.get(name)


class DataConfig(Section):
    """The real data."""

    source: str
    """`digits` (comes with scikit-learn) or `parquet:PATH` (a folder of train*.parquet and test*.parquet
    in the hubs' image layout, or the training files alone)."""
    test_source: str | None = None
    """`parquet:PATH` of the test split where `source` is the training files alone."""
    preprocessing: Literal["none", "normalise", "zca"] = "normalise"
    """Fitted on the training split: nothing, mean and std of each channel, or ZCA whitening."""
    zca_shrinkage: PositiveFloat | None = Field(default=None, validate_default=True)
    """ZCA only: added to each eigenvalue, as a fraction of their mean. Default 0.1."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """The part of the training images held out for choosing and early stopping."""
    limit: PositiveInt | None = None
    """Keep this many development images (class-balanced) for a small trial."""

    @field_validator("source")
    @classmethod
    def _known_source(cls, value: str) -> str:
        if value != "digits" and not (value.startswith("parquet:") and len(value) > len("parquet:")):
            raise _refuse("allowed: 'digits' or 'parquet:PATH'")
        return value

    @field_validator("test_source")
    @classmethod
    def _test_source(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            if _earlier(info, "source") == "digits":
                raise _refuse("has no effect with data.source digits, whose test split is fixed; remove it")
            if not value.startswith("parquet:"):
                raise _refuse("allowed: 'parquet:PATH'")
        return value

    @field_validator("zca_shrinkage")
    @classmethod
    def _zca_only(cls, value: float | None, info: ValidationInfo) -> float | None:
        zca = _earlier(info, "preprocessing") == "zca"
        if value is not None and not zca:
            raise _refuse("has no effect unless data.preprocessing is zca; remove it")
        return 0.1 if zca and value is None else value


class DistilledConfig(Section):
    """The distilled set and how it starts."""

    ipc: PositiveInt
    """Images per class."""
    init: Literal["unit-noise", "noise", "real"] = "unit-noise"
    """Standard normal images scaled to unit norm (the paper), the same unscaled, or random real images."""


class NetworkConfig(Section):
    """The network that D is distilled through."""

    name: str = "convnet3"
    """A family and a depth, such as convnet3 or mlp2."""
    width: PositiveInt = 128
    """Channels of each block, or units of each hidden layer."""
    norm: Literal["instance", "none"] | None = Field(default=None, validate_default=True)
    """Convnets only: the norm in each block. Default instance."""

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        return _network_name(value)

    @field_validator("norm")
    @classmethod
    def _convnet_only(cls, value: str | None, info: ValidationInfo) -> str | None:
        convnet = str(_earlier(info, "name")).startswith("convnet")
        if value is not None and not convnet:
            raise _refuse("has no effect unless network.name is a convnet; remove it")
        return "instance" if convnet and value is None else value


def _network_name(value: str) -> str:
    if not re.fullmatch(rf"({'|'.join(NETWORK_FAMILIES)})[1-9]", value):
        known = ", ".join(f"{family}1 .. {family}9" for family in NETWORK_FAMILIES)
        raise _refuse(f"unknown network {value!r}; known: {known} (the digit is the depth)")
    return value


class InnerConfig(Section):
    """The inner training: Adam on D."""

    lr: PositiveFloat = 1e-3
    """Adam's step size."""
    eps_convention: Literal["torch", "higher"] = "torch"
    """Where Adam's eps stands: after the bias correction of v (torch) or before it (higher 0.2.1)."""
    batch_per_class: PositiveInt | None = None
    """Images of each class in an inner batch. Default: all ipc of them."""
    augmentation: tuple[Operation, ...] = ()
    """Operations of which one is drawn at each step for the distilled images."""

    @field_validator("augmentation", mode="before")
    @classmethod
    def _operations(cls, value: Any) -> Any:
        return _operations(value)


def _operations(value: Any) -> Any:
    """YAML lists as tuples; unknown and repeated operations refused."""
    if not isinstance(value, list | tuple):
        raise _refuse(f"allowed: a list of operations from {', '.join(get_args(Operation))}")
    if len(set(map(str, value))) != len(value):
        raise _refuse("names an operation twice; remove one")
    return tuple(value)


class _Unroll(Section):
    unroll_length: PositiveInt
    """N: inner steps of a whole unroll."""


class _Windowed(_Unroll):
    window_length: PositiveInt
    """W: differentiated inner steps."""

    @field_validator("window_length")
    @classmethod
    def _fits(cls, value: int, info: ValidationInfo) -> int:
        unroll = _earlier(info, "unroll_length")
        if unroll is not None and value > unroll:
            raise _refuse(
                f"must be at most truncation.unroll_length, which is {unroll}; lower one or raise the other"
            )
        return value


class BpttConfig(_Unroll):
    """Differentiate the whole unroll."""

    rule: Literal["bptt"]


class TbpttConfig(_Windowed):
    """Differentiate the last window of the unroll."""

    rule: Literal["t-bptt"]


class RbpttConfig(_Unroll):
    """Differentiate the first steps, a random number of them."""

    rule: Literal["r-bptt"]
    redraw_every: PositiveInt = 1
    """Outer steps that share a window."""


class RatBpttConfig(_Windowed):
    """Differentiate a window at a random place."""

    rule: Literal["rat-bptt"]
    min_window_start: NonNegativeInt = 0
    """The earliest start of the window."""
    redraw_every: PositiveInt = 1
    """Outer steps that share a window."""

    @field_validator("min_window_start")
    @classmethod
    def _room(cls, value: int, info: ValidationInfo) -> int:
        unroll, window = _earlier(info, "unroll_length"), _earlier(info, "window_length")
        if unroll is not None and window is not None and value > unroll - window:
            raise _refuse(f"must be at most unroll_length - window_length, which is {unroll - window}")
        return value


TruncationConfig = Annotated[
    BpttConfig | TbpttConfig | RbpttConfig | RatBpttConfig, Field(discriminator="rule")
]


class OuterConfig(Section):
    """The outer optimisation of D."""

    steps: PositiveInt
    """Outer steps of the run."""
    lr: PositiveFloat = 1e-3
    """Adam's step size for the images."""
    batch_size: PositiveInt = 512
    """Real images in each replica's outer loss."""
    augmentation: tuple[Operation, ...] = ()
    """Operations of which one is drawn for each real batch."""
    clip_ema_decay: Fraction = 0.9
    """Decay of the moving average of the metagradient's norm."""
    clip_multiple: Annotated[float, Field(ge=1.0)] = 2.0
    """The norm is clipped to this multiple of the moving average."""
    max_nonfinite_steps: PositiveInt = 10
    """Steps in a row with a metagradient that is not finite before the run ends with an error."""

    @field_validator("augmentation", mode="before")
    @classmethod
    def _operations(cls, value: Any) -> Any:
        return _operations(value)

    @field_validator("clip_multiple")
    @classmethod
    def _can_clip(cls, value: float, info: ValidationInfo) -> float:
        # The average takes the current norm in first: it is at least (1 - decay) times it.
        decay = _earlier(info, "clip_ema_decay")
        if decay is not None and value * (1.0 - decay) >= 1.0:
            raise _refuse(
                f"can never clip: must be below 1 / (1 - outer.clip_ema_decay), {1 / (1 - decay):g}"
            )
        return value


class ValidationConfig(Section):
    """Judging D during the run, on real images held out of training."""

    every: PositiveInt = 25
    """Outer steps between two validations."""
    num_networks: PositiveInt = 2
    """Fresh networks trained at each."""
    horizon: PositiveInt
    """Inner steps of each."""


class EvaluationConfig(Section):
    """Judging the finished set on the test split."""

    networks: tuple[str, ...] = Field(default=("convnet3",), min_length=1)
    """Networks to retrain, at the width and norm of `network`."""
    seeds: PositiveInt = 8
    """Fresh networks of each."""
    horizon: PositiveInt = 1000
    """Inner steps of each retraining."""
    random_real_draws: PositiveInt = 4
    """Draws of the baseline of random real images."""
    whole_train_seeds: PositiveInt = 1
    """Networks of the baseline trained on the whole training set."""
    whole_train_epochs: PositiveInt = 20
    """Passes over the whole training set."""
    whole_train_batch: PositiveInt = 128
    """Real images in a batch of the whole training set."""

    @field_validator("networks", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
            raise _refuse("allowed: a list of network names")
        if len(set(value)) != len(value):
            raise _refuse("names a network twice; remove one")
        return tuple(_network_name(name) for name in value)


class CheckpointConfig(Section):
    """What is kept while the run goes on."""

    every: PositiveInt = 25
    """Outer steps between two checkpoints."""


class ClusterConfig(Section):
    """How the replicas are shared out. Changes the speed of a run, not its numbers."""

    num_workers: PositiveInt = 1
    """Ray Train workers."""
    cpus_per_worker: PositiveInt = 1
    """CPU cores of each: threads of its arithmetic."""
    use_gpu: bool = False
    """One GPU for each worker. The evaluation runs on CPUs."""
    max_failures: NonNegativeInt = 3
    """Worker failures after which the run gives up."""


class TrackingConfig(Section):
    """Where MLflow keeps the run."""

    uri: str | None = Field(default=None, min_length=1)
    """Tracking URI. Default: $MLFLOW_TRACKING_URI, otherwise a sqlite store beside the results."""
    experiment: str = Field(default="ray_distill", min_length=1)
    """The MLflow experiment that the run belongs to."""
    report_every: PositiveInt = 5
    """Outer steps between two batches of metrics."""

    @field_validator("uri")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).password:
            raise PydanticCustomError(
                "secret",
                "holds a password, and configurations are kept and shared; use MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or $MLFLOW_TRACKING_URI",
            )
        return value
