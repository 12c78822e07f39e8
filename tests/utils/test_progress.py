"""Progress without a terminal."""

import io

from rich.console import Console

from ray_distill.utils.progress import progress_bar


def test_a_line_for_every_tenth_and_for_status_changes_without_progress() -> None:
    """Of 40 units every fourth is a line. A status that changes without progress is printed once, also in mid-work; one
    that comes with progress is not; and their number is limited."""
    out = io.StringIO()
    with progress_bar(Console(file=out, width=200), "evaluating", 40) as update:
        update(0, "")
        update(0, "2 actor(s) start")
        for done in range(1, 6):
            update(done, f"accuracy {done}")
        for _ in range(3):
            update(5, "waits for 1 CPU")
        for n in range(20):
            update(5, f"news {n}")
        update(8, "accuracy 8")
    lines = out.getvalue().splitlines()
    assert lines[:3] == [
        "evaluating 0/40 2 actor(s) start",
        "evaluating 1/40 accuracy 1",
        "evaluating 4/40 accuracy 4",
    ]
    assert lines[3:5] == ["evaluating 5/40 waits for 1 CPU", "evaluating 5/40 news 0"]
    assert lines[-2:] == ["evaluating 5/40 news 7", "evaluating 8/40 accuracy 8"]
