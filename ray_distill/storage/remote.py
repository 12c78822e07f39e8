"""A storage for what must outlive the driver's machine: a folder in any of pyarrow's file systems.

`cluster.storage` names it, by a path that all nodes see (NFS) or by a URI (`s3://bucket/prefix`, `gs://..`). It holds the
files of a run's folder under the same names (`workdir`), `train/`, Ray Train's checkpoints, which the workers write there
and nowhere else, and `.driver.json` while a driver is at work (`lease`).

Each process finds its own credentials (`utils.fs`). None are ever sent to a worker, nor may the URI hold any.
"""

import os
import uuid
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from ray_distill.errors import RunError, UserError, first_line
from ray_distill.utils.fs import FS_ERRORS, Location, resolve, translated
from ray_distill.utils.secrets import redact
from ray_distill.utils.timeout import call_with_timeout

PROBE_PREFIX = ".ray-distill-"
"""Of the names of files that `probe` writes; one stays behind where nothing may be deleted."""
PROBE_TIMEOUT_S = 60
CLOUD_HINT = (
    "; check the URI, that the bucket exists, that the environment has its credentials and endpoint (AWS_ACCESS_KEY_ID, "
    "AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL; GOOGLE_APPLICATION_CREDENTIALS), and that they allow writing there"
)


class StorageError(UserError):
    """A storage that the user named and that cannot be used."""


class StorageUnavailableError(RunError):
    """The storage does not answer as it should. What is on this machine's disk does not depend on it."""


@dataclass(frozen=True)
class Storage(Location):
    """The storage of one run or search. Methods raise StorageUnavailableError."""

    uri: str
    """As it was given; shown redacted."""

    @classmethod
    def open(cls, uri: str) -> "Storage":
        """The storage that a path or a URI names; no folder needs to exist there yet.

        Raises: StorageError if pyarrow cannot use it, or if it cannot be written to.
        """

        def probed() -> Storage:
            storage = cls(*resolve(uri), uri)
            storage.probe()
            return storage

        try:
            return call_with_timeout(probed, PROBE_TIMEOUT_S)
        except (*FS_ERRORS, RunError) as e:
            message = f"{uri}: cannot be used as storage: {first_line(e).removeprefix(f'{uri}: ')}"
            raise StorageError(redact(message) + (CLOUD_HINT if "://" in uri else "")) from None

    def __str__(self) -> str:
        return redact(self.uri)

    def __truediv__(self, name: str) -> "Storage":
        uri, mark, query = self.uri.partition("?")
        return replace(self, path=self.path_of(name), uri=f"{uri.rstrip('/')}/{name}{mark}{query}")

    def errors(self) -> AbstractContextManager[None]:
        """Errors of the file system as StorageUnavailableError."""
        return translated(lambda e: StorageUnavailableError(redact(f"{self}: {first_line(e)}")))

    def existing_folder(self) -> Path:
        """Of a local storage: itself, or the first folder above it that exists."""
        folder = Path(self.path)
        return next(path for path in (folder, *folder.parents) if path.exists())

    def probe(self) -> None:
        """Write, read and delete a small file: in the storage, or in the folder that it would be created in."""
        target = replace(self, path=str(self.existing_folder())) if self.is_local else self
        name, content = f"{PROBE_PREFIX}{uuid.uuid4().hex}", os.urandom(100)
        target.put(name, content)
        if (back := target.read(name)) != content:
            raise StorageUnavailableError(
                f"a file written there {'is missing' if back is None else 'came back changed'}"
            )
        target.delete(name)

    def names(self, folder: str = "") -> set[str]:
        """What is in a folder, without left-over probes; nothing if there is no such folder."""
        names = {info.base_name for info in self.entries(folder, missing_ok=True)}
        return {name for name in names if not name.startswith(PROBE_PREFIX)}

    def files(self, folder: str) -> list[str]:
        """All files in a folder and below it, by their names in the storage."""
        start = len(self.path_of("x")) - 1
        infos = self.entries(folder, recursive=True, missing_ok=True)
        return sorted(info.path[start:] for info in infos if info.is_file)
