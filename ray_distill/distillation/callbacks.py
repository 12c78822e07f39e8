"""Callbacks: what a caller can do while a distillation runs. They run in the driver, as reports arrive about once a second."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray_distill.distillation.mailbox import RunReport

if TYPE_CHECKING:
    from PIL import Image

    from ray_distill.config.config import Config


class Callback:
    """Override the methods that you need. Workers do not wait for them; an exception in one ends the run."""

    def on_start(self, config: "Config", folder: Path) -> None:
        """Before the first outer step: the checked configuration, and the folder of the results."""

    def on_outer_step(self, outer_step: int, metrics: Mapping[str, float]) -> None:
        """After each outer step, in order: its metrics, under their names in MLflow."""

    def on_validation(self, outer_step: int, metrics: Mapping[str, float]) -> None:
        """After each outer step with a validation: its metrics, with `validation_accuracy` (a fraction)."""

    def on_checkpoint(self, outer_step: int, picture: "Image.Image") -> None:
        """After each checkpoint: the contact sheet of D."""


class CallbackList:
    """Calls callbacks for each report. A step that a restarted worker repeats is passed on once."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks
        self._last_step = 0
        self._last_picture = 0

    def __call__(self, report: RunReport) -> None:
        """Call them for the steps and the checkpoint of a report."""
        if not self._callbacks:
            return
        for step in report.steps:
            if step.outer_step > self._last_step:
                self._last_step = step.outer_step
                for callback in self._callbacks:
                    callback.on_outer_step(step.outer_step, step.values)
                    if "validation_accuracy" in step.values:
                        callback.on_validation(step.outer_step, step.values)
        if report.picture_png and report.picture_outer_step > self._last_picture:
            from PIL import Image

            self._last_picture = report.picture_outer_step
            for callback in self._callbacks:
                callback.on_checkpoint(report.picture_outer_step, Image.open(io.BytesIO(report.picture_png)))
