"""SIGTERM, by which `ray job stop`, Slurm and Kubernetes ask a command to stop.

Some seconds later they kill it: Ray after 3 (or RAY_JOB_STOP_WAIT_TIME_S in the job's environment), Slurm and Kubernetes
after 30.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM as an exception: a KeyboardInterrupt, so that the same code cleans up after both."""


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """In the main thread, the first SIGTERM raises Terminated inside the block; further ones are ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        # A second SIGTERM must not interrupt the clean-up after the first.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
