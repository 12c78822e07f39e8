"""A place where a run puts up how far it has come, for a driver that wants to show it.

In a module of its own that imports nothing but ray, since the actor's process imports it: on a small
machine every import there delays the training.
"""

from typing import Any

import ray


class _ProgressBoard:
    """The last thing that a run said of itself, for a driver that wants to show it."""

    def __init__(self) -> None:
        self._last: tuple[int, str] = (0, "workers are starting")

    def post(self, done: int, said: str) -> None:
        """Put up what is true now."""
        self._last = (done, said)

    def read(self) -> tuple[int, str]:
        """What was put up last."""
        return self._last


ProgressBoard: Any = ray.remote(num_cpus=0)(_ProgressBoard)
