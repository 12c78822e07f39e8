"""The sections of a configuration: what every key means, and which values it may have.

The docstring below each field is its documentation (experiments/configuration.md is generated from them). Sections with a
module of their own: `data`, `network`, `truncation`, `evaluation`; `schedules` has the values that may change over the
run. An option without effect in the chosen mode is refused, like an unknown key: each field is checked against the
fields declared before it.

The names of operations are repeated here instead of imported from `core.augment`, which imports torch: errors in a file
are reported at once. A test keeps the two equal.
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

from ray_distill.config.base import (
    Fraction,
    NonNegativeInt,
    PositiveInt,
    Section,
    invalid,
    only_if,
    sibling,
    without_password,
)
from ray_distill.config.schedules import ScheduledFloat

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
    """The distilled dataset D and its initialisation."""

    ipc: PositiveInt
    """Distilled images per class."""
    init: Literal["unit-noise", "noise", "real"] = "unit-noise"
    """Initial images: `unit-noise`, standard normal and scaled to unit norm (as in the paper); `noise`, the same without
    scaling; `real`, random training images."""
    learn_labels: bool = False
    """Learn the target probabilities of each image too, starting from one-hot labels. They are clamped to 0 or above and
    not normalised."""
    label_lr_scale: PositiveFloat | None = Field(default=None, validate_default=True)
    """With `learn_labels` only: labels are learnt with step size `outer.lr` divided by this. Default: 1."""

    @field_validator("label_lr_scale")
    @classmethod
    def _with_learn_labels(cls, value: float | None, info: ValidationInfo) -> Any:
        learnt = bool(sibling(info, "learn_labels"))
        return only_if(learnt, "distilled.learn_labels is true", value, default=1.0)


def _unique_operations(value: Any) -> Any:
    """YAML lists as tuples; repeated operations refused."""
    if not isinstance(value, list | tuple):
        raise invalid(f"must be a list of operations from {', '.join(get_args(Operation))}")
    if len(set(map(str, value))) != len(value):
        raise invalid("has a duplicate operation; remove it")
    return tuple(value)


Operations = Annotated[tuple[Operation, ...], BeforeValidator(_unique_operations)]


def _differs_from_single(value: Mode, info: ValidationInfo) -> Mode:
    """The composed mode, refused where it would be the same as the single one."""
    operations = sibling(info, "augmentation")
    if value == "composed" and operations is not None:
        always = [name for name in ALWAYS_COMPOSED if name in operations]
        if not always or len(operations) == 1:
            raise invalid(
                "has no effect with these operations; list two or more in augmentation, at least one of them from "
                f"{', '.join(ALWAYS_COMPOSED)}, or use single"
            )
    return value


AugmentationMode = Annotated[Mode, AfterValidator(_differs_from_single)]


class InnerConfig(Section):
    """The inner training: a network is trained on D."""

    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam, or stochastic gradient descent with momentum."""
    lr: ScheduledFloat = 1e-3
    """The optimiser's step size. If it is scheduled, networks that evaluate D, during the run and at its end, use the
    value at the last outer step, so that their accuracies can be compared."""
    eps_convention: Literal["torch", "higher"] | None = Field(default=None, validate_default=True)
    """Adam only: `torch` (the default) adds eps after the bias correction of v, `higher` before it (as higher 0.2.1)."""
    momentum: Fraction | None = Field(default=None, validate_default=True)
    """SGD only: momentum, from 0 to below 1. Default: 0.9."""
    weight_decay: NonNegativeFloat | None = Field(default=None, validate_default=True)
    """SGD only: factor of the L2 penalty. Default: 5e-4."""
    batch_per_class: PositiveInt | None = None
    """Distilled images of each class in an inner batch. Default: all `distilled.ipc`."""
    classes_per_batch: PositiveInt | None = None
    """Classes in an inner batch, drawn anew at each inner step. Default: all classes of the data."""
    augmentation: Operations = ()
    """Augmentations of the distilled images (a list)."""
    augmentation_mode: AugmentationMode = "single"
    """`single`: one of the listed operations at each step. `composed`: all of the listed flip, colour and cutout
    operations, and one of the other listed ones."""

    @field_validator("eps_convention", "momentum", "weight_decay")
    @classmethod
    def _of_its_optimizer(cls, value: Any, info: ValidationInfo) -> Any:
        owner, default = {
            "eps_convention": ("adam", "torch"),
            "momentum": ("sgd", 0.9),
            "weight_decay": ("sgd", 5e-4),
        }[str(info.field_name)]
        applies = sibling(info, "optimizer") == owner
        return only_if(applies, f"inner.optimizer is {owner}", value, default)


class OuterConfig(Section):
    """The outer optimisation: D is updated by Adam with metagradients."""

    steps: PositiveInt
    """Outer steps of the run."""
    lr: ScheduledFloat = 1e-3
    """Adam's step size for the images; for learnt labels it is divided by `distilled.label_lr_scale`."""
    batch_size: PositiveInt = 512
    """Real images in the outer loss of each replica."""
    augmentation: Operations = ()
    """Augmentations of the real images (a list)."""
    augmentation_mode: AugmentationMode = "single"
    """As `inner.augmentation_mode`, for each batch of real images."""
    clip_ema_decay: Fraction = 0.9
    """Decay of the moving average of the metagradient's norm, from 0 to below 1."""
    clip_multiple: Annotated[float, Field(ge=1.0)] = 2.0
    """The metagradient's norm is clipped to this multiple of its moving average."""
    max_nonfinite_steps: PositiveInt = 10
    """Outer steps in a row with a non-finite metagradient, each of which is skipped, before the run ends with an error."""

    @field_validator("clip_multiple")
    @classmethod
    def _can_clip(cls, value: float, info: ValidationInfo) -> float:
        # The average includes the current norm: it is at least (1 - decay) times it.
        decay = sibling(info, "clip_ema_decay")
        if decay is not None and value * (1.0 - decay) >= 1.0:
            raise invalid(
                f"would never clip: must be below 1 / (1 - outer.clip_ema_decay) = {1 / (1 - decay):g}"
            )
        return value


class ValidationConfig(Section):
    """Validation of D during the run, on real images held out of training."""

    every: PositiveInt = 25
    """Outer steps between two validations."""
    num_networks: PositiveInt = 2
    """Newly initialised networks trained on D for each validation."""
    horizon: PositiveInt
    """Inner steps of each training."""


class CheckpointConfig(Section):
    """Checkpoints, from which a run can be resumed."""

    every: PositiveInt = 25
    """Outer steps between two checkpoints."""


class ComputeConfig(Section):
    """How the adjoint is computed. It changes time and memory; the numbers change by rounding only."""

    compile: Literal["auto", "always", "never"] = "auto"
    """Whether the step functions are compiled with torch.compile, which takes about a minute. `auto`: if the run is long
    enough to gain from it. If there is no compiler, the run continues without and logs a warning."""
    product: Literal["reverse", "forward"] = "reverse"
    """How second-order products are computed: reverse over reverse (faster on the CPUs where it was measured), or forward
    over reverse."""
    images_per_pass: PositiveInt | None = None
    """Distilled images in one pass through the network. Default: as many as fit a CPU's caches or fill a GPU. Not for
    networks with batch norm, which need each batch, distilled or real, in one pass."""
    replicas_at_once: Literal["auto"] | PositiveInt = "auto"
    """Replicas that are computed together, as one wide network, and assigned to workers together. `auto`: half of them, at
    most 8, for networks so small that launching operations dominates the time; otherwise 1."""
    state_memory_gib: PositiveFloat = 4.0
    """Memory of each worker for the optimiser states of a window, in GiB. Longer windows are replayed in segments, at the
    cost of one more gradient for each step."""


STORAGE_SCHEMES = ("file", "s3", "gs", "abfs", "abfss", "hdfs")
"""Of cluster.storage: those that pyarrow supports."""


class ClusterConfig(Section):
    """How replicas are distributed, and where the run is stored. It changes the speed of a run, not its numbers."""

    num_workers: PositiveInt = 1
    """Ray Train workers; at most `replicas`."""
    min_workers: PositiveInt | None = None
    """Makes the run elastic: it starts with at least this many workers, continues when nodes are lost, and grows to
    `num_workers` from the last checkpoint when nodes join. Default: the run waits for `num_workers`."""
    cpus_per_worker: PositiveInt = 1
    """CPU cores, and threads, of each worker. Another number of threads may round differently."""
    use_gpu: bool = False
    """One GPU for each worker, and a fraction of one for each evaluation actor (`evaluation.gpus_per_actor`)."""
    max_failures: NonNegativeInt = 3
    """Worker failures that a run survives."""
    storage: str | None = Field(default=None, min_length=1)
    """Where to store what must outlive the driver's machine: checkpoints and a copy of the run's (or the search's)
    folder. A path that all nodes see, used by this run alone, or a URI that starts with file://, s3://, gs://, abfs://,
    abfss:// or hdfs://; credentials come from environment variables on every node. Default: the run's folder, which all
    nodes must then see."""

    @field_validator("storage")
    @classmethod
    def _supported(cls, value: str | None) -> str | None:
        value = without_password(value)
        scheme = re.match(r"([A-Za-z][\w+.-]*):/", value or "")
        if value and ((scheme and scheme[1] not in STORAGE_SCHEMES) or (not scheme and ":" in value)):
            schemes = ", ".join(f"{name}://" for name in STORAGE_SCHEMES)
            raise invalid(f"must be a path, or a URI that starts with one of {schemes}")
        return value

    @field_validator("min_workers")
    @classmethod
    def _fewer(cls, value: int | None, info: ValidationInfo) -> int | None:
        most = sibling(info, "num_workers")
        if value is not None and most is not None and value >= most:
            raise invalid(f"must be below cluster.num_workers, which is {most}; lower it, or remove it")
        return value


class TrackingConfig(Section):
    """Where MLflow records the run."""

    uri: str | None = Field(default=None, min_length=1)
    """MLflow's tracking URI. Default: $MLFLOW_TRACKING_URI, or else an SQLite store next to the results."""
    experiment: str = Field(default="ray_distill", min_length=1)
    """The MLflow experiment that the run belongs to."""
    report_every: PositiveInt = 5
    """Outer steps between two reports of metrics."""

    @field_validator("uri")
    @classmethod
    def _without_password(cls, value: str | None) -> str | None:
        names = (
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the whole URI in $MLFLOW_TRACKING_URI"
        )
        return without_password(value, names)
