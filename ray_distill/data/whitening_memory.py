"""What fitting a whitening takes, told before it starts, and refused where it cannot fit.

Legend: D = C * H * W, the numbers of one image. At its widest the fit holds the covariance, what the eigenvalue
decomposition works in, and chunks of images: MATRICES of 8 D^2 bytes (5.5 were measured for D = 3,072). That is
0.5 GB for 3x32x32 and 7.2 GB for 3x64x64 (D = 12,288).
"""

import math

from ray_distill.data.labelled_images import DataError
from ray_distill.utils.memory import machine_bytes

MATRICES = 6
WORTH_SAYING_BYTES = 2**30


def fitting_bytes(image_shape: tuple[int, int, int]) -> int:
    """The most memory that fitting a whitening of such images takes at a time."""
    return MATRICES * 8 * math.prod(image_shape) ** 2


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
