"""Memory: what this process has, and what there is.

Bytes are what a process has resident: at its peak, less what it had before the work. On a GPU: what torch
allocated there.
"""

import os
import resource
import sys
from pathlib import Path

import torch

_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Of the container that this process may run in."""


class Growth:
    """The memory of this process, or of its GPU, from here on."""

    def __init__(self, cuda: bool) -> None:
        self._cuda = cuda
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated() if cuda else resident_bytes("VmRSS")

    def grown(self) -> int:
        """How far the peak since the start of the process lies above what was there before."""
        return max(0, peak_bytes(self._cuda) - self.before)


def peak_bytes(cuda: bool) -> int:
    """The most that this process has had, or torch on the GPU."""
    return torch.cuda.max_memory_allocated() if cuda else resident_bytes("VmHWM")


def resident_bytes(which: str) -> int:
    """What this process has in memory: `VmRSS` now, `VmHWM` at its peak. Where there is no /proc: the peak."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        # Not on Linux, where this would be the peak of the process that started this one, if that was higher.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    (line,) = (line for line in lines if line.startswith(which))
    return 1024 * int(line.split()[1])


def memory_of(device: torch.device) -> int:
    """Bytes of the GPU; of this machine, or what it allows a container that this runs in."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return machine_bytes()


def machine_bytes() -> int:
    """The memory of this machine, or of the container if that may use less."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _LIMIT_FILES:
        path = Path(name)
        if path.exists() and (text := path.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits)
