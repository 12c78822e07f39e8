"""What becomes of a run's reports: they go to MLflow, and the last one to the driver's progress bar.

The recorder lives in the process of Ray Train's controller. It imports no torch until a picture is drawn:
on a small machine every import there delays the training.
"""

import logging
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train

from ray_distill.points import Point
from ray_distill.tracking import StoreError, Tracker, TrackingError
from ray_distill.uris import masked

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

CHECKPOINT_FILE = "state.arrow"
"""The run's state inside a checkpoint's folder."""


def describe(values: dict[str, float]) -> str:
    """The newest measurements in a few words."""
    words = []
    if "outer_loss" in values:
        words.append(f"loss {values['outer_loss']:.3f}")
    if "best_validation_accuracy" in values:
        words.append(f"best validation {100 * values['best_validation_accuracy']:.1f}%")
    return "  ".join(words)


class Recorder(ray.train.UserCallback):
    """Passes reports on to MLflow and to the progress board; runs in the trainer's controller.

    Ray ends a run whose callback raises, so nothing here may. What a store that is away does not take waits
    here and is offered again with the next report; the progress bar says so. This process may be killed: until
    the board says that the store has a point, the workers keep it with their checkpoints and report it again.
    """

    def __init__(self, tracker: Tracker, board: Any, picture: list[Any]) -> None:
        """`picture` is a list of one reference to (preprocessing, class names): too large to send along."""
        self._tracker, self._board, self._picture = tracker, board, picture
        self._latest: dict[str, float] = {}
        self._waiting: list[Point] = []
        self._drawn: Any = None

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Record one report of all ranks; rank 0 speaks for all."""
        try:
            self._record([Point(*p) for p in metrics[0]["points"]], checkpoint)
            if "computation" in metrics[0]:
                self._tracker.set_tag("computation", metrics[0]["computation"])
        except Exception:
            logger.warning("a report could not be recorded: %s", masked(traceback.format_exc()))

    def _record(self, points: list[Point], kept: Any) -> None:
        self._waiting += points
        for point in points:
            self._latest |= point.values
        said = describe(self._latest)
        try:
            if self._waiting:
                self._board.post_recorded.remote(self._tracker.log_points(self._waiting))
            self._waiting = []
        except (TrackingError, StoreError) as e:
            said += f"  (MLflow is away, {len(self._waiting)} steps wait)"
            logger.warning("%s", e)
        if points:
            self._board.post.remote(points[-1].outer_step, said)
        if kept is not None:
            with kept.as_directory() as folder:
                sheet, outer_step = self._sheet(Path(folder) / CHECKPOINT_FILE)
            self._tracker.log_image(sheet, "distilled", outer_step)

    def _sheet(self, file: Path) -> "tuple[Image.Image, int]":
        """The contact sheet of a checkpoint, and its outer step."""
        from ray_distill import checkpoint, pictures

        tensors, record = checkpoint.load(file)
        if self._drawn is None:
            # Kept: a whitening computes its inverse once.
            self._drawn = ray.get(self._picture[0])
        preprocessing, class_names = self._drawn
        pixels = preprocessing.to_pixels(tensors["images"].float())
        classes = pictures.classes_by_row(tensors["labels"])
        return pictures.contact_sheet(pixels, classes, class_names), record["outer_step"]
