"""Diagnostics of the metagradients of one outer step, at no extra cost."""

import torch
from torch import Tensor
from torch.nn import functional as F

POSITIONS = 10
"""Number of equal parts of the window in the position profile."""


def position_profile(norms_W: Tensor) -> Tensor:
    """Mean norm of the steps' contributions in each tenth of the window, the earliest first: [POSITIONS].

    In windows with fewer steps a step counts for several tenths.
    """
    profile: Tensor = F.adaptive_avg_pool1d(norms_W[None, None], POSITIONS)[0, 0]
    return profile


def variance(mean_square_norm: float, square_norms_R: Tensor) -> float:
    """sum_r |g_r - mean|^2 / (R - 1), summed over pixels, from |mean|^2 and each |g_r|^2; R at least 2."""
    replicas = len(square_norms_R)
    return max(0.0, (float(square_norms_R.sum()) - replicas * mean_square_norm) / (replicas - 1))


def cosine(mean_square_norm: float, square_norms_R: Tensor) -> float:
    """Similarity of the replicas: sum_{r != s} <g_r, g_s> / ((R - 1) sum_r |g_r|^2); R at least 2.

    For metagradients of equal norm this is the mean pairwise cosine; in general, that mean weighted by the
    products of the norms. 1: identical; 0: orthogonal, or all zero.
    """
    replicas, total = len(square_norms_R), float(square_norms_R.sum())
    if total == 0.0:
        return 0.0
    return (replicas**2 * mean_square_norm - total) / ((replicas - 1) * total)


def summarize(mean_images: Tensor, square_norms_R: Tensor, profile: Tensor | None) -> dict[str, float]:
    """Metrics of the image metagradients.

    Args:
        mean_images: the mean metagradient of the images, any shape.
        square_norms_R: |g_r|^2 of each replica.
        profile: the replicas' mean `position_profile`, if the engine provides one.
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
