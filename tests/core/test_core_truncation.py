"""Windows: the range of each rule, and the law of RaT-BPTT's start."""

from collections import Counter

import pytest

from ray_distill.core.rng import Stream
from ray_distill.core.truncation import BPTT, RBPTT, TBPTT, RaTBPTT, Truncation, Window

STREAM = Stream(seed=8, name="window")


def windows(rule: Truncation, count: int) -> list[Window]:
    return [rule.draw(STREAM.at(outer_step=i)) for i in range(count)]


def chi_square(counts: Counter[int], cells: range) -> float:
    assert set(counts) <= set(cells), "a value outside the range"
    expected = sum(counts.values()) / len(cells)
    return sum((counts[c] - expected) ** 2 / expected for c in cells)


def test_window_end_counts_burn_in_and_window() -> None:
    assert Window(start=7, length=5).end == 12


def test_bptt_and_t_bptt_are_fixed() -> None:
    assert set(windows(BPTT(unroll_length=20), 5)) == {Window(0, 20)}
    assert set(windows(TBPTT(unroll_length=20, window_length=6), 5)) == {Window(14, 6)}


def test_r_bptt_has_a_uniform_length_from_the_start() -> None:
    """Lengths 1 .. 6, both ends included: chi-square with 5 degrees of freedom, 5 + 5 sqrt(10) = 21."""
    drawn = windows(RBPTT(unroll_length=6), 600)
    assert {w.start for w in drawn} == {0}
    assert chi_square(Counter(w.length for w in drawn), range(1, 7)) < 21


@pytest.mark.parametrize("min_window_start", [0, 3])
def test_rat_bptt_has_a_uniform_start_up_to_and_including_the_last(min_window_start: int) -> None:
    """Starts min .. N - W = 8, both included; chi-square of d degrees of freedom below d + 5 sqrt(2 d)."""
    rule = RaTBPTT(unroll_length=12, window_length=4, min_window_start=min_window_start)
    drawn = windows(rule, 900)
    cells = range(min_window_start, 9)
    assert {w.length for w in drawn} == {4}
    assert {w.start for w in drawn} == set(cells)
    d = len(cells) - 1
    assert chi_square(Counter(w.start for w in drawn), cells) < d + 5 * (2 * d) ** 0.5


@pytest.mark.parametrize(
    "rule",
    [
        TBPTT(unroll_length=9, window_length=9),
        RaTBPTT(unroll_length=9, window_length=9),
    ],
)
def test_a_window_as_long_as_the_unroll_is_bptt(rule: Truncation) -> None:
    assert windows(rule, 10) == windows(BPTT(unroll_length=9), 10)


def test_a_rule_without_room_is_t_bptt() -> None:
    rat = RaTBPTT(unroll_length=12, window_length=4, min_window_start=8)
    assert windows(rat, 10) == windows(TBPTT(unroll_length=12, window_length=4), 10)


def test_the_window_is_a_function_of_seed_and_outer_step_and_the_same_for_every_replica() -> None:
    """A stream moved by `at(outer_step=...)` stands at replica 0, wherever it stood."""
    rule = RaTBPTT(unroll_length=1000, window_length=10)
    first = windows(rule, 10)
    assert first == windows(rule, 10)
    assert len(set(first)) > 5
    elsewhere = Stream(seed=8, name="window", outer_step=77, replica=5)
    assert [rule.draw(elsewhere.at(outer_step=i)) for i in range(10)] == first
    other_seed = Stream(seed=9, name="window")
    assert [rule.draw(other_seed.at(outer_step=i)) for i in range(10)] != first
