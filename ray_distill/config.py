"""The run as data: what an experiment is, read from YAML, checked once, printed whole.

An unknown key, a wrong type, a value out of range or an option that would have no effect in the chosen
mode is an error that names the key's path. `Config.hash` covers all that determines the numbers;
`cluster`, for one, does not, so a run may move to other machines.
"""

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, PositiveInt, ValidationError

from ray_distill.config_sections import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    DistilledConfig,
    EvaluationConfig,
    InnerConfig,
    NetworkConfig,
    NonNegativeInt,
    OuterConfig,
    Section,
    TrackingConfig,
    TruncationConfig,
    ValidationConfig,
)
from ray_distill.errors import MistakeError


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as a string, since it has no dot; people mean the number."""


class _YamlDumper(yaml.SafeDumper):
    """The loader's other half: quotes a string that the loader would take for a number."""


for _half in (_YamlLoader, _YamlDumper):
    _half.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


class ConfigError(MistakeError):
    """A configuration that cannot be run; the message names the key, the value, and what is allowed."""


class Config(Section):
    """One distillation."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The run's name: of its folder and in MLflow."""
    seed: NonNegativeInt = 0
    """Of every random draw."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of all arithmetic."""
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
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    def to_dict(self) -> dict[str, Any]:
        """The resolved configuration as plain data, every default filled in."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved configuration as YAML that `load` reads back to an equal one."""
        return yaml.dump(self.to_dict(), Dumper=_YamlDumper, sort_keys=False)

    def experiment(self) -> dict[str, Any]:
        """What the run is, as plain data, without where it runs and is recorded: what may be shared."""
        return {k: v for k, v in self.to_dict().items() if k not in ("cluster", "tracking")}

    @property
    def hash(self) -> str:
        """16 hex digits over all that determines the numbers: not the name, checkpoints, cluster, tracking."""
        numbers = {k: v for k, v in self.experiment().items() if k not in ("name", "checkpoint")}
        text = json.dumps(numbers, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _path(location: tuple[int | str, ...]) -> str:
    """A key's path as the user writes it: without the tag that pydantic adds for the truncation rule."""
    rules = {"bptt", "t-bptt", "r-bptt", "rat-bptt"}
    return ".".join(str(part) for part in location if part not in rules) or "the file"


_MESSAGES = {
    "missing": "is missing; it has no default",
    "union_tag_not_found": "truncation.rule is missing; allowed: bptt, t-bptt, r-bptt, rat-bptt",
    "union_tag_invalid": "truncation.rule is unknown; allowed: bptt, t-bptt, r-bptt, rat-bptt",
}


def _explain(error: Any) -> str:
    path, kind = _path(error["loc"]), error["type"]
    found = error["input"]
    if kind == "extra_forbidden":
        section, _, key = path.rpartition(".")
        where = f"in {section}" if section else "at the top"
        effect = " with this truncation.rule" if section == "truncation" else ""
        return (
            f"{path}: unknown key {key!r} {where}{effect} (found {found!r}); remove it or mend its spelling"
        )
    message = _MESSAGES.get(kind, error["msg"])
    hidden = kind in ("missing", "secret") or isinstance(found, dict | BaseModel)
    shown = "" if hidden else f" (found {found!r})"
    return f"{path}: {message}{shown}"


def _check_across_sections(config: Config) -> None:
    """What one section demands of another."""
    batch, ipc = config.inner.batch_per_class, config.distilled.ipc
    if batch is not None and batch > ipc:
        raise ConfigError(
            f"inner.batch_per_class: must be at most distilled.ipc, which is {ipc} (found {batch})"
        )
    workers, replicas = config.cluster.num_workers, config.replicas
    if workers > replicas:
        raise ConfigError(
            f"cluster.num_workers: must be at most replicas, which is {replicas} (found {workers}); "
            "a worker without a replica would idle"
        )


def parse(values: Mapping[str, Any]) -> Config:
    """Plain data -> a checked Config. Raises: ConfigError with one line for each mistake."""
    try:
        config = Config.model_validate(values)
    except ValidationError as e:
        raise ConfigError("\n".join(_explain(error) for error in e.errors())) from None
    _check_across_sections(config)
    return config


def _from_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_YamlLoader)


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`a.b=value` assignments (values in YAML) laid over nested plain data; the input is left as it is.

    Raises: ConfigError for one that is not of this form or reaches into something that is no section.
    """
    result: dict[str, Any] = copy.deepcopy(values)
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise ConfigError(f"--set {override!r}: write it as a.b=value, e.g. --set outer.lr=0.01")
        try:
            value = _from_yaml(text)
        except yaml.YAMLError as e:
            raise ConfigError(f"--set {path}: {text!r} is not a YAML value ({e})") from None
        section = result
        for key in keys[:-1]:
            inside = section.setdefault(key, {})
            if not isinstance(inside, dict):
                raise ConfigError(f"--set {path}: {key} is a value ({inside!r}), not a section")
            section = inside
        section[keys[-1]] = value
    return result


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain data of a YAML file. Raises: ConfigError if it cannot be read or is no mapping."""
    try:
        values = _from_yaml(path.read_text())
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read ({e})") from None
    except yaml.YAMLError as e:
        raise ConfigError(f"{path}: is not YAML ({' '.join(str(e).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must be a mapping of sections, not {type(values).__name__}")
    return values


def load(path: Path, overrides: Iterable[str] = ()) -> Config:
    """A configuration file with overrides laid over it. Raises: ConfigError."""
    return parse(apply_overrides(read_yaml(path), overrides))
