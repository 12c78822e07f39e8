"""Progress of long work: a live bar on a terminal, occasional plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Update = Callable[[int, str], None]
"""(units done, status text)."""

Bar = Callable[[str, int], AbstractContextManager[Update]]
"""(label, total units) -> a progress bar."""

PLAIN_LINES = 10
"""How many lines are printed without a terminal; and how many more for status changes while nothing gets done."""


@contextmanager
def progress_bar(console: Console, label: str, total: int) -> Iterator[Update]:
    """Show a progress bar; yields the function that updates it."""
    if not console.is_terminal:
        yield _plain_lines(console, label, total)
        return
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=total, status="")
        yield lambda done, status: bar.update(task, completed=done, status=status)


def _plain_lines(console: Console, label: str, total: int) -> Update:
    printed, changes_left, last = -1, PLAIN_LINES, (0, "")

    def update(done: int, status: str) -> None:
        nonlocal printed, changes_left, last
        mark = done * PLAIN_LINES // total
        # A status that changes without progress tells why there is none: work that has not begun, or waits.
        changed = done == last[0] and status not in ("", last[1]) and changes_left > 0
        if (mark > printed and done > 0) or changed:
            printed, changes_left = mark if done else printed, changes_left - changed
            console.print(f"{label} {done}/{total} {status}", highlight=False)
        last = (done, status)

    return update


@contextmanager
def silent(label: str, total: int) -> Iterator[Update]:
    """A progress bar that shows nothing."""
    yield lambda done, status: None


def percent(update: Update) -> Callable[[str, int, int], None]:
    """Adapts a bar of 100 units to the progress of preparing data: (task, units done, total units)."""
    return lambda task, done, total: update(100 * done // total, f"percent, {task}")
