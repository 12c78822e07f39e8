"""Downloads of named sources, by torchvision's downloader, which checks their MD5.

Only archives that need no account are downloaded, and only to a local folder; otherwise the error says which file to put
where. Files are moved into place when they are complete, so a killed download leaves none.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ray_distill.data.labelled_images import DataError
from ray_distill.data.paths import DataFile, FsPath, existing_file
from ray_distill.data.spec import DataSpec
from ray_distill.utils.lock import file_lock

TIMEOUT_S = 20.0
"""Timeout of a server that does not answer."""


class Download(NamedTuple):
    """Where a file is published, and its published MD5."""

    urls: tuple[str, ...]
    md5: str


def ensure_downloaded(
    spec: DataSpec,
    folder: FsPath,
    name: str,
    download: Callable[[], Download],
    *,
    unpacked: str | None = None,
) -> DataFile:
    """The file `name` in the folder, downloaded if it is missing.

    Args:
        unpacked: the file to return, if `name` is an archive to unpack in the folder.

    Raises: DataError that says which file to put where, if it is missing and cannot be downloaded.
    """
    target = folder / (unpacked or name)
    if target.is_file():
        return existing_file(target)
    if not folder.is_local:
        raise DataError(
            f"{spec.source}: {target} does not exist; put it there, or set data.root to a local folder"
        )
    with file_lock(Path(folder.path) / f".{name}.lock"):
        if not target.is_file():
            with TemporaryDirectory(dir=folder.path, prefix=".fetching-") as temporary:
                _download(spec, folder, name, download(), Path(temporary), unpack=unpacked is not None)
                for new in Path(temporary).iterdir():
                    new.rename(Path(folder.path) / new.name)
    return existing_file(
        target, f"it should be in the archive {name}; remove the folder that it was unpacked to"
    )


def _download(
    spec: DataSpec, folder: FsPath, name: str, download: Download, temporary: Path, *, unpack: bool
) -> None:
    from torchvision.datasets.utils import download_url, extract_archive

    failures = []
    for url in download.urls:
        try:
            with _socket_timeout():
                download_url(url, temporary, name, download.md5)
            break
        except (OSError, RuntimeError, ValueError) as e:
            failures.append(f"{url}: {e}")
    else:
        reasons = "\n  ".join(failures)
        unpacking = f" and unpack it there (tar -xzf {name})" if unpack else ""
        raise DataError(
            f"{spec.source} is not in {folder} and could not be downloaded:\n  {reasons}\n"
            f"Download {name} on another machine, put it into {folder}{unpacking}; or set data.root to the folder "
            "that has it."
        )
    if unpack:
        extract_archive(temporary / name, temporary, remove_finished=True)


@contextmanager
def _socket_timeout() -> Iterator[None]:
    """Sets a timeout for new sockets: the downloader has none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
