"""Preprocessing against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from ray_distill.data.labelled_images import DataError
from ray_distill.data.preprocessing import (
    KINDS,
    NoPreprocessing,
    Normalisation,
    fit_preprocessing,
    preprocessing_from_record,
)
from ray_distill.data.whitening import ZcaWhitening


def real_images(num_images: int, shape: tuple[int, int, int] = (3, 2, 2), seed: int = 0) -> Tensor:
    """Correlated images in [0.3, 0.6]: a pixel takes half of its neighbour's noise. Full rank at any width."""
    noise = torch.rand(num_images, *shape, generator=torch.Generator().manual_seed(seed))
    return 0.3 + 0.2 * (noise + 0.5 * noise.roll(1, dims=3))


def unit_images(images_NCHW: Tensor) -> Tensor:
    """The rows that ZCA whitens, in float64: [N, D]."""
    flat = images_NCHW.double().flatten(1)
    centred = flat - flat.mean(dim=1, keepdim=True)
    unit: Tensor = centred / centred.norm(dim=1, keepdim=True)
    return unit


def test_none_leaves_pixels_alone_and_clamps_pictures() -> None:
    """apply is the identity; a picture of (-1, 0.5, 2) is (0, 0.5, 1)."""
    none = fit_preprocessing("none", [], zca_shrinkage=0.1)
    images = real_images(4)
    assert torch.equal(none.apply(images), images)
    assert none.to_pixels(torch.tensor([-1.0, 0.5, 2.0]).reshape(3, 1, 1, 1)).flatten().tolist() == [
        0.0,
        0.5,
        1.0,
    ]


def test_normalisation_by_hand() -> None:
    """Channel 0 holds 0, 1, 0, 1: mean 1/2, standard deviation (of the whole set) 1/2, so it becomes -1 and 1.
    Channel 1 holds 0.2, 0.2, 0.2, 0.6: mean 0.3, deviation sqrt((3 * 0.01 + 0.09) / 4) = sqrt(0.03)."""
    images = torch.tensor([[[[0.0, 1.0]], [[0.2, 0.2]]], [[[0.0, 1.0]], [[0.2, 0.6]]]])
    fitted = fit_preprocessing("normalise", images.split(1), zca_shrinkage=0.1)
    assert isinstance(fitted, Normalisation)
    torch.testing.assert_close(fitted.mean_C, torch.tensor([0.5, 0.3]))
    torch.testing.assert_close(fitted.std_C, torch.tensor([0.5, math.sqrt(0.03)]))
    torch.testing.assert_close(fitted.apply(images)[:, 0], torch.tensor([[[-1.0, 1.0]], [[-1.0, 1.0]]]))
    torch.testing.assert_close(fitted.to_pixels(fitted.apply(images)), images)


def test_zca_by_hand() -> None:
    """Two images of two pixels, (0.2, 0.6) and (0, 1): both are -v = (-1, 1) / sqrt 2 once centred and scaled.
    The covariance is v v^T (centred again it would be 0), with eigenvalues 1 and 0, of mean 1/2. Shrinkage 0.1
    makes eps 1/20, so both become -v / sqrt(1.05). Their means are 0.4 and 0.5, their norms 0.4 / sqrt 2 and
    1 / sqrt 2: brightness 0.45, contrast 0.7 / sqrt 2, and both pictures are 0.45 -+ 0.35 = (0.1, 0.8)."""
    images = torch.tensor([[0.2, 0.6], [0.0, 1.0]]).reshape(2, 1, 1, 2)
    fitted = fit_preprocessing("zca", [images], zca_shrinkage=0.1)
    assert isinstance(fitted, ZcaWhitening)
    v = torch.tensor([1.0, -1.0]) / math.sqrt(2.0)
    ones = torch.ones(2) / math.sqrt(2.0)
    expected = v.outer(v) / math.sqrt(1.05) + ones.outer(ones) / math.sqrt(0.05)
    torch.testing.assert_close(fitted.whiten_DD, expected)
    torch.testing.assert_close(fitted.apply(images).flatten(1), (-v / math.sqrt(1.05)).expand(2, 2))
    assert [fitted.brightness, fitted.contrast] == pytest.approx([0.45, 0.7 / math.sqrt(2.0)])
    torch.testing.assert_close(
        fitted.to_pixels(fitted.apply(images)).flatten(1), torch.tensor([[0.1, 0.8], [0.1, 0.8]])
    )


@pytest.mark.parametrize("shrinkage", [1e-4, 0.1, 1.0])
def test_covariance_of_whitened_images(shrinkage: float) -> None:
    """W C W = U diag(s / (s + eps)) U^T: the identity but for the shrinkage and for the direction (1, .., 1),
    which every image loses with its mean, so that s is 0 there."""
    images = real_images(400)
    fitted = fit_preprocessing("zca", images.split(150), zca_shrinkage=shrinkage)
    rows = unit_images(images)
    s, u = torch.linalg.eigh(rows.T @ rows / len(rows))
    share = s / (s + shrinkage * s.mean())
    whitened = fitted.apply(images).double().flatten(1)
    covariance = whitened.T @ whitened / len(whitened)
    torch.testing.assert_close(covariance, (u * share) @ u.T, atol=2e-5, rtol=0.0)
    if shrinkage == 1e-4:
        identity_off_ones = torch.eye(12, dtype=torch.float64) - 1.0 / 12.0
        # The smallest of the other eigenvalues is about a tenth of their mean: share about 1 - 1e-3.
        torch.testing.assert_close(covariance, identity_off_ones, atol=5e-3, rtol=0.0)


def test_mean_squared_norm_of_whitened_images() -> None:
    """The trace of that covariance: sum of s / (s + eps)."""
    images = real_images(300)
    whitened = fit_preprocessing("zca", [images], zca_shrinkage=0.1).apply(images)
    rows = unit_images(images)
    s = torch.linalg.eigvalsh(rows.T @ rows / len(rows))
    expected = (s / (s + 0.1 * s.mean())).sum().item()
    assert whitened.flatten(1).square().sum(dim=1).mean().item() == pytest.approx(expected, rel=1e-5)


def test_pictures_undo_the_whitening() -> None:
    """A picture of a whitened image is that image with the mean and the norm of the average training image,
    and the norm that a distilled image drifted to does not matter."""
    images = real_images(300)
    fitted = fit_preprocessing("zca", [images], zca_shrinkage=0.1)
    assert isinstance(fitted, ZcaWhitening)
    fresh = real_images(5, seed=1)
    expected = fitted.brightness + fitted.contrast * unit_images(fresh).view(fresh.shape)
    assert 0.0 < expected.min().item() < expected.max().item() < 1.0, "nothing is clamped in this test"
    torch.testing.assert_close(fitted.to_pixels(fitted.apply(fresh)), expected.float(), atol=2e-6, rtol=0.0)
    torch.testing.assert_close(
        fitted.to_pixels(7.0 * fitted.apply(fresh)), expected.float(), atol=2e-6, rtol=0.0
    )


def test_whitening_ignores_brightness_and_contrast_and_bears_constant_images() -> None:
    """x and 0.5 x + 0.2 have one unit image, so they are whitened to the same; a constant image has none: 0."""
    fitted = fit_preprocessing("zca", [real_images(100)], zca_shrinkage=0.1)
    images = real_images(4, seed=2)
    torch.testing.assert_close(fitted.apply(0.5 * images + 0.2), fitted.apply(images), atol=1e-4, rtol=0.0)
    constant = fitted.apply(torch.full((1, 3, 2, 2), 1.0 / 3.0))
    assert constant.abs().max().item() < 1e-3
    pixels = fitted.to_pixels(torch.zeros(1, 3, 2, 2))
    torch.testing.assert_close(pixels, torch.full_like(pixels, fitted.brightness))  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["normalise", "zca"])
def test_chunks_do_not_matter(kind: str) -> None:
    """Fitted in one piece or in pieces of 7: equal up to the order of float64 sums. Applied to 2,300 images
    (three chunks) or to the last of them: equal up to float32 rounding."""
    images = real_images(2300)
    whole = fit_preprocessing(kind, [images], zca_shrinkage=0.1)
    pieces = fit_preprocessing(kind, images.split(7), zca_shrinkage=0.1)
    applied = whole.apply(images)
    torch.testing.assert_close(pieces.apply(images), applied)
    torch.testing.assert_close(whole.apply(images[-3:]), applied[-3:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_gives_back_the_same_bits(kind: str) -> None:
    """apply and to_pixels of the rebuilt preprocessing are bit-equal, not just close."""
    fitted = fit_preprocessing(kind, [real_images(60)], zca_shrinkage=0.1)
    description, tensors = fitted.to_record()
    rebuilt = preprocessing_from_record(description, {name: t.clone() for name, t in tensors.items()})
    images = real_images(9, seed=3)
    assert rebuilt.kind == kind
    assert torch.equal(rebuilt.apply(images), fitted.apply(images))
    assert torch.equal(rebuilt.to_pixels(images), fitted.to_pixels(images))
    assert rebuilt.describe() == fitted.describe()
    assert rebuilt.describe().startswith(kind)


def test_records_that_no_preprocessing_has() -> None:
    """Unknown kinds, shapes that do not fit, values that are not finite float32."""
    description, tensors = fit_preprocessing("zca", [real_images(20)], zca_shrinkage=0.1).to_record()
    with pytest.raises(ValueError, match="unknown preprocessing 'pca'; allowed: none, normalise, zca"):
        preprocessing_from_record({"kind": "pca"}, {})
    with pytest.raises(ValueError, match="whitening matrix must be \\[18, 18\\], got \\[12, 12\\]"):
        preprocessing_from_record({**description, "image_shape": [3, 2, 3]}, tensors)
    with pytest.raises(ValueError, match="image_shape must be three positive integers"):
        # As many numbers as in 3x2x2 images.
        preprocessing_from_record({**description, "image_shape": [3, -2, -2]}, tensors)
    with pytest.raises(ValueError, match="must be finite numbers"):
        preprocessing_from_record({**description, "contrast": float("inf")}, tensors)
    with pytest.raises(ValueError, match="must be finite float32"):
        preprocessing_from_record(description, {"whiten_DD": tensors["whiten_DD"].double()})
    with pytest.raises(ValueError, match="must be finite float32"):
        preprocessing_from_record(description, {"whiten_DD": tensors["whiten_DD"] * float("inf")})
    with pytest.raises(ValueError, match="positive std"):
        preprocessing_from_record({"kind": "normalise"}, {"mean_C": torch.zeros(3), "std_C": torch.zeros(3)})


def test_images_of_another_shape_are_refused() -> None:
    """Broadcasting a grey image through three channels would pass unnoticed."""
    grey = torch.rand(2, 1, 2, 2)
    with pytest.raises(ValueError, match="3 channel"):
        fit_preprocessing("normalise", [real_images(20)], zca_shrinkage=0.1).apply(grey)
    zca = fit_preprocessing("zca", [real_images(20)], zca_shrinkage=0.1)
    for method in (zca.apply, zca.to_pixels):
        with pytest.raises(ValueError, match=r"fitted on \[3, 2, 2\] images"):
            method(grey)
    assert isinstance(fit_preprocessing("none", [], zca_shrinkage=0.1), NoPreprocessing)


def test_what_cannot_be_fitted() -> None:
    """No images, constant images, no shrinkage (the covariance is always singular), unknown kinds."""
    constant = torch.full((4, 1, 2, 2), 0.25)
    for kind in ("normalise", "zca"):
        with pytest.raises(DataError, match="no training images"):
            fit_preprocessing(kind, [], zca_shrinkage=0.1)
        with pytest.raises(DataError, match=r"set data\.preprocessing to none"):
            fit_preprocessing(kind, [constant], zca_shrinkage=0.1)
    for shrinkage in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="must be above 0"):
            fit_preprocessing("zca", [real_images(4)], zca_shrinkage=shrinkage)
    with pytest.raises(ValueError, match="allowed: none, normalise, zca"):
        fit_preprocessing("pca", [real_images(4)], zca_shrinkage=0.1)
