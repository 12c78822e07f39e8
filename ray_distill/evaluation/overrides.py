"""What an evaluation can change of the configurations in distilled sets."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
"""What an evaluation can change; the rest is the set's own."""


def is_evaluation_option(override: str) -> bool:
    """Whether a `key=value` is about what `EVALUATION_SECTIONS` names."""
    key = override.partition("=")[0]
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in EVALUATION_SECTIONS)


def evaluation_configs(
    values: Sequence[Mapping[str, Any]], options: Mapping[str, Any], overrides: Iterable[str] = ()
) -> list[Config]:
    """The configurations in some artefacts, all with one evaluation: the first one's, with what is to be changed.

    Args:
        options: keys of the section `evaluation`.
        overrides: `key=value` for what `EVALUATION_SECTIONS` names.

    Raises: ConfigError for another key, or a value that cannot be.
    """
    overrides = list(overrides)
    for override in overrides:
        if not is_evaluation_option(override):
            raise ConfigError(
                f"--set {override}: evaluate can change {', '.join(EVALUATION_SECTIONS)}; the rest is the set's own"
            )
    first = apply_overrides(dict(values[0]), overrides)
    given = {o.partition("=")[0] for o in overrides if o.startswith("evaluation.")}
    evaluation = first.get("evaluation", {}) | dict(options)
    first["evaluation"] = {
        key: value
        for key, value in evaluation.items()
        if f"evaluation.{key}" in given or key in options or not _idle(key, evaluation)
    }
    judging = parse_config(first)
    section = judging.to_dict()["evaluation"]
    others = [apply_overrides(dict(of), overrides) | {"evaluation": section} for of in values[1:]]
    return [judging, *(parse_config(other) for other in others)]


def _idle(key: str, evaluation: Mapping[str, Any]) -> bool:
    """Whether a key that the set brought along is about something that is not done any more."""
    about = next((name for name in DEFAULT_BASELINES if key.startswith(f"{name}_")), None)
    if about is not None:
        return about not in evaluation.get("baselines", DEFAULT_BASELINES)
    needed = {"lr_grid": "tune_lr", "lr_networks": "tune_lr", "subset_draws": "subsets"}.get(key)
    return needed is not None and not evaluation.get(needed)
