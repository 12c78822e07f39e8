"""The sections of a configuration: what every key means, and what it may be.

Every field has its meaning below it; the sections `data`, `network`, `truncation` and `evaluation` are in
`config_data`, `config_network`, `config_truncation` and `config_evaluation`, values that may change over the run in `config_schedules`. An option that
would have no effect in the chosen mode is refused, as an unknown key is: it is checked against what was read before it.

Names of operations are spelt out here and not taken from `core`, since importing that means importing torch:
a mistake in a file is told at once. A test holds the two against each other.
"""

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from ray_distill.config.base import Fraction, NonNegativeInt, PositiveInt, Section, invalid, sibling
from ray_distill.config.schedules import ScheduledFloat
from ray_distill.utils.secrets import holds_password

Operation = Literal[
    "color", "brightness", "saturation", "contrast", "flip", "crop", "scale", "rotate", "cutout"
]
ALWAYS_COMPOSED: tuple[Operation, ...] = (
    "color",
    "brightness",
    "saturation",
    "contrast",
    "flip",
    "cutout",
)
Mode = Literal["single", "composed"]


class DistilledConfig(Section):
    """The distilled set and how it starts."""

    ipc: PositiveInt
    """Images per class."""
    init: Literal["unit-noise", "noise", "real"] = "unit-noise"
    """Standard normal images scaled to unit norm (the paper), the same unscaled, or random real images."""
    learn_labels: bool = False
    """Learn target probabilities for each image, from its class alone on. They are kept at 0 or above, and not
    normalised."""
    label_lr_scale: PositiveFloat | None = Field(default=None, validate_default=True)
    """With learn_labels only: labels are learnt at outer.lr divided by this. Default 1."""

    @field_validator("label_lr_scale")
    @classmethod
    def _learnt_only(cls, value: float | None, info: ValidationInfo) -> float | None:
        learnt = sibling(info, "learn_labels")
        if value is not None and not learnt:
            raise invalid("has no effect unless distilled.learn_labels is true; remove it")
        return 1.0 if learnt and value is None else value


def _operations(value: Any) -> Any:
    """YAML lists as tuples; unknown and repeated operations refused."""
    if not isinstance(value, list | tuple):
        raise invalid(f"allowed: a list of operations from {', '.join(get_args(Operation))}")
    if len(set(map(str, value))) != len(value):
        raise invalid("names an operation twice; remove one")
    return tuple(value)


Operations = Annotated[tuple[Operation, ...], BeforeValidator(_operations)]


def _composes(value: Mode, info: ValidationInfo) -> Mode:
    """The composed mode refused where it would be the single one."""
    operations = sibling(info, "augmentation")
    if value == "composed" and operations is not None:
        always = [name for name in ALWAYS_COMPOSED if name in operations]
        if not always or len(operations) == 1:
            raise invalid(
                "has no effect with these operations: give augmentation two or more, at least one of them from "
                f"{', '.join(ALWAYS_COMPOSED)}, or use single"
            )
    return value


AugmentationMode = Annotated[Mode, AfterValidator(_composes)]


class InnerConfig(Section):
    """The inner training of a network on D."""

    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam, or stochastic gradient descent with momentum."""
    lr: ScheduledFloat = 1e-3
    """The optimiser's step size, at each outer step that of its schedule. Networks that judge D, during the run and
    at its end, take the schedule's value at the last outer step, so that their accuracies can be compared."""
    eps_convention: Literal["torch", "higher"] | None = Field(default=None, validate_default=True)
    """Adam only: where eps stands, after the bias correction of v (torch, the default) or before it (higher
    0.2.1)."""
    momentum: Fraction | None = Field(default=None, validate_default=True)
    """SGD only. Default 0.9."""
    weight_decay: NonNegativeFloat | None = Field(default=None, validate_default=True)
    """SGD only: the L2 penalty's factor. Default 5e-4."""
    batch_per_class: PositiveInt | None = None
    """Images of each class in an inner batch. Default: all ipc of them."""
    classes_per_batch: PositiveInt | None = None
    """Classes in an inner batch, drawn anew at each step. Default: all classes of the data."""
    augmentation: Operations = ()
    """Operations on the distilled images."""
    augmentation_mode: AugmentationMode = "single"
    """At each step one of the operations (single), or flip, colours and cutout always and one of the others
    (composed), always of those listed."""

    @field_validator("eps_convention", "momentum", "weight_decay")
    @classmethod
    def _of_its_optimizer(cls, value: Any, info: ValidationInfo) -> Any:
        owner, default = {
            "eps_convention": ("adam", "torch"),
            "momentum": ("sgd", 0.9),
            "weight_decay": ("sgd", 5e-4),
        }[str(info.field_name)]
        mine = sibling(info, "optimizer") == owner
        if value is not None and not mine:
            raise invalid(f"has no effect unless inner.optimizer is {owner}; remove it")
        return default if mine and value is None else value


class OuterConfig(Section):
    """The outer optimisation of D."""

    steps: PositiveInt
    """Outer steps of the run."""
    lr: ScheduledFloat = 1e-3
    """Adam's step size for the images, and for learnt labels with distilled.label_lr_scale."""
    batch_size: PositiveInt = 512
    """Real images in each replica's outer loss."""
    augmentation: Operations = ()
    """Operations on the real batches."""
    augmentation_mode: AugmentationMode = "single"
    """As inner.augmentation_mode, for each real batch."""
    clip_ema_decay: Fraction = 0.9
    """Decay of the moving average of the metagradient's norm."""
    clip_multiple: Annotated[float, Field(ge=1.0)] = 2.0
    """The norm is clipped to this multiple of the moving average."""
    max_nonfinite_steps: PositiveInt = 10
    """Steps in a row with a metagradient that is not finite before the run ends with an error."""

    @field_validator("clip_multiple")
    @classmethod
    def _can_clip(cls, value: float, info: ValidationInfo) -> float:
        # The average takes the current norm in first: it is at least (1 - decay) times it.
        decay = sibling(info, "clip_ema_decay")
        if decay is not None and value * (1.0 - decay) >= 1.0:
            raise invalid(
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


class CheckpointConfig(Section):
    """What is kept while the run goes on."""

    every: PositiveInt = 25
    """Outer steps between two checkpoints."""


class ComputeConfig(Section):
    """How the adjoint's arithmetic is done. Changes time and memory, and the numbers by rounding alone."""

    compile: Literal["auto", "always", "never"] = "auto"
    """Whether the step functions go through torch.compile, which takes a minute or so: auto, if the run is
    long enough to gain by it. Without a compiler the run goes on without, and says so."""
    product: Literal["reverse", "forward"] = "reverse"
    """The second-order product: reverse over reverse, which was the faster one on CPUs, or forward over reverse."""
    images_per_pass: PositiveInt | None = None
    """Distilled images in one pass through the network. Default: as many as keep a CPU's caches or fill a GPU. Not for
    networks with batch norm, which take every batch whole, real ones too."""
    replicas_at_once: Literal["auto"] | PositiveInt = "auto"
    """Replicas that are one computation, as one wide network, and are shared out to workers together. Auto:
    half of them, and 8 at most, for networks so small that starting the operations is what takes the time;
    otherwise one by one."""
    state_memory_gib: PositiveFloat = 4.0
    """For the states of a window, for each worker. Longer windows are replayed in segments, at the cost of one
    more gradient for each step."""


STORAGE_SCHEMES = ("file", "s3", "gs", "abfs", "abfss", "hdfs")
"""Schemes of cluster.storage, of those that pyarrow knows."""


class ClusterConfig(Section):
    """How the replicas are shared out, and where the run is kept. Changes the speed of a run, not its numbers."""

    num_workers: PositiveInt = 1
    """Ray Train workers."""
    min_workers: PositiveInt | None = None
    """Elastic: with at least so many workers the run begins, and goes on when nodes go; when nodes come it takes up to
    num_workers again, from the last checkpoint. Default: it waits until it has num_workers."""
    cpus_per_worker: PositiveInt = 1
    """CPU cores of each: threads of its arithmetic. Another number of threads may round otherwise."""
    use_gpu: bool = False
    """One GPU for each worker, and a part of one for each actor of the evaluation."""
    max_failures: NonNegativeInt = 3
    """Worker failures after which the run gives up."""
    storage: str | None = Field(default=None, min_length=1)
    """A place of the run's own, or the search's, for what must outlive the driver's machine: checkpoints, and what its
    folder holds. A path that all nodes see, or a URI that begins with one of file://, s3://, gs://, abfs://, abfss://,
    hdfs://; its credentials come from the environment, on every node. Default: the folder, which all nodes must see
    then."""

    @field_validator("storage")
    @classmethod
    def _reachable(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if holds_password(value):
            raise PydanticCustomError(
                "secret",
                "holds a password, and configurations are kept and shared; give credentials to the environment, as "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            )
        scheme = re.match(r"([A-Za-z][\w+.-]*):/", value)
        if (scheme and scheme[1] not in STORAGE_SCHEMES) or (not scheme and ":" in value):
            allowed = ", ".join(f"{name}://" for name in STORAGE_SCHEMES)
            raise invalid(f"allowed: a path, or a URI that begins with one of {allowed}")
        return value

    @field_validator("min_workers")
    @classmethod
    def _fewer(cls, value: int | None, info: ValidationInfo) -> int | None:
        most = sibling(info, "num_workers")
        if value is not None and most is not None and value >= most:
            raise invalid(f"must be below cluster.num_workers, which is {most}; lower it, or remove it")
        return value


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
        if value is not None and holds_password(value):
            raise PydanticCustomError(
                "secret",
                "holds a password, and configurations are kept and shared; use MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or $MLFLOW_TRACKING_URI",
            )
        return value
