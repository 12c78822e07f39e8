"""Memory used by this process, and available on this machine: resident bytes; on a GPU, bytes allocated by torch."""

import os
import resource
import sys
from pathlib import Path

import torch

_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""The memory limits of a container."""


class MemoryGrowth:
    """Measures how much the memory of this process, or of its GPU, grows from now on."""

    def __init__(self, cuda: bool) -> None:
        self._cuda = cuda
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated() if cuda else resident_bytes("VmRSS")

    def peak_growth(self) -> int:
        """Peak bytes since the start of the process, above those at construction."""
        return max(0, peak_bytes(self._cuda) - self.before)


def peak_bytes(cuda: bool) -> int:
    """Peak bytes of this process, or of torch on the GPU."""
    return torch.cuda.max_memory_allocated() if cuda else resident_bytes("VmHWM")


def resident_bytes(which: str) -> int:
    """Resident bytes of this process: `VmRSS` now, `VmHWM` at its peak. Without /proc, always the peak."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        # Not used on Linux, where it would include the parent process's peak.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    (line,) = (line for line in lines if line.startswith(which))
    return 1024 * int(line.split()[1])


def device_memory_bytes(device: torch.device) -> int:
    """Total bytes of the GPU; of this machine or container."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return machine_bytes()


def machine_bytes() -> int:
    """Total bytes of this machine, or the container's limit if lower."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _LIMIT_FILES:
        path = Path(name)
        if path.exists() and (text := path.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits)
