"""The configuration of one distillation: its sections, what they require of each other, and its hash.

An unknown key, a wrong type, a value out of range or an option without effect in the chosen mode is an error that names
the key's path (`load`). `Config.hash` covers all that determines the numbers; `cluster`, for one, does not, so a run may
move to other machines.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from ray_distill.config.base import PositiveInt, Section, Seed
from ray_distill.config.data import DataConfig
from ray_distill.config.evaluation import EvaluationConfig
from ray_distill.config.network import NetworkConfig
from ray_distill.config.schedules import schedule_errors
from ray_distill.config.sections import (
    CheckpointConfig,
    ClusterConfig,
    ComputeConfig,
    DistilledConfig,
    InnerConfig,
    OuterConfig,
    TrackingConfig,
    ValidationConfig,
)
from ray_distill.config.truncation import ForwardConfig, TruncationConfig, truncation_errors
from ray_distill.config.yaml import to_yaml
from ray_distill.errors import UserError


class ConfigError(UserError):
    """A configuration that cannot be run; the message names the key, the value, and what is allowed."""


class Config(Section):
    """One distillation."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)
    """Name of the run, of its folder, and of its run in MLflow. Letters, digits, `_`, `.` and `-`; at most 100 characters."""
    seed: Seed = 0
    """Seed of all random draws."""
    precision: Literal["float64", "float32", "tf32", "bf16"] = "float32"
    """Floating-point arithmetic. `tf32`: float32 with matrix products in TF32 (GPUs only). `bf16`: float32 with the
    networks of the inner training under autocast to bfloat16."""
    engine: Literal["adjoint", "higher"] = "adjoint"
    """How metagradients are computed: `adjoint` stores optimiser states and replays inner steps; `higher` is the slow
    reference, which records the whole unroll on autograd's tape."""
    replicas: PositiveInt = 1
    """Independent metagradients averaged at each outer step, each with its own network, inner batches and real batch."""
    data: DataConfig
    distilled: DistilledConfig
    network: NetworkConfig = NetworkConfig()
    inner: InnerConfig = InnerConfig()
    truncation: TruncationConfig
    outer: OuterConfig
    validation: ValidationConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    compute: ComputeConfig = ComputeConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    def to_dict(self) -> dict[str, Any]:
        """The resolved configuration as plain data, every default filled in."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved configuration as YAML that `load_config` reads back to an equal one."""
        return to_yaml(self.to_dict())

    def experiment(self) -> dict[str, Any]:
        """The experiment as plain data, without where it runs and is tracked: what may be shared."""
        values = {k: v for k, v in self.to_dict().items() if k not in ("cluster", "tracking")}
        values["data"] = {k: v for k, v in values["data"].items() if k not in ("root", "cache")}
        del values["evaluation"]["gpus_per_actor"]
        return values

    @property
    def hash(self) -> str:
        """16 hex digits over all that determines the numbers: not name, checkpoint, compute, cluster, tracking."""
        numbers = {k: v for k, v in self.experiment().items() if k not in ("name", "checkpoint", "compute")}
        text = json.dumps(numbers, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_consistency(config: Config) -> None:
    """Raises: ConfigError for sections that do not go together, or schedules that do not fit the run."""
    _check_across_sections(config)
    _check_arithmetic(config)
    steps = config.outer.steps
    errors = [
        *truncation_errors(config.truncation, steps),
        *schedule_errors("inner.lr", config.inner.lr, steps),
        *schedule_errors("outer.lr", config.outer.lr, steps),
        *_patience_errors(config),
    ]
    if errors:
        raise ConfigError("\n".join(errors))


def _check_across_sections(config: Config) -> None:
    batch, ipc = config.inner.batch_per_class, config.distilled.ipc
    if batch is not None and batch > ipc:
        raise ConfigError(
            f"inner.batch_per_class: must be at most distilled.ipc, which is {ipc} (got {batch})"
        )
    if (sizes := config.evaluation.subsets) and sizes[-1] >= ipc:
        raise ConfigError(
            f"evaluation.subsets: must be below distilled.ipc, which is {ipc} (got {list(sizes)}); the whole set is "
            "always evaluated"
        )
    workers, replicas = config.cluster.num_workers, config.replicas
    if workers > replicas:
        raise ConfigError(
            f"cluster.num_workers: must be at most replicas, which is {replicas} (got {workers}); "
            "a worker without a replica would be idle"
        )
    at_once = config.compute.replicas_at_once
    if at_once != "auto" and at_once > replicas:
        raise ConfigError(
            f"compute.replicas_at_once: must be at most replicas, which is {replicas} (got {at_once})"
        )


def _check_arithmetic(config: Config) -> None:
    """Refuses a precision, engine or compute option that would have no effect."""
    if config.precision == "tf32" and not config.cluster.use_gpu:
        raise ConfigError("precision: tf32 has no effect without cluster.use_gpu; use float32 on CPUs")
    if config.evaluation.gpus_per_actor is not None and not config.cluster.use_gpu:
        raise ConfigError(
            "evaluation.gpus_per_actor: has no effect without cluster.use_gpu "
            f"(got {config.evaluation.gpus_per_actor}); remove it"
        )
    if config.precision == "bf16" and config.compute.product == "forward":
        raise ConfigError("compute.product: forward is not supported with precision bf16; use reverse")
    if config.engine == "higher":
        if config.precision == "bf16":
            raise ConfigError("precision: bf16 has no effect with engine higher; use float32 or tf32")
        default = ComputeConfig()
        for key in ComputeConfig.model_fields:
            if (value := getattr(config.compute, key)) != getattr(default, key):
                raise ConfigError(
                    f"compute.{key}: has no effect with engine higher (got {value!r}); remove it"
                )


def _patience_errors(config: Config) -> Iterator[str]:
    """A forward curriculum must be able to move: in a new position, the first validation cannot stall."""
    validations = (config.outer.steps - 1) // config.validation.every
    if isinstance(config.truncation, ForwardConfig) and config.truncation.patience >= validations:
        yield (
            f"truncation.patience: must be below the number of validations before the last outer step, which is "
            f"{validations} (got {config.truncation.patience}), or the window never moves; lower it or "
            "validation.every, or raise outer.steps"
        )


class DataRequest(Section):
    """The part of a configuration that says which data, and how they are split."""

    seed: Seed = 0
    """As in the configuration."""
    data: DataConfig
