"""The way of a run's reports to MLflow: from Ray Train's controller to the mailbox, from there to the driver.

The controller only forwards them, since whatever blocks its process blocks the training; it imports no torch until it
draws a picture, since on a small machine every import there delays the training too. The driver polls the mailbox once
a second and logs to MLflow in a background thread.
"""

import io
import logging
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import ray.train

from ray_distill.core.metrics import StepMetrics
from ray_distill.distillation.callbacks import Callback, CallbackList
from ray_distill.distillation.mailbox import RunReport
from ray_distill.tracking.retry_queue import RetryQueue
from ray_distill.tracking.tracker import DAMAGED_TAG, Tracker
from ray_distill.utils.progress import Update
from ray_distill.utils.secrets import redact

logger = logging.getLogger(__name__)

CHECKPOINT_FILE = "state.arrow"
"""The run's state inside a checkpoint's folder."""

FLUSH_TIMEOUT_S = 30.0
"""How long the end of the training waits for MLflow."""


def status_text(values: dict[str, float]) -> str:
    """The latest metrics for the progress bar."""
    parts = []
    if "outer_loss" in values:
        parts.append(f"loss {values['outer_loss']:.3f}")
    if "best_validation_accuracy" in values:
        parts.append(f"best validation {100 * values['best_validation_accuracy']:.1f}%")
    return "  ".join(parts)


class ReportForwarder(ray.train.UserCallback):
    """Forwards reports to the mailbox; runs in Ray Train's controller.

    Ray ends a run whose callback raises, so nothing here may.
    """

    def __init__(self, mailbox: Any, fitted: list[Any]) -> None:
        """`fitted`: a list of one reference to (preprocessing, class names), which are too large to pickle."""
        self._mailbox, self._fitted_ref = mailbox, fitted
        self._latest: dict[str, float] = {}
        self._fitted: Any = None

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Forward one report of all ranks; only rank 0's is used."""
        try:
            steps = [StepMetrics(*s) for s in metrics[0]["points"]]
            report = RunReport(steps, metrics[0].get("computation"), metrics[0].get("damaged"))
            # Waited for: this process may end with its last report.
            ray.get(self._mailbox.add_report.remote(report), timeout=10)
            for step in steps:
                self._latest |= step.values
            if steps:
                self._mailbox.set_status.remote(steps[-1].outer_step, status_text(self._latest))
            if checkpoint is not None:
                with checkpoint.as_directory() as folder:
                    picture = self._picture(Path(folder) / CHECKPOINT_FILE)
                ray.get(self._mailbox.add_report.remote(picture), timeout=10)
        except Exception:
            logger.warning("a report could not be forwarded: %s", redact(traceback.format_exc()))

    def _picture(self, file: Path) -> RunReport:
        """The contact sheet of a checkpoint, drawn here because Ray may delete the checkpoint at any time."""
        from ray_distill.artifacts import contact_sheet
        from ray_distill.distillation import checkpoint

        tensors, record = checkpoint.load_tensors(file)
        if self._fitted is None:
            # Cached: a whitening computes its inverse once.
            self._fitted = ray.get(self._fitted_ref[0])
        preprocessing, class_names = self._fitted
        pixels = preprocessing.to_pixels(tensors["images"].float())
        classes = contact_sheet.intended_classes(tensors["labels"])
        png = io.BytesIO()
        contact_sheet.contact_sheet(pixels, classes, class_names).save(png, "PNG")
        return RunReport([], picture_png=png.getvalue(), picture_outer_step=record["outer_step"])


class ReportLogger:
    """Logs a run's reports from the mailbox to MLflow; lives in the driver.

    The driver may be killed, or MLflow may be unavailable until the end: the workers keep metrics in their checkpoints
    until the mailbox says that MLflow has them.
    """

    def __init__(self, tracker: Tracker, mailbox: Any, callbacks: Sequence[Callback] = ()) -> None:
        self._tracker, self._mailbox = tracker, mailbox
        self._callbacks = CallbackList(callbacks)
        self._number = 0
        self._queue: RetryQueue[RunReport] = RetryQueue(self._log)

    def poll(self, update: Update) -> None:
        """Queue new reports for MLflow, update the progress bar, and call the callbacks."""
        reports: list[RunReport] = []
        # A lost mailbox must not harm the run.
        with suppress(ray.exceptions.RayError):
            contents = ray.get(self._mailbox.fetch.remote(self._number), timeout=10)
            reports = contents.reports
            for report in reports:
                if report.damaged_checkpoints:
                    logger.warning("%s", report.damaged_checkpoints)
                self._queue.put(report)
            self._number = contents.number
            unavailable = self._queue.last_error is not None
            note = f"  (MLflow unavailable, {self._queue.num_pending} reports pending)" if unavailable else ""
            update(contents.done, contents.status + note)
        for report in reports:
            self._callbacks(report)

    def close(self) -> None:
        """Wait for MLflow up to a limit. Metrics that are still pending are in the last checkpoint."""
        pending = self._queue.close(FLUSH_TIMEOUT_S)
        if pending:
            logger.warning(
                "%d reports are not in MLflow: %s", pending, self._queue.last_error or "it is too slow"
            )

    def _log(self, report: RunReport) -> None:
        if report.steps:
            self._mailbox.set_logged_step.remote(self._tracker.log_steps(report.steps))
        if report.compile_status is not None:
            self._tracker.set_tag("computation", report.compile_status)
        if report.damaged_checkpoints is not None:
            self._tracker.set_tag(DAMAGED_TAG, report.damaged_checkpoints)
        if report.picture_png is not None:
            from PIL import Image

            picture = Image.open(io.BytesIO(report.picture_png))
            self._tracker.log_image(picture, "distilled", report.picture_outer_step)
