"""Callbacks: what a caller may do while a distillation runs. They run in the driver, between its looks at the workers."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

    from ray_distill.config.config import Config


class Callback:
    """Override what you need. Workers don't wait for a callback; an exception that it raises ends the run."""

    def on_start(self, config: "Config", folder: Path) -> None:
        """Before anything is computed: the checked configuration, and the folder of the results."""

    def on_outer_step(self, outer_step: int, metrics: Mapping[str, float]) -> None:
        """After each outer step, in order: its metrics by name, as in MLflow."""

    def on_validation(self, outer_step: int, metrics: Mapping[str, float]) -> None:
        """After an outer step with a validation: its metrics, `validation_accuracy` (a fraction) among them."""

    def on_checkpoint(self, outer_step: int, picture: "Image.Image") -> None:
        """After a checkpoint was saved: a contact sheet of D."""
