"""Differentiable augmentation: what each operation does, and that a draw is a value."""

import math

import pytest
import torch
from torch import Tensor

from ray_distill.core.augment import OPERATIONS, AugmentDraw, apply, draw
from ray_distill.core.rng import Stream

CHOICE, MAGNITUDE = Stream(seed=1, name="choice"), Stream(seed=1, name="magnitude")


def images(count: int = 5, size: int = 9, name: str = "images") -> Tensor:
    return (
        Stream(seed=2, name=name)
        .normal(count * 2 * size * size, dtype=torch.float64)
        .reshape(count, 2, size, size)
    )


def draws_of(operations: tuple[str, ...], steps: range, batch: int = 5) -> list[AugmentDraw | None]:
    return draw(operations, CHOICE, MAGNITUDE, steps, batch, torch.float64)


def test_nothing_to_choose_from_is_no_augmentation() -> None:
    assert draws_of((), range(3)) == [None, None, None]
    x = images()
    assert apply(x, None) is x


def test_flip_mirrors_left_right_where_the_magnitude_is_below_one_half() -> None:
    x = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]]).repeat(3, 1, 1, 1)
    flipped = apply(x, AugmentDraw("flip", torch.tensor([0.0, 0.49, 0.5])))
    assert flipped[:, 0].tolist() == [[[3, 2, 1], [6, 5, 4]]] * 2 + [[[1, 2, 3], [4, 5, 6]]]


def test_flip_twice_is_the_identity() -> None:
    drawn = AugmentDraw("flip", torch.tensor([0.1, 0.9, 0.3, 0.5, 0.2], dtype=torch.float64))
    assert torch.equal(apply(apply(images(), drawn), drawn), images())


def test_rotation_by_the_middle_magnitude_is_the_identity() -> None:
    """Magnitude 1/2 is an angle of 0: every sample falls on a pixel."""
    drawn = AugmentDraw("rotate", torch.full((5,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(apply(images(), drawn), images(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("magnitude", [0.0, 0.25, 0.8, 1.0])
def test_rotation_turns_a_blob_about_the_centre(magnitude: float) -> None:
    """A blob 8 pixels right of the centre turns counter-clockwise by a = (2 m - 1) 15 degrees.

    The output at p samples the input at R(a) p, so what lay at q goes to R(a)^-1 q = (8 cos a, -8 sin a) in
    (right, down). Bilinear sampling keeps the centroid of a smooth blob; within 0.02 pixel here.
    """
    offset = torch.arange(33, dtype=torch.float64) - 16
    down, right = torch.meshgrid(offset, offset, indexing="ij")
    blob = torch.exp(-((right - 8) ** 2 + down**2) / 8)[None, None]
    turned = apply(blob, AugmentDraw("rotate", torch.tensor([magnitude], dtype=torch.float64)))[0, 0]
    angle = (2 * magnitude - 1) * math.radians(15)
    mass = float(turned.sum())
    assert float((turned * right).sum()) / mass == pytest.approx(8 * math.cos(angle), abs=0.02)
    assert float((turned * down).sum()) / mass == pytest.approx(-8 * math.sin(angle), abs=0.02)


def test_rotation_brings_in_zeros_from_outside() -> None:
    drawn = AugmentDraw("rotate", torch.ones(1, dtype=torch.float64))
    turned = apply(torch.ones(1, 1, 16, 16, dtype=torch.float64), drawn)[0, 0]
    assert float(turned[0, 0]) == 0.0
    assert float(turned[8, 8]) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_is_linear_and_its_gradient_is_its_transpose(operation: str) -> None:
    """A(a x + b y) = a A x + b A y, and <A x, z> = <x, A^T z> with A^T z from autograd."""
    (drawn,) = draws_of((operation,), range(1))
    x, y, z = images(name="x"), images(name="y"), images(name="z")
    torch.testing.assert_close(
        apply(2 * x - 3 * y, drawn), 2 * apply(x, drawn) - 3 * apply(y, drawn), rtol=0, atol=1e-12
    )
    leaf = x.clone().requires_grad_()
    (transposed,) = torch.autograd.grad(apply(leaf, drawn), leaf, z)
    assert float((apply(y, drawn) * z).sum()) == pytest.approx(float((y * transposed).sum()), rel=1e-12)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_image_is_augmented_by_its_own_magnitude_only(operation: str) -> None:
    (drawn,) = draws_of((operation,), range(1))
    assert drawn is not None
    whole = apply(images(), drawn)
    for i in range(5):
        alone = apply(images()[i : i + 1], AugmentDraw(operation, drawn.magnitudes_B[i : i + 1]))
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=0, atol=1e-14)


def test_one_operation_a_step_each_equally_often_and_a_magnitude_for_each_image() -> None:
    """1000 steps: flips are binomial, 500 with standard deviation 16. Magnitudes: 5000 uniform draws."""
    drawn = [d for d in draws_of(("flip", "rotate"), range(1000)) if d is not None]
    assert len(drawn) == 1000
    assert abs(sum(d.operation == "flip" for d in drawn) - 500) < 80
    magnitudes = torch.stack([d.magnitudes_B for d in drawn])
    assert magnitudes.shape == (1000, 5)
    assert abs(float(magnitudes.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / 5000)
    assert len(magnitudes.unique()) > 4900


def test_draws_of_a_later_range_replay_those_of_the_whole() -> None:
    whole, later = draws_of(("flip", "rotate"), range(8)), draws_of(("flip", "rotate"), range(5, 8))
    for a, b in zip(whole[5:], later, strict=True):
        assert a is not None
        assert b is not None
        assert a.operation == b.operation
        assert torch.equal(a.magnitudes_B, b.magnitudes_B)
