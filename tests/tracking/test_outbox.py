"""What is said in a thread: in order, until it is taken, and never in the way of who says it."""

import threading
from collections.abc import Callable

import pytest

from ray_distill.errors import RunError
from ray_distill.tracking import outbox
from ray_distill.tracking.outbox import AwayError, RetryQueue


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(outbox, "LONGEST_PAUSE_S", 0.002)


class Store:
    """Takes things, unless it is away; counts what it was offered."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.offered = 0
        self.here = threading.Event()
        self.asked = threading.Event()
        self.here.set()

    def take(self, thing: int) -> None:
        self.offered += 1
        self.asked.set()
        if not self.here.is_set():
            raise AwayError("the store is away")
        self.taken.append(thing)


def test_all_is_said_once_and_in_order() -> None:
    store = Store()
    record = RetryQueue(store.take, waiting=[1, 2])
    for thing in range(3, 50):
        record.put(thing)
    assert record.close(within_s=60) == 0
    assert store.taken == list(range(1, 50))


def test_a_store_that_is_away_gets_everything_later() -> None:
    """`put` returns while the store is away, the trouble is told, and then all of it is taken, in order."""
    store = Store()
    store.here.clear()
    record = RetryQueue(store.take)
    for thing in range(5):
        record.put(thing)
    assert store.asked.wait(60)
    assert not record.flush(within_s=0.05)
    assert record.num_waiting == 5
    assert record.trouble == "the store is away"
    assert store.taken == []
    store.here.set()
    assert record.flush(within_s=60)
    assert store.taken == [0, 1, 2, 3, 4]
    assert record.trouble is None
    assert record.refused == []


def test_the_end_waits_so_long_and_no_longer_and_says_what_is_left() -> None:
    """A call that never comes back holds up neither `put` nor `close`."""
    forever = threading.Event()
    record: RetryQueue[int] = RetryQueue(lambda _: forever.wait() and None)
    record.put(1)
    record.put(2)
    assert record.close(within_s=0.05) == 2
    forever.set()


@pytest.mark.parametrize("error", [RunError("refused"), KeyError("a mistake of ours")])
def test_what_is_refused_is_told_and_stands_in_nobodys_way(error: Exception) -> None:
    taken = []

    def take(thing: int) -> None:
        if thing % 2:
            raise error
        taken.append(thing)

    record = RetryQueue(take)
    for thing in range(6):
        record.put(thing)
    assert record.close(within_s=60) == 0
    assert taken == [0, 2, 4]
    assert record.refused == [str(error)]


def test_after_the_end_nothing_is_said() -> None:
    """A store that comes back after `close` gets nothing more: who resumes says it."""
    store = Store()
    store.here.clear()
    record = RetryQueue(store.take)
    record.put(1)
    assert store.asked.wait(60)
    assert record.close(within_s=0.01) == 1
    offered: Callable[[], int] = lambda: store.offered  # noqa: E731
    record._thread.join(60)
    store.here.set()
    assert not record._thread.is_alive()
    assert store.taken == []
    assert offered() >= 1
