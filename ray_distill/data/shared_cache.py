"""Prepared files in a store that machines share: fetched from there where it has them, put there where it has not.

The files that are mapped into memory are those of this machine's cache; the store's are copies under the same names, which
say what they were made from. So a machine that lacks the source, or the hours, takes what another one has prepared.
"""

import logging
import uuid
from collections.abc import Callable
from pathlib import Path

from ray_distill.data.cache import Waiting, built_once
from ray_distill.data.paths import Place, place_of, reading
from ray_distill.errors import first_line

logger = logging.getLogger(__name__)


class _NotThereError(Exception):
    """The store has no such file."""


def prepared_once(
    target: Path, shared: str | None, build: Callable[[Path], None], waiting: Waiting | None = None
) -> None:
    """Have the file at `target`, as `built_once`, and in the store: whatever lacks it gets it from the other.

    Args:
        shared: URI of the store's folder, or None.

    Raises: DataError for a store that cannot be read. One that takes no file is a warning: others build it then.
    """
    if shared is None:
        built_once(target, build, waiting)
        return
    place = place_of(shared) / target.name

    def fetch_or_build(part: Path) -> None:
        if not _copied(place, part):
            build(part)

    built_once(target, fetch_or_build, waiting)
    _put(target, place)


def fetched(target: Path, shared: str | None) -> bool:
    """Whether the file is at `target`, if need be by fetching it from the store. Raises: DataError."""
    if target.exists():
        return True
    if shared is None:
        return False

    def fetch(part: Path) -> None:
        if not _copied(place_of(shared) / target.name, part):
            raise _NotThereError

    try:
        built_once(target, fetch)
    except _NotThereError:
        return False
    return True


def _copied(place: Place, part: Path) -> bool:
    """Whether the store had the file, which is at `part` then."""
    from pyarrow.fs import LocalFileSystem, copy_files

    if not place.is_file():
        return False
    with reading(place):
        copy_files(
            place.path,
            str(part),
            source_filesystem=place.filesystem,
            destination_filesystem=LocalFileSystem(),
        )
    return True


def _put(target: Path, place: Place) -> None:
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
