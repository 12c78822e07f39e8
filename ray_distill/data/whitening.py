"""ZCA whitening as in the paper's code.

Each image is centred by its own mean and scaled to unit L2 norm, giving the rows x of X; the covariance is
X^T X / n = U diag(s) U^T, not centred over images; with eps = shrinkage * mean(s), the whitening matrix is
W = U diag(s + eps)^(-1/2) U^T, and an image becomes x W. There is no per-channel normalisation after it.
A whitened image has the mean squared norm sum_i s_i / (s_i + eps): for CIFAR-10 and shrinkage 0.1 the
norms are about 25.6.

Only W is saved, in float32, so that every use multiplies by the same numbers. U and s would take as much space, and W
recomputed from them would round differently on another machine. The inverse is well conditioned (W's condition number is at
most sqrt(1 + s_max / eps), under 100 for CIFAR) and is computed when pictures are first needed.

Legend: D = C * H * W, the numbers of one image. W takes 4 D^2 bytes: 38 MB for 3x32x32, 604 MB for 3x64x64.
Fitting takes up to 48 D^2 bytes (the covariance, the workspace of its eigendecomposition, chunks of images): 0.5 GB
for 3x32x32, 7.2 GB for 3x64x64. Pictures need W's inverse, and 8 D^2 bytes to compute it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ray_distill.data.labelled_images import CHUNK_IMAGES, DataError
from ray_distill.utils.memory import machine_bytes

FITTING_MATRICES = 6
"""Matrices of 8 D^2 bytes that fitting holds at its peak; 5.5 were measured for D = 3,072."""
LARGE_FIT_BYTES = 2**30
"""Memory from which the progress of a fit mentions it."""
_SMALLEST_NORM = 1e-3
"""Less than one grey level of 255 in one pixel: an image below it is constant up to rounding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ZcaWhitening:
    """Unit-norm images times the whitening matrix of the training images (see the module)."""

    whiten_DD: Tensor
    image_shape: tuple[int, int, int]
    shrinkage: float
    brightness: float
    """Mean over the training images of their own means."""
    contrast: float
    """Mean over the training images of their norms before scaling to 1."""

    kind = "zca"

    def apply(self, images_NCHW: Tensor) -> Tensor:
        """Whitened float32 images. A constant image becomes 0. Raises: ValueError for another shape."""
        self.check_shape(images_NCHW)
        whiten_DD = self.whiten_DD.to(images_NCHW.device)
        whitened = torch.empty(images_NCHW.shape, dtype=torch.float32, device=images_NCHW.device)
        for out, chunk in zip(whitened.split(CHUNK_IMAGES), images_NCHW.split(CHUNK_IMAGES), strict=True):
            unit_ND, _, _ = _unit_images(chunk.to(torch.float32))
            out.copy_((unit_ND @ whiten_DD).view(chunk.shape))
        return whitened

    def unclamped_pixels(self, images_NCHW: Tensor) -> Tensor:
        """The inverse of the whitening, given brightness and contrast of a training image.

        Whitening loses the mean and the norm of each image, and a distilled image never had them. So each image is
        scaled to the mean norm of the training images and shifted to their mean brightness: a real image is restored
        up to brightness and contrast, and a distilled one gets the contrast of a real one, whatever its norm. Scaling
        by the darkest and brightest pixel instead would let one outlier wash a picture out.
        Raises: ValueError for another shape.
        """
        self.check_shape(images_NCHW)
        unwhiten_DD = self._unwhiten_DD.to(images_NCHW.device)
        pixels = images_NCHW.to(torch.float32).flatten(1) @ unwhiten_DD
        scale = self.contrast / pixels.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        stretched: Tensor = pixels * scale + self.brightness
        return stretched.view(images_NCHW.shape)

    def to_pixels(self, images_NCHW: Tensor) -> Tensor:
        """`unclamped_pixels`, clamped to [0, 1]."""
        return self.unclamped_pixels(images_NCHW).clamp(0.0, 1.0)

    def describe(self) -> str:
        """One line of text."""
        return (
            "zca: each image minus its own mean, scaled to unit norm, times the whitening matrix of the "
            f"training images (shrinkage {self.shrinkage}); no normalisation after it"
        )

    def to_record(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Plain data and tensors to save."""
        description = {
            "kind": self.kind,
            "image_shape": list(self.image_shape),
            "shrinkage": self.shrinkage,
            "brightness": self.brightness,
            "contrast": self.contrast,
        }
        return description, {"whiten_DD": self.whiten_DD}

    @cached_property
    def _unwhiten_DD(self) -> Tensor:
        inverse: Tensor = torch.linalg.inv(self.whiten_DD.to(torch.float64))
        return inverse.to(torch.float32)

    def check_shape(self, images_NCHW: Tensor) -> None:
        """Raises: ValueError for images of another shape."""
        if tuple(images_NCHW.shape[1:]) != self.image_shape:
            raise ValueError(
                f"the whitening was fitted on {list(self.image_shape)} images, got images of shape {list(images_NCHW.shape)}"
            )


def whitening_from_record(description: Mapping[str, Any], whiten_DD: Tensor) -> ZcaWhitening:
    """The whitening of a record by `to_record`. Raises: ValueError, KeyError or TypeError for any other record."""
    channels, height, width = description["image_shape"]
    if not all(type(side) is int and side > 0 for side in (channels, height, width)):
        raise ValueError(f"image_shape must be three positive integers, got {description['image_shape']}")
    numbers = {name: description[name] for name in ("shrinkage", "brightness", "contrast")}
    if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers.values()):
        raise ValueError(f"shrinkage, brightness and contrast must be finite numbers, got {numbers}")
    size = channels * height * width
    if whiten_DD.shape != (size, size):
        raise ValueError(f"the whitening matrix must be [{size}, {size}], got {list(whiten_DD.shape)}")
    return ZcaWhitening(
        whiten_DD=whiten_DD,
        image_shape=(channels, height, width),
        **{name: float(number) for name, number in numbers.items()},
    )


def fit_whitening(pixel_chunks: Iterable[Tensor], shrinkage: float) -> ZcaWhitening:
    """The whitening of these images; see `fit_preprocessing`. Raises: ValueError, DataError."""
    # Centring each image by its own mean makes the covariance singular: without shrinkage W is infinite.
    if not 0.0 < shrinkage < float("inf"):
        raise ValueError(f"zca_shrinkage must be above 0, got {shrinkage}")
    count, brightness, contrast = 0, 0.0, 0.0
    covariance_DD: Tensor | None = None
    image_shape = (0, 0, 0)
    for chunk in pixel_chunks:
        unit_ND, means_N, norms_N = _unit_images(chunk.to(torch.float64))
        if covariance_DD is None:
            image_shape = (chunk.shape[1], chunk.shape[2], chunk.shape[3])
            covariance_DD = torch.zeros(unit_ND.shape[1], unit_ND.shape[1], dtype=torch.float64)
        covariance_DD.addmm_(unit_ND.T, unit_ND)
        count += len(chunk)
        brightness += float(means_N.sum())
        contrast += float(norms_N.sum())
    if covariance_DD is None:
        raise DataError("there are no training images to fit the whitening on")
    return ZcaWhitening(
        whiten_DD=_whitening_matrix(covariance_DD.div_(count), shrinkage),
        image_shape=image_shape,
        shrinkage=shrinkage,
        brightness=brightness / count,
        contrast=contrast / count,
    )


def _whitening_matrix(covariance_DD: Tensor, shrinkage: float) -> Tensor:
    """U diag(s + eps)^(-1/2) U^T in float32. Raises: DataError if all training images are constant."""
    eigenvalues_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    eigenvalues_D = eigenvalues_D.clamp_min(0.0)
    eps = shrinkage * eigenvalues_D.mean()
    if float(eigenvalues_D.max()) < 1e-12:
        raise DataError("every training image is constant; set data.preprocessing to none")
    whiten_DD: Tensor = (vectors_DD * (eigenvalues_D + eps).rsqrt()) @ vectors_DD.T
    return whiten_DD.to(torch.float32)


def _unit_images(images_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Images centred by their own mean and scaled to unit norm, [N, D]; the means [N] and norms [N]."""
    flat_ND = images_NCHW.flatten(1)
    means_N = flat_ND.mean(dim=1)
    centred_ND = flat_ND - means_N[:, None]
    norms_N = centred_ND.norm(dim=1)
    return centred_ND / norms_N.clamp_min(_SMALLEST_NORM)[:, None], means_N, norms_N


def fitting_bytes(image_shape: tuple[int, int, int]) -> int:
    """Peak memory of fitting a whitening of such images."""
    return FITTING_MATRICES * 8 * math.prod(image_shape) ** 2


def fitting_note(image_shape: tuple[int, int, int]) -> str:
    """The memory that fitting needs, to append to a progress message; empty if it is little."""
    needed = fitting_bytes(image_shape)
    return f", needs {needed / 1e9:.1f} GB" if needed >= LARGE_FIT_BYTES else ""


def check_fitting_memory(image_shape: tuple[int, int, int]) -> None:
    """Raises: DataError if this machine has too little memory to fit a whitening of such images."""
    needed, available = fitting_bytes(image_shape), machine_bytes()
    if needed > available:
        shape = "x".join(map(str, image_shape))
        raise DataError(
            f"data.preprocessing: fitting zca on images of {shape} needs {needed / 1e9:.1f} GB of memory, this machine "
            f"has {available / 1e9:.1f} GB; use normalise, a smaller data.image_size, or a machine with more memory"
        )
