"""Things to say, on disk until they are said: a file of JSON lines that only grows, and how far it is said.

A process that is killed loses nothing: the next one finds what was not said, in order. What was said just before the
kill may be found again, so it must do no harm to say a thing twice.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ray_distill.errors import UserError
from ray_distill.utils.atomic import atomic_write, write_text
from ray_distill.utils.jsonl import JsonlFile


class OutboxError(UserError):
    """The file is not a journal."""


class Entry(NamedTuple):
    """A thing to say."""

    end_bytes: int
    """Where its line ends."""
    thing: dict[str, Any]


def _said(path: Path) -> Path:
    return path.with_name(f"{path.name}.said")


def _said_bytes(path: Path) -> int:
    said = _said(path)
    return int(said.read_text()) if said.exists() else 0


def pending(path: Path) -> bytes:
    """The lines of a journal that nobody has said yet, while another thread says them; nothing where there is none.

    As a journal of their own they are all that is left of it to say.
    """
    if not path.exists():
        return b""
    start_bytes = _said_bytes(path)
    with path.open("rb") as file:
        file.seek(start_bytes)
        return file.read()


def replace(path: Path, lines: bytes) -> None:
    """Put a journal of these lines, none of which is said, in the place of another."""
    _said(path).unlink(missing_ok=True)
    with atomic_write(path) as file:
        file.write(lines)


class OutboxFile:
    """One writer, in one process at a time."""

    def __init__(self, path: Path) -> None:
        """Take up the file, or begin one. Raises: OutboxError."""
        self._path = path
        self._said = _said(path)
        path.touch()
        # A line that was cut off by a kill was never in the hands of a recording.
        self._lines = JsonlFile(path)
        self.unsaid = self._read(self._lines.found)
        """What the journal held, and nobody has said, when it was taken up."""

    def _read(self, lines: list[bytes]) -> list[Entry]:
        entries, end = [], 0
        try:
            said_bytes = _said_bytes(self._path)
            for line in lines:
                end += len(line)
                if end > said_bytes:
                    entries.append(Entry(end, dict(json.loads(line))))
        except (ValueError, TypeError) as e:
            raise OutboxError(f"{self._path}: not a journal, or damaged at byte {end}: {e}") from None
        return entries

    def add(self, thing: Mapping[str, Any]) -> Entry:
        """Write a thing to the end; it is on the disk when this returns."""
        self._lines.add([thing])
        return Entry(self._lines.end_bytes, dict(thing))

    def mark_said(self, entry: Entry) -> None:
        """Everything up to this entry is said."""
        write_text(self._said, f"{entry.end_bytes}\n")
