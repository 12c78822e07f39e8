"""The mailbox between a run's controller and its driver: no report lost, none fetched twice."""

from ray_distill.core.metrics import StepMetrics
from ray_distill.distillation.mailbox import ReportMailbox, RunReport


def report(step: int) -> RunReport:
    return RunReport([StepMetrics(step, {"outer_loss": 1.0}, 1e9 + step)])


def test_reports_stay_until_the_driver_acknowledges_them() -> None:
    """An answer that was lost on the way is given again; what the driver has is dropped."""
    mailbox = ReportMailbox()
    assert mailbox.fetch(0) == (0, "workers are starting", [], 0)
    mailbox.add_report(report(1))
    mailbox.add_report(report(2))
    mailbox.set_status(2, "loss 1.000")
    for _ in range(2):
        assert mailbox.fetch(0) == (2, "loss 1.000", [report(1), report(2)], 2)
    mailbox.add_report(report(3))
    assert mailbox.fetch(2) == (2, "loss 1.000", [report(3)], 3)
    assert mailbox.fetch(3) == (2, "loss 1.000", [], 3)
    mailbox.add_report(report(4))
    assert mailbox.fetch(3).reports == [report(4)]


def test_the_driver_sets_the_step_that_is_logged() -> None:
    mailbox = ReportMailbox()
    assert mailbox.logged_step() == 0
    mailbox.set_logged_step(7)
    assert mailbox.logged_step() == 7
