"""Progress of long work: a live bar on a terminal, a plain line now and then anywhere else."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Update = Callable[[int, str], None]
"""(units done, what to say beside them)."""

Bar = Callable[[str, int], AbstractContextManager[Update]]
"""(what, total units) -> a progress bar."""

PLAIN_LINES = 10
"""How many lines a piece of work prints where there is no terminal; and how many more of news while nothing gets done."""


@contextmanager
def progress_bar(console: Console, what: str, total: int) -> Iterator[Update]:
    """Shows how far `what` has come; yields the function that moves it."""
    if not console.is_terminal:
        yield _plain_lines(console, what, total)
        return
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=total, said="")
        yield lambda done, said: bar.update(task, completed=done, said=said)


def _plain_lines(console: Console, what: str, total: int) -> Update:
    printed, news_left, last = -1, PLAIN_LINES, (0, "")

    def update(done: int, said: str) -> None:
        nonlocal printed, news_left, last
        mark = done * PLAIN_LINES // total
        # What comes without progress is why there is none: work that has not begun, or waits.
        news = done == last[0] and said not in ("", last[1]) and news_left > 0
        if (mark > printed and done > 0) or news:
            printed, news_left = mark if done else printed, news_left - news
            console.print(f"{what} {done}/{total} {said}", highlight=False)
        last = (done, said)

    return update


@contextmanager
def silent(what: str, total: int) -> Iterator[Update]:
    """A progress bar that shows nothing."""
    yield lambda done, said: None


def percent(update: Update) -> Callable[[str, int, int], None]:
    """A bar of 100 units as the progress of preparing data: (what is being done, units done, units in all)."""
    return lambda what, done, total: update(100 * done // total, f"percent, {what}")
