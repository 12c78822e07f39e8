"""A cache of files that one process builds while others wait, and that machines may share.

The builder holds an operating-system lock, which is released however the process ends, and writes to a temporary name:
a file at its own name is complete. Temporary files of a killed builder are removed by the next one.

A store (a URI) that machines share holds copies under the same names, which contain a hash of what they were made from.
Files missing here are fetched from it, and files it lacks are uploaded.
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
"""Called before waiting for another process."""


def build_once(target: Path, build: Callable[[Path], None], waiting: OnWait | None = None) -> bool:
    """Ensure that the file exists: build it, or wait for the process that does.

    Args:
        build: writes the file to the path it is given; names of other files it creates must start with that path.

    Returns: whether this call built it.
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
    for part in target.parent.glob(f".{target.name}.part-*"):
        part.unlink()


class _NotInStoreError(Exception):
    """The store lacks the file."""


def build_or_fetch(
    target: Path, shared: str | None, build: Callable[[Path], None], waiting: OnWait | None = None
) -> None:
    """Ensure that the file exists here (`build_once`) and in the store, copying it to where it is missing.

    Args:
        shared: URI of a folder in the store, or None.

    Raises: DataError for a store that cannot be read. A failed upload is only logged: other machines build the file.
    """
    if shared is None:
        build_once(target, build, waiting)
        return
    remote = fs_path(shared) / target.name

    def fetch_or_build(part: Path) -> None:
        if not _download(remote, part):
            build(part)

    build_once(target, fetch_or_build, waiting)
    _upload(target, remote)


def fetch(target: Path, shared: str | None) -> bool:
    """Whether the file exists, after fetching it from the store if necessary. Raises: DataError."""
    if target.exists():
        return True
    if shared is None:
        return False

    def download(part: Path) -> None:
        if not _download(fs_path(shared) / target.name, part):
            raise _NotInStoreError

    try:
        build_once(target, download)
    except _NotInStoreError:
        return False
    return True


def _download(remote: FsPath, part: Path) -> bool:
    """Copy the file from the store to `part`, if the store has it."""
    from pyarrow.fs import LocalFileSystem, copy_files

    if not remote.is_file():
        return False
    with remote.errors():
        copy_files(
            remote.path,
            str(part),
            source_filesystem=remote.filesystem,
            destination_filesystem=LocalFileSystem(),
        )
    return True


def _upload(target: Path, remote: FsPath) -> None:
    import pyarrow as pa
    from pyarrow.fs import LocalFileSystem, copy_files

    if remote.is_file():
        return
    # An object appears in a store when it is complete; a file in a folder, as soon as it is created.
    part = remote.parent / f".{remote.name}.part-{uuid.uuid4().hex}" if remote.is_local else remote
    try:
        if remote.is_local:
            remote.filesystem.create_dir(remote.parent.path)
        copy_files(
            str(target),
            part.path,
            source_filesystem=LocalFileSystem(),
            destination_filesystem=remote.filesystem,
        )
        if part != remote:
            remote.filesystem.move(part.path, remote.path)
    except (OSError, pa.ArrowException) as e:
        logger.warning("could not upload %s to data.cache: %s", remote, first_line(e))
