"""Waiting for what may never answer, but not for ever."""

import threading
from collections.abc import Callable
from typing import TypeVar

from ray_distill.errors import RunError

T = TypeVar("T")


def call_with_timeout(work: Callable[[], T], limit_s: float) -> T:
    """What `work` returns. Raises: what it raises; RunError if it takes longer."""
    came: list[T] = []
    raised: list[Exception] = []

    def run() -> None:
        try:
            came.append(work())
        except Exception as e:
            raised.append(e)

    # A thread that nobody waits for: libraries wait for minutes on a place that does not answer.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if raised:
        raise raised[0]
    if not came:
        raise RunError(f"no answer in {limit_s} s")
    return came[0]
