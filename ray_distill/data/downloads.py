"""Fetching the archives of named sources, by torchvision's downloader, which checks their MD5.

Only what can be had without an account is fetched, and only to this machine; in all other cases the message
says which file to put where. Files come to their place whole: what a download that was killed left is not there.
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
"""Without an answer for so long a server counts as away."""


class Download(NamedTuple):
    """Where a file is published, and the MD5 that its publisher gives."""

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
    """The file `name` in the folder, downloaded if it is not there.

    Args:
        unpacked: with it, `name` is an archive that is unpacked in the folder, and this is the file that is
            wanted of it.

    Raises: DataError that says which file to put where, if it can neither be found nor fetched.
    """
    wanted = folder / (unpacked or name)
    if wanted.is_file():
        return existing_file(wanted)
    if not folder.is_local:
        raise DataError(
            f"{spec.source}: there is no file {wanted}; put it there, or let data.root be a local folder"
        )
    with file_lock(Path(folder.path) / f".{name}.lock"):
        if not wanted.is_file():
            with TemporaryDirectory(dir=folder.path, prefix=".fetching-") as aside:
                _download(spec, folder, name, download(), Path(aside), unpack=unpacked is not None)
                for new in Path(aside).iterdir():
                    new.rename(Path(folder.path) / new.name)
    return existing_file(wanted, f"the archive {name} should hold it; remove what it was unpacked to")


def _download(
    spec: DataSpec, folder: FsPath, name: str, download: Download, aside: Path, *, unpack: bool
) -> None:
    from torchvision.datasets.utils import download_url, extract_archive

    failures = []
    for url in download.urls:
        try:
            with _socket_timeout():
                download_url(url, aside, name, download.md5)
            break
        except (OSError, RuntimeError, ValueError) as e:
            failures.append(f"{url}: {e}")
    else:
        reasons = "\n  ".join(failures)
        then = f" and unpack it there (tar -xzf {name})" if unpack else ""
        raise DataError(
            f"{spec.source} is not in {folder}, and could not be downloaded:\n  {reasons}\n"
            f"Fetch {name} on a machine that can, put it into {folder}{then}; or let data.root name the folder "
            "that has it."
        )
    if unpack:
        extract_archive(aside / name, aside, remove_finished=True)


@contextmanager
def _socket_timeout() -> Iterator[None]:
    """Sockets that give up after a while: the downloader sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
