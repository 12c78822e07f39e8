"""What the metagradients of one outer step say of themselves: numbers that fall out of computing them."""

import torch
from torch import Tensor
from torch.nn import functional as F

POSITIONS = 10
"""Parts of a window that the shares of its steps are averaged over."""


def position_profile(norms_W: Tensor) -> Tensor:
    """Mean norm of the steps' shares in each tenth of the window, the earliest first: [POSITIONS].

    In windows of fewer steps a step stands for several tenths.
    """
    profile: Tensor = F.adaptive_avg_pool1d(norms_W[None, None], POSITIONS)[0, 0]
    return profile


def variance(mean_square_norm: float, square_norms_R: Tensor) -> float:
    """sum_r |g_r - mean|^2 / (R - 1), summed over pixels, from |mean|^2 and each |g_r|^2; R at least 2."""
    replicas = len(square_norms_R)
    return max(0.0, (float(square_norms_R.sum()) - replicas * mean_square_norm) / (replicas - 1))


def cosine(mean_square_norm: float, square_norms_R: Tensor) -> float:
    """How alike the replicas are: sum_{r != s} <g_r, g_s> / ((R - 1) sum_r |g_r|^2); R at least 2.

    For metagradients of equal norms this is the mean cosine between two of them; in general, that mean
    weighted by the product of their norms. 1: all the same; 0: nothing in common. 0 where all vanish.
    """
    replicas, total = len(square_norms_R), float(square_norms_R.sum())
    if total == 0.0:
        return 0.0
    return (replicas**2 * mean_square_norm - total) / ((replicas - 1) * total)


def summarize(mean_images: Tensor, square_norms_R: Tensor, profile: Tensor | None) -> dict[str, float]:
    """Named numbers for the logs, of image metagradients.

    Args:
        mean_images: the mean metagradient of the images, any shape.
        square_norms_R: |g_r|^2 of each replica.
        profile: the replicas' mean `position_profile`, where the engine has one.
    """
    values = {"replica_norm_mean": float(square_norms_R.sqrt().mean())}
    if len(square_norms_R) > 1:
        square = float(mean_images.double().square().sum())
        values["metagradient_variance"] = variance(square, square_norms_R)
        values["replica_cosine"] = cosine(square, square_norms_R)
    if profile is not None:
        tenths = torch.Tensor.tolist(profile)
        values |= {f"window_position_norm/{i:02d}": norm for i, norm in enumerate(tenths)}
    return values
