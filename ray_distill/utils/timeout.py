"""A time limit for a blocking call."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from ray_distill.errors import RunError

T = TypeVar("T")


def call_with_timeout(function: Callable[[], T], timeout_s: float) -> T:
    """Returns what the function returns. Raises: what it raises; RunError if it takes longer."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except Exception as e:
            future.set_exception(e)

    # Not an executor, which waits for its threads at exit: libraries block for minutes on a host that does not answer.
    threading.Thread(target=run, daemon=True).start()
    if not wait([future], timeout_s).done:
        raise RunError(f"no answer in {timeout_s} s")
    return future.result()
