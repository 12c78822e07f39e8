"""How networks are trained on a distilled set, in the words in which an artefact says it."""

from dataclasses import asdict
from typing import Any

from ray_distill.builders import settings
from ray_distill.config.config import Config


def protocol_of(config: Config, num_classes: int) -> dict[str, Any]:
    """Network, optimiser, inner batch, augmentation and steps of the configuration, as plain data."""
    inner = config.inner
    return {
        "network": config.network.model_dump(mode="json"),
        "optimizer": {"name": inner.optimizer, **asdict(settings.inner_optimizer(config))},
        "batch_per_class": inner.batch_per_class or config.distilled.ipc,
        "classes_per_batch": inner.classes_per_batch or num_classes,
        "augmentation": list(inner.augmentation),
        "augmentation_mode": inner.augmentation_mode,
        "inner_steps": config.evaluation.horizons[-1],
    }
