"""Append-only files of JSON lines, and an outbox on top: lines that stay pending until they are acknowledged.

A line that a killed process wrote only in part is dropped. An outbox loses nothing in a crash: the next process finds
what was not acknowledged, in order. What was sent just before the crash may be sent again, so sending must be idempotent.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ray_distill.errors import UserError
from ray_distill.utils.atomic import atomic_write, write_text


class JsonlError(UserError):
    """A file of JSON lines is damaged."""


class JsonlFile:
    """One writer, in one process at a time."""

    def __init__(self, path: Path) -> None:
        """Open the file if it exists; a partial last line is cut off."""
        self._path = path
        content = path.read_bytes() if path.exists() else b""
        self.end_bytes = content.rfind(b"\n") + 1
        """The file's length."""
        if self.end_bytes < len(content):
            os.truncate(path, self.end_bytes)
        self.lines = content[: self.end_bytes].splitlines(keepends=True)
        """The lines at opening, not decoded: the caller reports a damaged one."""

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write a line for each record; they are on disk on return."""
        lines = b"".join(json.dumps(record).encode() + b"\n" for record in records)
        with self._path.open("ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self.end_bytes += len(lines)


class OutboxEntry(NamedTuple):
    """A record in an outbox."""

    end_bytes: int
    """Where its line ends."""
    record: dict[str, Any]


class OutboxFile:
    """One writer, in one process at a time. How far it is acknowledged is in a file beside it."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raises: JsonlError."""
        self._path = path
        path.touch()
        self._file = JsonlFile(path)
        self.pending = self._read(self._file.lines)
        """The entries at opening that were not acknowledged."""

    def _read(self, lines: list[bytes]) -> list[OutboxEntry]:
        entries, end = [], 0
        try:
            acked_bytes = _acked_bytes(self._path)
            for line in lines:
                end += len(line)
                if end > acked_bytes:
                    entries.append(OutboxEntry(end, dict(json.loads(line))))
        except (ValueError, TypeError) as e:
            raise JsonlError(
                f"{self._path}: not a file of JSON lines, or damaged at byte {end}: {e}"
            ) from None
        return entries

    def append(self, record: Mapping[str, Any]) -> OutboxEntry:
        """Add a record; it is on disk on return."""
        self._file.append([record])
        return OutboxEntry(self._file.end_bytes, dict(record))

    def ack(self, entry: OutboxEntry) -> None:
        """Acknowledge everything up to this entry."""
        write_text(_ack_path(self._path), f"{entry.end_bytes}\n")


def _ack_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.said")


def _acked_bytes(path: Path) -> int:
    ack_path = _ack_path(path)
    return int(ack_path.read_text()) if ack_path.exists() else 0


def pending_lines(path: Path) -> bytes:
    """The unacknowledged lines of an outbox, also while another thread acknowledges some; empty without a file."""
    if not path.exists():
        return b""
    start_bytes = _acked_bytes(path)
    with path.open("rb") as file:
        file.seek(start_bytes)
        return file.read()


def replace_outbox(path: Path, lines: bytes) -> None:
    """Replace an outbox by one with these lines, all pending."""
    _ack_path(path).unlink(missing_ok=True)
    with atomic_write(path) as file:
        file.write(lines)
