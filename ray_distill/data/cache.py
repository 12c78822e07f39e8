"""Files that one process builds while others wait, and that are whole whenever they are there.

The builder holds a lock of the operating system's, which ends with the process that holds it, however that ends,
and writes under another name: a file at its own name was finished. What a killed builder left is
removed by the next.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Waiting = Callable[[], None]
"""Called before a wait for another process."""


@contextmanager
def locked(lock: Path, waiting: Waiting | None = None) -> Iterator[None]:
    """The block alone among all processes of the machine that use this lock. The file stays: it is the lock."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def built_once(target: Path, build: Callable[[Path], None], waiting: Waiting | None = None) -> bool:
    """Have the file at `target`: build it, or wait for who does, unless it is there.

    Args:
        build: writes the file at the path that it is given; other files that it makes beside it must have names
            that begin with that path's.

    Returns: whether it was built here.
    """
    if target.exists():
        return False
    with locked(target.with_name(f".{target.name}.lock"), waiting):
        if target.exists():
            return False
        temporary = target.with_name(f".{target.name}.part-{os.getpid()}")
        _remove_parts(target)
        try:
            build(temporary)
            temporary.replace(target)
        finally:
            _remove_parts(target)
    return True


def _remove_parts(target: Path) -> None:
    for left in target.parent.glob(f".{target.name}.part-*"):
        left.unlink()
