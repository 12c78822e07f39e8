"""The run as data: what an experiment is, read from YAML, checked once, printed whole.

An unknown key, a wrong type, a value out of range or an option that would have no effect in the chosen
mode is an error that names the key's path. `Config.hash` covers all that determines the numbers;
`cluster`, for one, does not, so a run may move to other machines.
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
    """The run's name: of its folder and in MLflow."""
    seed: Seed = 0
    """Of every random draw."""
    precision: Literal["float64", "float32", "tf32", "bf16"] = "float32"
    """Of the arithmetic. tf32: float32, its products in TF32 (GPUs only). bf16: float32, the networks of the
    inner training under autocast to bfloat16."""
    engine: Literal["adjoint", "higher"] = "adjoint"
    """The tape-free adjoint, or the slow reference that keeps a tape."""
    replicas: PositiveInt = 1
    """Independent metagradients averaged at each outer step."""
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
        """The resolved configuration as YAML that `load` reads back to an equal one."""
        return to_yaml(self.to_dict())

    def experiment(self) -> dict[str, Any]:
        """What the run is, as plain data, without where it runs and is recorded: what may be shared."""
        values = {k: v for k, v in self.to_dict().items() if k not in ("cluster", "tracking")}
        values["data"] = {k: v for k, v in values["data"].items() if k not in ("root", "cache")}
        del values["evaluation"]["gpus_per_actor"]
        return values

    @property
    def hash(self) -> str:
        """16 hex digits over all that determines the numbers: not name, checkpoints, compute, cluster, tracking."""
        numbers = {k: v for k, v in self.experiment().items() if k not in ("name", "checkpoint", "compute")}
        text = json.dumps(numbers, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def check(config: Config) -> None:
    """What no section can check alone. Raises: ConfigError."""
    _check_across_sections(config)
    _check_over_the_run(config)


def _check_across_sections(config: Config) -> None:
    """What one section demands of another."""
    batch, ipc = config.inner.batch_per_class, config.distilled.ipc
    if batch is not None and batch > ipc:
        raise ConfigError(
            f"inner.batch_per_class: must be at most distilled.ipc, which is {ipc} (found {batch})"
        )
    if (sizes := config.evaluation.subsets) and sizes[-1] >= ipc:
        raise ConfigError(
            f"evaluation.subsets: must be below distilled.ipc, which is {ipc} (found {list(sizes)}); the set itself is "
            "judged in any case"
        )
    workers, replicas = config.cluster.num_workers, config.replicas
    if workers > replicas:
        raise ConfigError(
            f"cluster.num_workers: must be at most replicas, which is {replicas} (found {workers}); "
            "a worker without a replica would idle"
        )
    at_once = config.compute.replicas_at_once
    if at_once != "auto" and at_once > replicas:
        raise ConfigError(
            f"compute.replicas_at_once: must be at most replicas, which is {replicas} (found {at_once})"
        )
    _check_arithmetic(config)


def _check_arithmetic(config: Config) -> None:
    """That no choice of precision, engine or computation is without effect."""
    if config.precision == "tf32" and not config.cluster.use_gpu:
        raise ConfigError("precision: tf32 has no effect without cluster.use_gpu; use float32 on CPUs")
    if config.evaluation.gpus_per_actor is not None and not config.cluster.use_gpu:
        raise ConfigError(
            "evaluation.gpus_per_actor: has no effect without cluster.use_gpu "
            f"(found {config.evaluation.gpus_per_actor}); remove it"
        )
    if config.precision == "bf16" and config.compute.product == "forward":
        raise ConfigError("compute.product: forward does not go with precision bf16; use reverse")
    if config.engine == "higher":
        if config.precision == "bf16":
            raise ConfigError("precision: bf16 has no effect with engine higher; use float32 or tf32")
        default = ComputeConfig()
        for key in ComputeConfig.model_fields:
            if (found := getattr(config.compute, key)) != getattr(default, key):
                raise ConfigError(
                    f"compute.{key}: has no effect with engine higher (found {found!r}); remove it"
                )


def _check_over_the_run(config: Config) -> None:
    """That schedules, and the lengths that they give, fit at every outer step: no run dies of them half-way."""
    steps = config.outer.steps
    lines = [
        *truncation_errors(config.truncation, steps),
        *schedule_errors("inner.lr", config.inner.lr, steps),
        *schedule_errors("outer.lr", config.outer.lr, steps),
    ]
    lines += _patience_misfits(config)
    if lines:
        raise ConfigError("\n".join(lines))


def _patience_misfits(config: Config) -> Iterator[str]:
    """That a forward curriculum could move at all: at a new place, the first validation cannot stall."""
    validations = (config.outer.steps - 1) // config.validation.every
    if isinstance(config.truncation, ForwardConfig) and config.truncation.patience >= validations:
        yield (
            f"truncation.patience: the window could never move: that takes patience + 1 validations, and there "
            f"are {validations} before the last outer step (found {config.truncation.patience}); lower it or "
            "validation.every, or raise outer.steps"
        )


class DataRequest(Section):
    """The part of a distillation that says which data, and how they are split."""

    seed: Seed = 0
    """As in the configuration."""
    data: DataConfig
