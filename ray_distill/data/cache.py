"""Files that one process builds while others wait, and that are whole whenever they are there.

The builder holds a lock of the operating system's, which ends with the process that holds it, however that ends,
and writes under another name: a file at its own name was finished. What a killed builder left is
removed by the next.

A store (a URI) that machines share may hold copies of them under the same names, which say what they were made from:
what is missing here is fetched from it, and what it lacks is uploaded.
"""

import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from ray_distill.data.paths import FsPath, fs_path
from ray_distill.errors import first_line
from ray_distill.utils.lock import file_lock

logger = logging.getLogger(__name__)

OnWait = Callable[[], None]
"""Called before a wait for another process."""


def build_once(target: Path, build: Callable[[Path], None], waiting: OnWait | None = None) -> bool:
    """Have the file at `target`: build it, or wait for who does, unless it is there.

    Args:
        build: writes the file at the path that it is given; other files that it makes beside it must have names
            that begin with that path's.

    Returns: whether it was built here.
    """
    if target.exists():
        return False
    with file_lock(target.with_name(f".{target.name}.lock"), waiting):
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


class _NotThereError(Exception):
    """The store has no such file."""


def build_or_fetch(
    target: Path, shared: str | None, build: Callable[[Path], None], waiting: OnWait | None = None
) -> None:
    """Have the file at `target`, as `build_once`, and in the store: whatever lacks it gets it from the other.

    Args:
        shared: URI of the store's folder, or None.

    Raises: DataError for a store that cannot be read. One that takes no file is a warning: others build it then.
    """
    if shared is None:
        build_once(target, build, waiting)
        return
    place = fs_path(shared) / target.name

    def fetch_or_build(part: Path) -> None:
        if not _copied(place, part):
            build(part)

    build_once(target, fetch_or_build, waiting)
    _put(target, place)


def fetch(target: Path, shared: str | None) -> bool:
    """Whether the file is at `target`, if need be by fetching it from the store. Raises: DataError."""
    if target.exists():
        return True
    if shared is None:
        return False

    def fetch(part: Path) -> None:
        if not _copied(fs_path(shared) / target.name, part):
            raise _NotThereError

    try:
        build_once(target, fetch)
    except _NotThereError:
        return False
    return True


def _copied(place: FsPath, part: Path) -> bool:
    """Whether the store had the file, which is at `part` then."""
    from pyarrow.fs import LocalFileSystem, copy_files

    if not place.is_file():
        return False
    with place.errors():
        copy_files(
            place.path,
            str(part),
            source_filesystem=place.filesystem,
            destination_filesystem=LocalFileSystem(),
        )
    return True


def _put(target: Path, place: FsPath) -> None:
    import pyarrow as pa
    from pyarrow.fs import LocalFileSystem, copy_files

    if place.is_file():
        return
    # An object is there when it is whole; a file is there as it grows.
    part = place.parent / f".{place.name}.part-{uuid.uuid4().hex}" if place.is_local else place
    try:
        if place.is_local:
            place.filesystem.create_dir(place.parent.path)
        copy_files(
            str(target),
            part.path,
            source_filesystem=LocalFileSystem(),
            destination_filesystem=place.filesystem,
        )
        if part != place:
            place.filesystem.move(part.path, place.path)
    except (OSError, pa.ArrowException) as e:
        logger.warning("%s could not be put into data.cache: %s", place, first_line(e))
