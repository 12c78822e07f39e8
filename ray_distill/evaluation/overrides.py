"""The configurations of an evaluation: those in the distilled sets, with options and overrides."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from ray_distill.config.config import Config, ConfigError
from ray_distill.config.evaluation import DEFAULT_BASELINES
from ray_distill.config.load import apply_overrides, parse_config

EVALUATION_SECTIONS = (
    "evaluation",
    "tracking",
    "data.source",
    "data.test_source",
    "data.root",
    "data.cache",
    "cluster.use_gpu",
)
"""What an evaluation can change; the other settings come with the dataset."""


class EvaluationOptions(TypedDict, total=False):
    """The section `evaluation` of a configuration (`config.evaluation`) as keyword arguments."""

    networks: Sequence[str]
    seeds: int
    horizons: Sequence[int] | int
    baselines: Sequence[str]
    random_real_draws: int
    whole_train_seeds: int
    whole_train_epochs: int
    whole_train_batch: int
    tune_lr: bool
    lr_grid: Sequence[float]
    lr_networks: int
    subsets: Sequence[int]
    subset_draws: int
    robustness: bool
    gpus_per_actor: float


def is_evaluation_option(override: str) -> bool:
    """Whether a `key=value` is in one of the EVALUATION_SECTIONS."""
    key = override.partition("=")[0]
    return any(key == section or key.startswith(f"{section}.") for section in EVALUATION_SECTIONS)


def evaluation_configs(
    values: Sequence[Mapping[str, Any]], options: Mapping[str, object], overrides: Iterable[str] = ()
) -> list[Config]:
    """The configurations of some sets, all with the section `evaluation` of the first, changed by options and overrides.

    Args:
        values: the configurations in the sets.
        options: as `EvaluationOptions`.
        overrides: `key=value` in the EVALUATION_SECTIONS, for all sets.

    Raises: ConfigError for another key, or an invalid value.
    """
    overrides = list(overrides)
    for override in overrides:
        if not is_evaluation_option(override):
            raise ConfigError(
                f"--set {override}: evaluate can change {', '.join(EVALUATION_SECTIONS)}; the other settings come with the dataset"
            )
    first = apply_overrides(dict(values[0]), overrides)
    overridden = {o.partition("=")[0] for o in overrides if o.startswith("evaluation.")}
    evaluation = first.get("evaluation", {}) | dict(options)
    first["evaluation"] = {
        key: value
        for key, value in evaluation.items()
        if f"evaluation.{key}" in overridden or key in options or not _has_no_effect(key, evaluation)
    }
    config = parse_config(first)
    section = {"evaluation": config.to_dict()["evaluation"]}
    return [config, *(parse_config(apply_overrides(dict(v), overrides) | section) for v in values[1:])]


def _has_no_effect(key: str, evaluation: Mapping[str, Any]) -> bool:
    """Whether a key of the set's configuration belongs to something that this evaluation does not do."""
    baseline = next((name for name in DEFAULT_BASELINES if key.startswith(f"{name}_")), None)
    if baseline is not None:
        return baseline not in evaluation.get("baselines", DEFAULT_BASELINES)
    needed = {"lr_grid": "tune_lr", "lr_networks": "tune_lr", "subset_draws": "subsets"}.get(key)
    return needed is not None and not evaluation.get(needed)
