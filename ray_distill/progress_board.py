"""A place where a run puts up how far it has come: for a driver that wants to show it, and for its workers,
which keep what MLflow does not have yet.

In a module of its own that imports nothing but ray, since the actor's process imports it: on a small
machine every import there delays the training.
"""

from typing import Any

import ray


class _ProgressBoard:
    """The last thing that a run said of itself, for a driver that wants to show it."""

    def __init__(self) -> None:
        self._last: tuple[int, str] = (0, "workers are starting")
        self._recorded = 0

    def post(self, done: int, said: str) -> None:
        """Put up what is true now."""
        self._last = (done, said)

    def read(self) -> tuple[int, str]:
        """What was put up last."""
        return self._last

    def post_recorded(self, outer_step: int) -> None:
        """Put up that MLflow has all points up to this outer step."""
        self._recorded = outer_step

    def recorded(self) -> int:
        """The last outer step whose point MLflow has, as far as is known; 0 if nothing is."""
        return self._recorded


ProgressBoard: Any = ray.remote(num_cpus=0)(_ProgressBoard)
