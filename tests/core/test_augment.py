"""Differentiable augmentation: what each operation does, and that a draw is a value."""

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from ray_distill.core.augment import (
    NONE,
    OPERATIONS,
    Augmentation,
    AugmentDraw,
    Mode,
    apply,
    draw,
)
from ray_distill.core.rng import Stream

STREAM = Stream(seed=1, name="augment")
SHAPES = [(5, 2, 9, 9), (3, 3, 8, 12), (2, 1, 16, 7)]
"""Square, wide and tall."""
Image = list[list[list[float]]]
Reference = Callable[[Image, list[float]], Image]


def images(shape: Sequence[int] = SHAPES[0], name: str = "images") -> Tensor:
    return Stream(seed=2, name=name).normal(math.prod(shape), dtype=torch.float64).reshape(tuple(shape))


def draws_of(
    operations: tuple[str, ...], steps: range, batch: int = 5, mode: Mode = "single"
) -> list[AugmentDraw]:
    return draw(Augmentation(operations, mode), STREAM, steps, batch, torch.float64)


def one_draw(operation: str, batch: int = 5) -> AugmentDraw:
    (drawn,) = draws_of((operation,), range(1), batch)
    return drawn


def given(operation: str, rows: Sequence[Sequence[float]]) -> AugmentDraw:
    """A draw with these magnitudes: a row for each image."""
    return AugmentDraw((operation,), (torch.tensor(rows, dtype=torch.float64),))


# What each operation does to one image, number by number.


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def brighter(x: Image, m: list[float]) -> Image:
    return [[[v + (m[0] - 0.5) * 1.0 for v in row] for row in plane] for plane in x]


def saturated(x: Image, m: list[float]) -> Image:
    grey = [[mean(list(pixel)) for pixel in zip(*rows, strict=True)] for rows in zip(*x, strict=True)]
    return [
        [
            [(v - g) * (m[0] * 2.0) + g for v, g in zip(row, gs, strict=True)]
            for row, gs in zip(plane, grey, strict=True)
        ]
        for plane in x
    ]


def contrasted(x: Image, m: list[float]) -> Image:
    centre = mean([v for plane in x for row in plane for v in row])
    return [[[(v - centre) * (m[0] + 0.5) + centre for v in row] for row in plane] for plane in x]


def coloured(x: Image, m: list[float]) -> Image:
    return contrasted(saturated(brighter(x, m[:1]), m[1:2]), m[2:])


def flipped(x: Image, m: list[float]) -> Image:
    return [[row[::-1] for row in plane] for plane in x] if m[0] < 0.5 else x


def read(plane: list[list[float]], i: int, j: int) -> float:
    return plane[i][j] if 0 <= i < len(plane) and 0 <= j < len(plane[0]) else 0.0


def cropped(x: Image, m: list[float]) -> Image:
    height, width = len(x[0]), len(x[0][0])
    pads = [math.floor(side * 0.125 + 0.5) for side in (height, width)]
    di, dj = (math.floor(u * (2 * pad + 1)) - pad for u, pad in zip(m, pads, strict=True))
    return [[[read(plane, i + di, j + dj) for j in range(width)] for i in range(height)] for plane in x]


def resampled(x: Image, source: Callable[[float, float], tuple[float, float]]) -> Image:
    """Bilinear, at source(down, right) for each pixel's distance from the centre; zeros outside."""
    height, width = len(x[0]), len(x[0][0])
    centre = (height - 1) / 2, (width - 1) / 2

    def value(plane: list[list[float]], i: int, j: int) -> float:
        down, right = source(i - centre[0], j - centre[1])
        y, x = down + centre[0], right + centre[1]
        top, left = math.floor(y), math.floor(x)
        return sum(
            (1 - abs(y - a)) * (1 - abs(x - b)) * read(plane, a, b)
            for a, b in itertools.product((top, top + 1), (left, left + 1))
        )

    return [[[value(plane, i, j) for j in range(width)] for i in range(height)] for plane in x]


def scaled(x: Image, m: list[float]) -> Image:
    down_factor, right_factor = (1 / 1.2 + u * (1.2 - 1 / 1.2) for u in m)
    return resampled(x, lambda down, right: (down_factor * down, right_factor * right))


def rotated(x: Image, m: list[float]) -> Image:
    a = (2 * m[0] - 1) * math.radians(15)
    return resampled(
        x,
        lambda down, right: (
            math.sin(a) * right + math.cos(a) * down,
            math.cos(a) * right - math.sin(a) * down,
        ),
    )


def cut(x: Image, m: list[float]) -> Image:
    """DSA: an offset in [0, side + 1 - size % 2), and the pixels at offset - size // 2 + range(size)."""
    removed = []
    for u, side in zip(m, (len(x[0]), len(x[0][0])), strict=True):
        size = math.floor(side * 0.5 + 0.5)
        offset = math.floor(u * (side + (1 - size % 2)))
        removed.append({k + offset - size // 2 for k in range(size)})
    return [
        [
            [0.0 if i in removed[0] and j in removed[1] else v for j, v in enumerate(row)]
            for i, row in enumerate(plane)
        ]
        for plane in x
    ]


REFERENCES: dict[str, Reference] = {
    "color": coloured,
    "brightness": brighter,
    "saturation": saturated,
    "contrast": contrasted,
    "flip": flipped,
    "crop": cropped,
    "scale": scaled,
    "rotate": rotated,
    "cutout": cut,
}


def test_every_operation_has_a_reference() -> None:
    assert REFERENCES.keys() == OPERATIONS.keys()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_its_reference_image_by_image(operation: str, shape: tuple[int, ...]) -> None:
    """Four draws for every image, so that single pixels, sides and signs are told apart."""
    x = images(shape)
    for drawn in draws_of((operation,), range(4), shape[0]):
        expected = [
            REFERENCES[operation](image, m)
            for image, m in zip(x.tolist(), drawn.magnitudes[0].tolist(), strict=True)
        ]
        torch.testing.assert_close(
            apply(x, drawn), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-13
        )


@pytest.mark.parametrize("magnitude", [0.0, 0.5, 1 - 2.0**-24])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_ends_and_the_middle_of_the_magnitudes(operation: str, magnitude: float) -> None:
    x, row = images(SHAPES[1]), [magnitude] * OPERATIONS[operation].num_magnitudes
    expected = torch.tensor([REFERENCES[operation](image, row) for image in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(apply(x, given(operation, [row] * 3)), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("operation", ["saturation", "contrast", "flip", "crop", "scale", "rotate"])
def test_the_middle_magnitude_is_the_identity_where_it_is_the_middle_of_a_range(operation: str) -> None:
    """Scale is the exception: the factor 1 is at (1 - 1/1.2) / (1.2 - 1/1.2)."""
    middle = (1 - 1 / 1.2) / (1.2 - 1 / 1.2) if operation == "scale" else 0.5
    drawn = given(operation, [[middle] * OPERATIONS[operation].num_magnitudes] * 5)
    torch.testing.assert_close(apply(images(), drawn), images(), rtol=0, atol=1e-12)


def test_saturation_does_nothing_to_one_channel_and_color_is_then_brightness_and_contrast() -> None:
    x = images(SHAPES[2])
    torch.testing.assert_close(apply(x, one_draw("saturation", 2)), x, rtol=0, atol=1e-14)
    drawn = one_draw("color", 2)
    brightness, _, contrast = drawn.magnitudes[0].split(1, dim=1)
    by_two = apply(x, AugmentDraw(("brightness", "contrast"), (brightness, contrast)))
    torch.testing.assert_close(apply(x, drawn), by_two, rtol=0, atol=1e-14)


def test_flip_twice_is_the_identity() -> None:
    drawn = given("flip", [[0.1], [0.9], [0.3], [0.5], [0.2]])
    once = apply(images(), drawn)
    assert [torch.equal(a, b) for a, b in zip(once, images(), strict=True)] == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert torch.equal(apply(once, drawn), images())


def test_rotation_turns_counter_clockwise_for_a_large_magnitude() -> None:
    """A blob 8 pixels right of the centre goes up: its centroid to (8 cos 15, -8 sin 15) in (right, down).

    Bilinear sampling keeps the centroid of a smooth blob; within 0.02 pixel here.
    """
    offset = torch.arange(33, dtype=torch.float64) - 16
    down, right = torch.meshgrid(offset, offset, indexing="ij")
    blob = torch.exp(-((right - 8) ** 2 + down**2) / 8)[None, None]
    turned = apply(blob, given("rotate", [[1.0]]))[0, 0]
    mass, angle = float(turned.sum()), math.radians(15)
    assert float((turned * right).sum()) / mass == pytest.approx(8 * math.cos(angle), abs=0.02)
    assert float((turned * down).sum()) / mass == pytest.approx(-8 * math.sin(angle), abs=0.02)


@pytest.mark.parametrize("operation", ["crop", "scale", "rotate"])
def test_zeros_come_in_from_outside(operation: str) -> None:
    drawn = given(operation, [[1 - 2.0**-24] * OPERATIONS[operation].num_magnitudes])
    moved = apply(torch.ones(1, 1, 16, 16, dtype=torch.float64), drawn)[0, 0]
    assert float(moved[15, 15]) == 0.0
    assert float(moved[8, 8]) == pytest.approx(1.0, abs=1e-12)


def test_nothing_to_do_is_the_images_themselves() -> None:
    assert draw(NONE, STREAM, range(3), 5, torch.float64) == [AugmentDraw((), ())] * 3
    x = images()
    assert apply(x, AugmentDraw((), ())) is x


# The laws of what is drawn.


def chi_square(counts: Tensor) -> tuple[float, float]:
    """The statistic against equal cells, and five standard deviations above its mean."""
    expected = counts.sum() / counts.numel()
    degrees = counts.numel() - 1
    return float(((counts - expected) ** 2 / expected).sum()), degrees + 5 * math.sqrt(2 * degrees)


def test_shifts_are_uniform_up_to_an_eighth_of_each_side() -> None:
    """4000 images of one dot, 16 high and 20 wide: shifts -2 .. 2 and, as 2.5 is rounded up, -3 .. 3."""
    dot = torch.zeros(4000, 1, 16, 20)
    dot[:, :, 8, 10] = 1.0
    place = apply(dot, one_draw("crop", 4000)).flatten(1).argmax(dim=1)
    down, right = place // 20 - 8, place % 20 - 10
    assert (int(down.min()), int(down.max()), int(right.min()), int(right.max())) == (-2, 2, -3, 3)
    found, limit = chi_square(torch.bincount((down + 2) * 7 + right + 3, minlength=35).double())
    assert found < limit


@pytest.mark.parametrize(("side", "places", "size"), [(8, 9, 4), (9, 9, 5), (10, 10, 5)])
def test_cut_squares_are_uniform_and_hang_over_the_border(side: int, places: int, size: int) -> None:
    """Sides of 8: the square's first row is uniform on -2 .. 6, so between 2 and 4 of its rows show."""
    kept = apply(torch.ones(5000, 1, side, side), one_draw("cutout", 5000))[:, 0]
    row_cut, column_cut = (kept == 0).any(dim=2), (kept == 0).any(dim=1)
    assert torch.equal(kept == 0, row_cut[:, :, None] & column_cut[:, None, :])
    # Where the square hangs over the top its first row is known from the last one.
    last = side - 1 - row_cut.flip(1).float().argmax(dim=1)
    first = torch.where(row_cut[:, 0], last - size + 1, row_cut.float().argmax(dim=1))
    assert (int(first.min()), int(first.max())) == (-(size // 2), places - 1 - size // 2)
    found, limit = chi_square(torch.bincount(first + size // 2, minlength=places).double())
    assert found < limit
    assert (
        abs(float((row_cut[:, 0] & column_cut[:, 0]).float().mean()) - ((size // 2 + 1) / places) ** 2) < 0.04
    )


def measured(operation: str, count: int) -> Tensor:
    """The factor or summand that each of `count` images of one draw was given."""
    x = torch.tensor([[-1.0, -0.5, 0.5, 1.0], [1.0, 0.5, -0.5, -1.0]]).double()[None, :, :, None]
    if operation == "scale":
        # Linear images, which bilinear sampling reproduces: the pixel beside the centre shows the factor.
        x = (torch.arange(9.0).double() - 4)[None, None, None, :].expand(1, 1, 9, 9)
        return apply(x.expand(count, -1, -1, -1), one_draw(operation, count))[:, 0, 4, 5]
    moved = apply(x.expand(count, -1, 4, 4), one_draw(operation, count))[:, 0, 3, 0]
    return moved - 1.0 if operation == "brightness" else moved


@pytest.mark.parametrize(
    ("operation", "low", "high"),
    [("brightness", -0.5, 0.5), ("saturation", 0.0, 2.0), ("contrast", 0.5, 1.5), ("scale", 1 / 1.2, 1.2)],
)
def test_magnitudes_are_uniform_on_their_ranges(operation: str, low: float, high: float) -> None:
    """5000 images: ten equal cells of 500 each; nothing outside."""
    values = measured(operation, 5000)
    assert low - 1e-12 <= float(values.min())
    assert float(values.max()) < high + 1e-12
    cells = ((values - low) / (high - low) * 10).long().clamp(0, 9)
    found, limit = chi_square(torch.bincount(cells, minlength=10).double())
    assert found < limit


@pytest.mark.parametrize("operation", ["crop", "scale", "cutout", "color"])
def test_the_numbers_of_one_image_are_independent(operation: str) -> None:
    """Correlations of 20,000 pairs: standard deviation 1/sqrt(20,000); also from one image to the next."""
    (m,) = one_draw(operation, 20_000).magnitudes
    centred = (m - 0.5) * math.sqrt(12)
    for a, b in itertools.combinations(range(m.shape[1]), 2):
        assert abs(float((centred[:, a] * centred[:, b]).mean())) < 5 / math.sqrt(20_000)
    assert abs(float((centred[1:] * centred[:-1]).mean())) < 5 / math.sqrt(20_000)


@pytest.mark.parametrize("operation", ["crop", "cutout"])
def test_single_precision_finds_the_same_places(operation: str) -> None:
    """Side 40: 11 shifts, 41 places. u = (9 x 2^24 - 1) / 11 / 2^24 times 11 is 9 - 2^-24, which float32 rounds to 9."""
    shape = (2, 1, 40, 40)
    for j in [(9 * 2**24 - 1) // 11, *((k * 2**24 - 1) // 41 for k in range(1, 41))]:
        drawn = given(operation, [[j * 2.0**-24] * 2] * 2)
        single = AugmentDraw(drawn.operations, (drawn.magnitudes[0].float(),))
        assert torch.equal(single.magnitudes[0].double(), drawn.magnitudes[0])
        x = images(shape).float()
        assert torch.equal(apply(x, single).double(), apply(x.double(), drawn))


# Derivatives.


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_is_affine_and_its_gradient_is_its_transpose(operation: str) -> None:
    """With L x = A x - A 0: L (a x + b y) = a L x + b L y, and <L x, z> = <x, L^T z>, L^T z from autograd.

    All but the two that add a number are linear, A 0 = 0.
    """
    drawn = one_draw(operation)
    x, y, z = images(name="x"), images(name="y"), images(name="z")
    zero = apply(torch.zeros_like(x), drawn)
    assert bool(zero.any()) == (operation in ("brightness", "color"))
    torch.testing.assert_close(
        apply(2 * x - 3 * y, drawn) - zero,
        2 * (apply(x, drawn) - zero) - 3 * (apply(y, drawn) - zero),
        rtol=0,
        atol=1e-12,
    )
    leaf = x.clone().requires_grad_()
    (transposed,) = torch.autograd.grad(apply(leaf, drawn), leaf, z)
    assert float(((apply(y, drawn) - zero) * z).sum()) == pytest.approx(
        float((y * transposed).sum()), rel=1e-11
    )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_are_finite_differences(operation: str) -> None:
    leaf, drawn = images((2, 2, 5, 4)).requires_grad_(), one_draw(operation, 2)
    assert torch.autograd.gradcheck(lambda x: apply(x, drawn), leaf)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_image_is_augmented_by_its_own_magnitude_only(operation: str) -> None:
    drawn = one_draw(operation)
    whole = apply(images(), drawn)
    for i in range(5):
        alone = apply(images()[i : i + 1], AugmentDraw((operation,), (drawn.magnitudes[0][i : i + 1],)))
        torch.testing.assert_close(whole[i : i + 1], alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_draw_applied_again_gives_the_same_bits_and_changes_nothing(
    operation: str, dtype: torch.dtype
) -> None:
    drawn = draw(Augmentation((operation,)), STREAM, range(1), 5, dtype)[0]
    x, kept, generator = images().to(dtype), images().to(dtype), torch.get_rng_state()
    first = apply(x, drawn)
    assert first.dtype == dtype
    assert torch.equal(first, apply(x, drawn))
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), generator)


# Which operations, and when.

ALL = tuple(OPERATIONS)
ONE_OF = ("crop", "scale", "rotate")


def frequencies(draws: list[AugmentDraw]) -> dict[tuple[str, ...], int]:
    found: dict[tuple[str, ...], int] = {}
    for drawn in draws:
        found[drawn.operations] = found.get(drawn.operations, 0) + 1
    return found


@pytest.mark.parametrize("operations", [("flip", "rotate"), ALL], ids=["two", "all"])
def test_single_is_one_operation_a_step_each_equally_often(operations: tuple[str, ...]) -> None:
    draws = draws_of(operations, range(2000), 2)
    found = frequencies(draws)
    assert found.keys() == {(name,) for name in operations}
    statistic, limit = chi_square(torch.tensor(list(found.values())).double())
    assert statistic < limit
    for drawn in draws:
        (m,) = drawn.magnitudes
        assert m.shape == (2, OPERATIONS[drawn.operations[0]].num_magnitudes)


def test_composed_is_flip_colours_and_cutout_always_and_one_of_the_rest() -> None:
    """In the order of OPERATIONS, however they are listed; the three that are left equally often."""
    draws = draws_of(tuple(reversed(ALL)), range(900), 2, "composed")
    found = frequencies(draws)
    colours = ("color", "brightness", "saturation", "contrast")
    assert found.keys() == {(*colours, "flip", name, "cutout") for name in ONE_OF}
    statistic, limit = chi_square(torch.tensor(list(found.values())).double())
    assert statistic < limit
    for drawn in draws:
        assert [m.shape for m in drawn.magnitudes] == [
            (2, OPERATIONS[name].num_magnitudes) for name in drawn.operations
        ]


def test_composed_takes_what_is_listed_and_no_more() -> None:
    assert frequencies(draws_of(("cutout", "flip"), range(9), mode="composed")) == {("flip", "cutout"): 9}
    assert frequencies(draws_of(("flip", "crop"), range(9), mode="composed")) == {("flip", "crop"): 9}
    assert frequencies(draws_of(("color",), range(9), mode="composed")) == {("color",): 9}
    assert draws_of((), range(2), mode="composed") == [AugmentDraw((), ())] * 2


def test_composed_applies_one_operation_after_the_other() -> None:
    (drawn,) = draws_of(("flip", "crop", "cutout", "color"), range(1), mode="composed")
    by_hand = images().tolist()
    for name, magnitudes in zip(drawn.operations, drawn.magnitudes, strict=True):
        by_hand = [REFERENCES[name](image, m) for image, m in zip(by_hand, magnitudes.tolist(), strict=True)]
    torch.testing.assert_close(
        apply(images(), drawn), torch.tensor(by_hand, dtype=torch.float64), rtol=0, atol=1e-13
    )


def test_magnitudes_do_not_depend_on_what_else_is_listed() -> None:
    """Flip's, at the steps where it is drawn: alone, among others, and in the composed mode."""
    alone = draws_of(("flip",), range(40))
    others = [
        draws_of(("flip", "rotate"), range(40)),
        draws_of(("cutout", "flip", "color"), range(40)),
        draws_of(("flip", "crop", "scale"), range(40), mode="composed"),
    ]
    for draws in others:
        steps = [t for t, drawn in enumerate(draws) if "flip" in drawn.operations]
        assert len(steps) > 5
        for t in steps:
            place = draws[t].operations.index("flip")
            assert torch.equal(draws[t].magnitudes[place], alone[t].magnitudes[0])


def test_operations_do_not_share_their_numbers() -> None:
    first = {name: draws_of((name,), range(1))[0].magnitudes[0][:, 0] for name in OPERATIONS}
    for a, b in itertools.combinations(first.values(), 2):
        assert not torch.equal(a, b)


@pytest.mark.parametrize("mode", ["single", "composed"])
def test_draws_of_a_later_range_or_a_smaller_batch_are_part_of_the_whole(mode: Mode) -> None:
    whole = draws_of(ALL, range(12), 6, mode)
    for part, steps in ((draws_of(ALL, range(5, 12), 6, mode), 5), (draws_of(ALL, range(12), 4, mode), 0)):
        for a, b in zip(whole[steps:], part, strict=True):
            assert a.operations == b.operations
            for x, y in zip(a.magnitudes, b.magnitudes, strict=True):
                assert torch.equal(x[: len(y)], y)


def test_every_part_of_the_place_changes_operations_and_magnitudes() -> None:
    def drawn(**place: int) -> list[AugmentDraw]:
        stream = Stream(**{"seed": 1, "name": "augment", **place})
        return draw(Augmentation(("flip", "crop")), stream, range(30), 5, torch.float64)

    first = drawn()
    for place in ({"seed": 2}, {"outer_step": 1}, {"replica": 1}):
        other = drawn(**place)
        assert [d.operations for d in other] != [d.operations for d in first]
        assert not torch.equal(other[0].magnitudes[0][:, 0], first[0].magnitudes[0][:, 0])
