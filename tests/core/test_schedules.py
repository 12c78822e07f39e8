"""Schedules: closed forms at the ends, in the middle and beyond, and how lengths are rounded."""

import math

import pytest

from ray_distill.core.schedules import Constant, Cosine, Linear, Piecewise, Schedule, integer_at


def test_a_constant_is_itself() -> None:
    assert {Constant(0.3).at(k) for k in (0, 1, 10**6)} == {0.3}


@pytest.mark.parametrize("kind", [Linear, Cosine])
@pytest.mark.parametrize(("start", "end"), [(1e-2, 1e-4), (0.1, 0.7)])
def test_both_ends_are_exact_and_the_end_stays(kind: type[Linear | Cosine], start: float, end: float) -> None:
    """Over 11 steps: start at step 0, end at step 10, the last one, and from there on."""
    schedule = kind(start=start, end=end, steps=11)
    assert schedule.at(0) == start
    assert schedule.at(9) != end
    assert {schedule.at(k) for k in (10, 11, 1000)} == {end}


@pytest.mark.parametrize("kind", [Linear, Cosine])
def test_two_steps_are_start_and_end(kind: type[Linear | Cosine]) -> None:
    schedule = kind(start=3.0, end=5.0, steps=2)
    assert [schedule.at(k) for k in range(3)] == [3.0, 5.0, 5.0]


def test_linear_goes_in_equal_steps() -> None:
    """From 1 to 3 over 5 steps: by a half each."""
    schedule = Linear(start=1.0, end=3.0, steps=5)
    assert [schedule.at(k) for k in range(5)] == pytest.approx([1.0, 1.5, 2.0, 2.5, 3.0], rel=1e-15)


def test_cosine_is_level_at_its_ends() -> None:
    """From 1 to 0 over 7 steps: (1 + cos(k pi/6)) / 2; a half in the middle, cos(pi/6) = sqrt(3)/2."""
    schedule = Cosine(start=1.0, end=0.0, steps=7)
    high, low = (1 + math.sqrt(3) / 2) / 2, (1 - math.sqrt(3) / 2) / 2
    expected = [1.0, high, 0.75, 0.5, 0.25, low, 0.0]
    assert [schedule.at(k) for k in range(7)] == pytest.approx(expected, rel=1e-14)


def test_piecewise_changes_at_its_steps() -> None:
    schedule = Piecewise(values=(5.0, 2.0, 7.0), from_steps=(0, 3, 4))
    assert [schedule.at(k) for k in range(7)] == [5.0, 5.0, 5.0, 2.0, 7.0, 7.0, 7.0]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(4), [4] * 5),
        # 4, 4.5, 5, 5.5, 6: halves go up, where Python's round would take the even ones 4 and 6.
        (Linear(start=4, end=6, steps=5), [4, 5, 5, 6, 6]),
        (Linear(start=6, end=4, steps=5), [6, 6, 5, 5, 4]),
    ],
)
def test_lengths_are_rounded_to_the_nearest_integer_halves_up(
    schedule: Schedule, expected: list[int]
) -> None:
    rounded = [integer_at(schedule, k) for k in range(5)]
    assert rounded == expected
    assert all(isinstance(value, int) for value in rounded)
