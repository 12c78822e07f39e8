"""A thread that says things to a store, in order: a store that is away, or locked, delays nobody.

What the store does not take now is offered again, less and less often, until it is taken; what it understands
and refuses is said in a warning and passed over, so that it does not stand in the way of the rest.
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

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
"""Between two offers to a store that is away."""


class AwayError(RunError):
    """The store cannot be reached, or is busy: what it was offered may be taken later."""


class RetryQueue(Generic[T]):
    """Calls a function on each thing that is put in, one after another, in a thread of its own.

    The function may raise AwayError, and is then called again with the same thing: it must be able to say a
    thing twice. A process that ends without `close` loses what waits: who cannot bear that keeps it on disk too.
    """

    def __init__(self, say: Callable[[T], None], waiting: list[T] | None = None) -> None:
        """`waiting`: what an earlier recording could not say."""
        self._say = say
        self._waiting: deque[T] = deque(waiting or [])
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._trouble: str | None = None
        self._refused: list[str] = []
        self._thread = threading.Thread(target=self._run, name="recording", daemon=True)
        self._thread.start()

    def put(self, thing: T) -> None:
        """Have a thing said, after those before it. Returns at once."""
        with self._changed:
            self._waiting.append(thing)
            self._changed.notify_all()

    @property
    def num_waiting(self) -> int:
        """How many things are not said yet."""
        return len(self._waiting)

    @property
    def trouble(self) -> str | None:
        """Why the store does not take what waits; None while it does."""
        return self._trouble

    @property
    def refused(self) -> list[str]:
        """What the store said to things that it refused; the same answer once."""
        return list(self._refused)

    def flush(self, within_s: float) -> bool:
        """Wait until all is said, or the seconds are over. Returns: whether all is said."""
        deadline = time.monotonic() + within_s
        with self._changed:
            while self._waiting:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
        return True

    def close(self, within_s: float) -> int:
        """Flush, and say nothing more. Returns: how many things are left unsaid."""
        self.flush(within_s)
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
            return len(self._waiting)

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while (thing := self._next()) is not None:
            try:
                self._say(thing[0])
                self._trouble = None
            except AwayError as e:
                if self._trouble is None:
                    logger.warning("%s (offered again until it is taken)", e)
                self._trouble = str(e)
                self._stop.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                continue
            except Exception as e:
                # The thread must outlive what it says.
                self._refuse(e)
            pause_s = FIRST_PAUSE_S
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()

    def _next(self) -> tuple[T] | None:
        """The first thing that waits, when there is one; None at the end."""
        with self._changed:
            while not self._waiting and not self._stop.is_set():
                self._changed.wait()
            return None if self._stop.is_set() else (self._waiting[0],)

    def _refuse(self, error: Exception) -> None:
        said = str(error) or type(error).__name__
        if said not in self._refused:
            self._refused.append(said)
            logger.warning("%s", said, exc_info=None if isinstance(error, RunError) else error)
