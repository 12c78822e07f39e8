"""The retry queue sends in order, retries until the store accepts, and never blocks the caller."""

import threading
from collections.abc import Callable

import pytest

from ray_distill.errors import RunError
from ray_distill.tracking import retry_queue
from ray_distill.tracking.retry_queue import RetryQueue, UnavailableError


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_queue, "MIN_BACKOFF_S", 0.001)
    monkeypatch.setattr(retry_queue, "MAX_BACKOFF_S", 0.002)


class Store:
    """Accepts items while it is available; counts the attempts."""

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self.attempts = 0
        self.available = threading.Event()
        self.attempted = threading.Event()
        self.available.set()

    def send(self, item: int) -> None:
        self.attempts += 1
        self.attempted.set()
        if not self.available.is_set():
            raise UnavailableError("the store is away")
        self.accepted.append(item)


def test_everything_is_sent_once_and_in_order() -> None:
    store = Store()
    queue = RetryQueue(store.send, pending=[1, 2])
    for item in range(3, 50):
        queue.put(item)
    assert queue.close(timeout_s=60) == 0
    assert store.accepted == list(range(1, 50))


def test_an_unavailable_store_gets_everything_later() -> None:
    """`put` returns while the store is unavailable, the error is reported, and then everything is sent, in order."""
    store = Store()
    store.available.clear()
    queue = RetryQueue(store.send)
    for item in range(5):
        queue.put(item)
    assert store.attempted.wait(60)
    assert not queue.flush(timeout_s=0.05)
    assert queue.num_pending == 5
    assert queue.last_error == "the store is away"
    assert store.accepted == []
    store.available.set()
    assert queue.flush(timeout_s=60)
    assert store.accepted == [0, 1, 2, 3, 4]
    assert queue.last_error is None
    assert queue.rejected == []


def test_close_times_out_and_returns_the_number_pending() -> None:
    """A call that never returns blocks neither `put` nor `close`."""
    forever = threading.Event()
    queue: RetryQueue[int] = RetryQueue(lambda _: forever.wait() and None)
    queue.put(1)
    queue.put(2)
    assert queue.close(timeout_s=0.05) == 2
    forever.set()


@pytest.mark.parametrize("error", [RunError("rejected"), KeyError("a bug of ours")])
def test_a_rejected_item_is_reported_and_does_not_block_the_rest(error: Exception) -> None:
    accepted = []

    def send(item: int) -> None:
        if item % 2:
            raise error
        accepted.append(item)

    queue = RetryQueue(send)
    for item in range(6):
        queue.put(item)
    assert queue.close(timeout_s=60) == 0
    assert accepted == [0, 2, 4]
    assert queue.rejected == [str(error)]


def test_nothing_is_sent_after_close() -> None:
    """A store that becomes available after `close` gets nothing more: a resumed process sends it."""
    store = Store()
    store.available.clear()
    queue = RetryQueue(store.send)
    queue.put(1)
    assert store.attempted.wait(60)
    assert queue.close(timeout_s=0.01) == 1
    attempts: Callable[[], int] = lambda: store.attempts  # noqa: E731
    queue._thread.join(60)
    store.available.set()
    assert not queue._thread.is_alive()
    assert store.accepted == []
    assert attempts() >= 1
