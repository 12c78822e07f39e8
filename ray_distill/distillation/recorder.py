"""What becomes of a run's reports: the driver records them in MLflow, in a thread of its own.

The Recorder, in the process of Ray Train's controller, only passes them to the progress board: whatever holds that
process up holds up the training. It imports no torch until a picture is drawn: on a small machine every import
there delays the training too. The driver takes them from the board once a second, and has nothing else to do.
"""

import io
import logging
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train

from ray_distill.core.metrics import StepMetrics
from ray_distill.distillation.mailbox import Posted
from ray_distill.tracking.retry_queue import RetryQueue
from ray_distill.tracking.tracker import DAMAGED_TAG, Tracker
from ray_distill.utils.progress import Update
from ray_distill.utils.secrets import redact

logger = logging.getLogger(__name__)

CHECKPOINT_FILE = "state.arrow"
"""The run's state inside a checkpoint's folder."""

FLUSH_WITHIN_S = 30.0
"""How long the end of the training waits for MLflow."""


def describe(values: dict[str, float]) -> str:
    """The newest measurements in a few words."""
    words = []
    if "outer_loss" in values:
        words.append(f"loss {values['outer_loss']:.3f}")
    if "best_validation_accuracy" in values:
        words.append(f"best validation {100 * values['best_validation_accuracy']:.1f}%")
    return "  ".join(words)


class Recorder(ray.train.UserCallback):
    """Passes reports on to the board; runs in the trainer's controller.

    Ray ends a run whose callback raises, so nothing here may.
    """

    def __init__(self, board: Any, picture: list[Any]) -> None:
        """`picture` is a list of one reference to (preprocessing, class names): too large to send along."""
        self._board, self._picture = board, picture
        self._latest: dict[str, float] = {}
        self._drawn: Any = None

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Pass on one report of all ranks; rank 0 speaks for all."""
        try:
            points = [StepMetrics(*p) for p in metrics[0]["points"]]
            posted = Posted(points, metrics[0].get("computation"), metrics[0].get("damaged"))
            # Waited for: this process may end with its last report.
            ray.get(self._board.post_report.remote(posted), timeout=10)
            for point in points:
                self._latest |= point.values
            if points:
                self._board.post.remote(points[-1].outer_step, describe(self._latest))
            if checkpoint is not None:
                with checkpoint.as_directory() as folder:
                    drawn = self._draw(Path(folder) / CHECKPOINT_FILE)
                ray.get(self._board.post_report.remote(drawn), timeout=10)
        except Exception:
            logger.warning("a report could not be passed on: %s", redact(traceback.format_exc()))

    def _draw(self, file: Path) -> Posted:
        """The contact sheet of a checkpoint, which Ray may delete before anybody else reads it."""
        from ray_distill.artifacts import contact_sheet
        from ray_distill.distillation import checkpoint

        tensors, record = checkpoint.load_tensors(file)
        if self._drawn is None:
            # Kept: a whitening computes its inverse once.
            self._drawn = ray.get(self._picture[0])
        preprocessing, class_names = self._drawn
        pixels = preprocessing.to_pixels(tensors["images"].float())
        classes = contact_sheet.classes_by_row(tensors["labels"])
        png = io.BytesIO()
        contact_sheet.contact_sheet(pixels, classes, class_names).save(png, "PNG")
        return Posted([], picture_png=png.getvalue(), picture_outer_step=record["outer_step"])


class RunRecording:
    """Carries a run's reports from the board to MLflow; lives in the driver.

    This process may be killed, or the store may be away until the end: until the board says that the store has a
    point, the workers keep it with their checkpoints.
    """

    def __init__(self, tracker: Tracker, board: Any) -> None:
        self._tracker, self._board = tracker, board
        self._number = 0
        self._recording: RetryQueue[Posted] = RetryQueue(self._say)

    def visit(self, update: Update) -> None:
        """Take what is new on the board, and show how far the run has come."""
        # A board that is gone must not harm the run that it speaks of.
        with suppress(ray.exceptions.RayError):
            taken = ray.get(self._board.take.remote(self._number), timeout=10)
            for posted in taken.posted:
                if posted.damaged:
                    logger.warning("%s", posted.damaged)
                self._recording.put(posted)
            self._number = taken.number
            away = self._recording.last_error is not None
            waits = f"  (MLflow is away, {self._recording.num_pending} reports wait)" if away else ""
            update(taken.done, taken.said + waits)

    def close(self) -> None:
        """Wait for MLflow, but not for ever. What it has not got then is among the last checkpoint's points."""
        left = self._recording.close(FLUSH_WITHIN_S)
        if left:
            logger.warning(
                "MLflow has not taken %d reports: %s", left, self._recording.last_error or "it is slow"
            )

    def _say(self, posted: Posted) -> None:
        if posted.points:
            self._board.post_recorded.remote(self._tracker.log_steps(posted.points))
        if posted.computation is not None:
            self._tracker.set_tag("computation", posted.computation)
        if posted.damaged is not None:
            self._tracker.set_tag(DAMAGED_TAG, posted.damaged)
        if posted.picture_png is not None:
            from PIL import Image

            picture = Image.open(io.BytesIO(posted.picture_png))
            self._tracker.log_image(picture, "distilled", posted.picture_outer_step)
