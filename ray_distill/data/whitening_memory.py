"""What fitting a whitening takes, told before it starts, and refused where it cannot fit.

Legend: D = C * H * W, the numbers of one image. At its widest the fit holds the covariance, what the eigenvalue
decomposition works in, and chunks of images: MATRICES of 8 D^2 bytes (5.5 were measured for D = 3,072). That is
0.5 GB for 3x32x32 and 7.2 GB for 3x64x64 (D = 12,288).
"""

import math
import os
from pathlib import Path

from ray_distill.data.labelled_images import DataError

MATRICES = 6
WORTH_SAYING_BYTES = 2**30

_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Of the container that this process may run in."""


def fitting_bytes(image_shape: tuple[int, int, int]) -> int:
    """The most memory that fitting a whitening of such images takes at a time."""
    return MATRICES * 8 * math.prod(image_shape) ** 2


def machine_bytes() -> int:
    """The memory of this machine, or of the container if that may use less."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in _LIMIT_FILES:
        path = Path(name)
        if path.exists() and (text := path.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits)


def said(image_shape: tuple[int, int, int]) -> str:
    """The memory, for people; empty where it is little."""
    needed = fitting_bytes(image_shape)
    return f", needs {needed / 1e9:.1f} GB" if needed >= WORTH_SAYING_BYTES else ""


def check(image_shape: tuple[int, int, int]) -> None:
    """Raises: DataError if this machine has too little memory to fit a whitening of such images."""
    needed, there = fitting_bytes(image_shape), machine_bytes()
    if needed > there:
        shape = "x".join(map(str, image_shape))
        raise DataError(
            f"data.preprocessing: fitting zca on images of {shape} needs {needed / 1e9:.1f} GB of memory, this machine "
            f"has {there / 1e9:.1f} GB; use normalise, a smaller data.image_size, or a machine with more"
        )
