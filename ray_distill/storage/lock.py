"""A folder that one process at a time works in: a run's, a search's."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_distill.config.config import ConfigError

LOCK = ".lock"
"""Held by the process that works in the folder. The file stays."""


@contextmanager
def held(path: Path) -> Iterator[None]:
    """The folder, made if need be, for this process alone, however it ends. Raises: ConfigError."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{path}: another process is at work in it; wait for it to end, or stop it"
            ) from None
        yield


def check_idle(path: Path) -> None:
    """Raises: ConfigError if a process holds the folder."""
    if (path / LOCK).exists():
        with held(path):
            pass
