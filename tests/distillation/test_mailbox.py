"""The board between a run's controller and its driver: no report lost, none taken twice."""

from ray_distill.core.metrics import StepMetrics
from ray_distill.distillation.mailbox import Posted, ReportMailbox


def report(step: int) -> Posted:
    return Posted([StepMetrics(step, {"outer_loss": 1.0}, 1e9 + step)])


def test_reports_stay_until_the_driver_names_them() -> None:
    """An answer that was lost on the way is given again; what the driver has is forgotten."""
    board = ReportMailbox()
    assert board.take(0) == (0, "workers are starting", [], 0)
    board.post_report(report(1))
    board.post_report(report(2))
    board.post(2, "loss 1.000")
    for _ in range(2):
        assert board.take(0) == (2, "loss 1.000", [report(1), report(2)], 2)
    board.post_report(report(3))
    assert board.take(2) == (2, "loss 1.000", [report(3)], 3)
    assert board.take(3) == (2, "loss 1.000", [], 3)
    board.post_report(report(4))
    assert board.take(3).posted == [report(4)]


def test_what_is_recorded_is_what_the_driver_says() -> None:
    board = ReportMailbox()
    assert board.recorded() == 0
    board.post_recorded(7)
    assert board.recorded() == 7
