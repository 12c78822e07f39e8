"""Processes that a test starts: free ports, waiting, descendants; and the progress of a run."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def free_port() -> int:
    """A port of the loopback device that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(true: Callable[[], bool], what: str, within_s: float = 240.0) -> float:
    """Poll five times a second. Returns: the seconds it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < within_s, f"timed out: {what}"
        time.sleep(0.2)
    return time.monotonic() - began


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


def last_checkpoint(folder: Path) -> int:
    """The outer step that Ray Train would resume from; 0 if there is none."""
    try:
        known = (folder / "train" / "run" / "checkpoint_manager_snapshot.json").read_text()
    except OSError:
        return 0
    return max((int(step) for step in re.findall(r"step_(\d+)", known)), default=0)


def wait_for_checkpoint(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Wait until the run can resume from a step; fails if the process ends before."""
    deadline = time.monotonic() + 200
    while last_checkpoint(folder) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def steps_shown(said: str) -> list[int]:
    """The outer steps that a distillation has named on its way, in order; not the beginning."""
    return [int(step) for step in re.findall(r"distilling (\d+)/", said) if int(step) > 0]
