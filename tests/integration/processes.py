"""Finding the processes that a test's own Ray cluster started, to kill one of them."""

import os
from pathlib import Path


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def descendants_named(name: str, ancestor: int | None = None) -> list[int]:
    """Ids of the processes below `ancestor` (by default this one) whose command line begins with `name`."""
    ancestor = ancestor or os.getpid()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        pid = int(entry.name)
        above = _parent(pid)
        while above not in (0, 1, ancestor):
            above = _parent(above)
        if command.startswith(name) and above == ancestor:
            found.append(pid)
    return found
