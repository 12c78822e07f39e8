"""A background thread that sends items to a store in order, and retries while the store is unavailable.

An item that the store rejects is logged as a warning and skipped, so that it does not block the rest.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from ray_distill.errors import RunError

T = TypeVar("T")
logger = logging.getLogger(__name__)

MIN_BACKOFF_S, MAX_BACKOFF_S = 0.2, 5.0
"""Between two attempts while the store is unavailable; doubled each time."""


class UnavailableError(RunError):
    """The store cannot be reached, or is busy: a retry may succeed."""


class RetryQueue(Generic[T]):
    """Calls `send` on each item, one after another, in a thread of its own.

    If `send` raises UnavailableError, it is called again with the same item: it must be idempotent. Items still pending
    when the process ends without `close` are lost; callers that cannot afford that also keep them on disk.
    """

    def __init__(self, send: Callable[[T], None], pending: list[T] | None = None) -> None:
        """`pending`: items that an earlier queue could not send."""
        self._send = send
        self._pending: deque[T] = deque(pending or [])
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._last_error: str | None = None
        self._rejected: list[str] = []
        self._thread = threading.Thread(target=self._run, name="retry-queue", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Queue an item. Returns at once."""
        with self._changed:
            self._pending.append(item)
            self._changed.notify_all()

    @property
    def num_pending(self) -> int:
        """How many items are not sent yet."""
        return len(self._pending)

    @property
    def last_error(self) -> str | None:
        """Why the store is unavailable; None while it accepts items."""
        return self._last_error

    @property
    def rejected(self) -> list[str]:
        """The distinct errors with which the store rejected items."""
        return list(self._rejected)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is sent, or for the timeout. Returns: whether everything is sent."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while self._pending:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
        return True

    def close(self, timeout_s: float) -> int:
        """Flush, then stop sending. Returns: how many items are still pending."""
        self.flush(timeout_s)
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
            return len(self._pending)

    def _run(self) -> None:
        backoff_s = MIN_BACKOFF_S
        while (item := self._next()) is not None:
            try:
                self._send(item[0])
                self._last_error = None
            except UnavailableError as e:
                if self._last_error is None:
                    logger.warning("%s (will retry)", e)
                self._last_error = str(e)
                self._stop.wait(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
                continue
            except Exception as e:
                # The thread must outlive any item.
                self._reject(e)
            backoff_s = MIN_BACKOFF_S
            with self._changed:
                self._pending.popleft()
                self._changed.notify_all()

    def _next(self) -> tuple[T] | None:
        """Waits for the first pending item; None after `close`."""
        with self._changed:
            while not self._pending and not self._stop.is_set():
                self._changed.wait()
            return None if self._stop.is_set() else (self._pending[0],)

    def _reject(self, error: Exception) -> None:
        message = str(error) or type(error).__name__
        if message not in self._rejected:
            self._rejected.append(message)
            logger.warning("%s", message, exc_info=None if isinstance(error, RunError) else error)
