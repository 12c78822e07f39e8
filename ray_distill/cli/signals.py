"""A command that something else starts and stops: `ray job submit`, Slurm, Kubernetes.

Such a thing asks a command to stop by SIGTERM, and kills it some seconds later: Ray after 3 (or
RAY_JOB_STOP_WAIT_TIME_S in the job's environment), Slurm and Kubernetes after 30.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM, as what Ctrl-C raises: whoever cleans up after the one cleans up after the other."""


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """In the main thread, the first SIGTERM raises Terminated inside the block; further ones are ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        # A second one must not cut short the cleaning up that the first one began.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
