"""A file of JSON lines that only grows. A process that is killed as it writes leaves half a line, which is dropped."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class JsonlFile:
    """One writer, in one process at a time."""

    def __init__(self, path: Path) -> None:
        """Take up the file if there is one; half a line at its end is cut off, so that the next begins one of its own."""
        self._path = path
        whole = path.read_bytes() if path.exists() else b""
        self.end_bytes = whole.rfind(b"\n") + 1
        """How long the file is."""
        if self.end_bytes < len(whole):
            os.truncate(path, self.end_bytes)
        self.found = whole[: self.end_bytes].splitlines(keepends=True)
        """The lines that there were, not decoded: who reads them says what is wrong with one."""

    def add(self, things: Iterable[Mapping[str, Any]]) -> None:
        """Write a line for each; they are on the disk when this returns."""
        lines = b"".join(json.dumps(thing).encode() + b"\n" for thing in things)
        with self._path.open("ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self.end_bytes += len(lines)
