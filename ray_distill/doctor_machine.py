"""What this machine has for a run, without a cluster and without a store: Python, torch, GPUs, a compiler, memory."""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from ray_distill.errors import FailedError

State = Literal["good", "note", "bad"]
GIB = 2**30


class Finding(NamedTuple):
    """What a check came to."""

    check: str
    state: State
    found: str
    purpose: str
    """What it is needed for."""
    advice: str = ""
    """What to do, unless it is good."""


def checks_here() -> dict[str, Callable[[], list[Finding]]]:
    """The checks of this machine, by name, in their order."""
    return {
        "Python": lambda: [python()],
        "torch": lambda: [torch_itself()],
        "GPUs": gpus,
        "compiler": lambda: [compiler()],
        "memory": memory,
    }


def python() -> Finding:
    """The interpreter."""
    return Finding(
        "Python",
        "good",
        f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "everything",
    )


def torch_itself() -> Finding:
    """That torch is there and computes."""
    import torch

    product = torch.ones(64, 64) @ torch.ones(64, 64)
    if not bool((product == 64).all()):
        raise FailedError("a product of matrices came out wrong")
    return Finding("torch", "good", f"{torch.__version__}, {os.cpu_count()} CPU cores", "the arithmetic")


def gpus() -> list[Finding]:
    """Each GPU that torch can use, or why there is none."""
    import torch

    driver = Path("/proc/driver/nvidia/version")
    if not torch.cuda.is_available():
        if driver.exists():
            advice = "install a torch build for this driver's CUDA (see pytorch.org), or update the driver"
            return [Finding("GPUs", "bad", "an NVIDIA driver, but torch cannot use it", "speed", advice)]
        advice = "nothing, if you mean to run on CPUs; large experiments want a GPU"
        return [Finding("GPUs", "note", "none", "speed", advice)]
    found = []
    for index in range(torch.cuda.device_count()):
        of = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        computes = bool((torch.ones(8, device=f"cuda:{index}") * 2 == 2).all())
        said = f"{of.name}, compute capability {of.major}.{of.minor}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        state: State = "bad" if not computes else "note" if free < total / 2 else "good"
        advice = (
            "another process has its memory (nvidia-smi says which)"
            if computes
            else "it computes wrongly; replace it"
        )
        found.append(Finding(f"GPU {index}", state, f"{said}, CUDA {torch.version.cuda}", "speed", advice))
    return found


def compiler() -> Finding:
    """A C++ compiler, which torch.compile calls."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        advice = "install g++ (as by apt-get install g++); without it, long runs take up to twice the time"
        return Finding("compiler", "note", f"none of {', '.join(names)}", "torch.compile", advice)
    return Finding("compiler", "good", path, "torch.compile")


def memory() -> list[Finding]:
    """Free memory, and room on the disks that Ray uses."""
    found = []
    if (info := Path("/proc/meminfo")).exists():
        lines = dict(line.split(":") for line in info.read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
        found.append(
            room("memory", free, 4 * GIB, "Ray, 1 GiB; workers, 1 or more each", "close what else runs")
        )
    for name, path, enough, purpose in (
        ("/dev/shm", "/dev/shm", 1 * GIB, "Ray's objects"),
        ("temporary disk", os.environ.get("RAY_TMPDIR", tempfile.gettempdir()), 5 * GIB, "Ray's logs"),
    ):
        if Path(path).is_dir():
            free = shutil.disk_usage(path).free
            advice = "in a container: --shm-size=4g" if name == "/dev/shm" else "make room, or set RAY_TMPDIR"
            found.append(room(name, free, enough, purpose, advice))
    return found


def room(name: str, free: int, enough: int, purpose: str, advice: str) -> Finding:
    """Whether so many bytes are enough."""
    state: State = "good" if free >= enough else "note"
    return Finding(
        name, state, f"{free / GIB:.1f} GiB free", purpose, f"{advice} ({enough / GIB:.0f} GiB are enough)"
    )
