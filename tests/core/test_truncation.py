"""Windows: the range of each rule, and the law of RaT-BPTT's start."""

from collections import Counter

import pytest

from ray_distill.core.rng import Stream
from ray_distill.core.schedules import Constant, Linear, Piecewise
from ray_distill.core.truncation import (
    BPTT,
    RBPTT,
    TBPTT,
    CurriculumState,
    ForwardCurriculum,
    RaTBPTT,
    Window,
)

STREAM = Stream(seed=8, name="window")


Drawn = BPTT | TBPTT | RBPTT | RaTBPTT


def windows(rule: Drawn, count: int) -> list[Window]:
    return [rule.draw(STREAM.at(outer_step=i)) for i in range(count)]


def chi_square(counts: Counter[int], cells: range) -> float:
    assert set(counts) <= set(cells), "a value outside the range"
    expected = sum(counts.values()) / len(cells)
    return sum((counts[c] - expected) ** 2 / expected for c in cells)


def test_window_end_counts_burn_in_and_window() -> None:
    assert Window(start=7, length=5).end == 12


@pytest.mark.parametrize(
    "rule",
    [
        RBPTT(unroll_length=Constant(1000)),
        RaTBPTT(unroll_length=Constant(1000), window_length=Constant(5)),
    ],
    ids=["r-bptt", "rat-bptt"],
)
def test_all_replicas_have_one_window(rule: Drawn) -> None:
    """Whatever replica the stream stands at."""
    of_replicas = [Stream(seed=8, name="window", outer_step=3, replica=r) for r in range(4)]
    assert {rule.draw(stream) for stream in of_replicas} == {rule.draw(STREAM.at(outer_step=3))}


def test_bptt_and_t_bptt_are_fixed() -> None:
    assert set(windows(BPTT(unroll_length=Constant(20)), 5)) == {Window(0, 20)}
    assert set(windows(TBPTT(unroll_length=Constant(20), window_length=Constant(6)), 5)) == {Window(14, 6)}


def test_r_bptt_has_a_uniform_length_from_the_start() -> None:
    """Lengths 1 .. 6, both ends included: chi-square with 5 degrees of freedom, 5 + 5 sqrt(10) = 21."""
    drawn = windows(RBPTT(unroll_length=Constant(6)), 600)
    assert {w.start for w in drawn} == {0}
    assert chi_square(Counter(w.length for w in drawn), range(1, 7)) < 21


@pytest.mark.parametrize("min_window_start", [0, 3])
def test_rat_bptt_has_a_uniform_start_up_to_and_including_the_last(min_window_start: int) -> None:
    """Starts min .. N - W = 8, both included; chi-square of d degrees of freedom below d + 5 sqrt(2 d)."""
    rule = RaTBPTT(unroll_length=Constant(12), window_length=Constant(4), min_window_start=min_window_start)
    drawn = windows(rule, 900)
    cells = range(min_window_start, 9)
    assert {w.length for w in drawn} == {4}
    assert {w.start for w in drawn} == set(cells)
    d = len(cells) - 1
    assert chi_square(Counter(w.start for w in drawn), cells) < d + 5 * (2 * d) ** 0.5


@pytest.mark.parametrize(
    "rule",
    [
        TBPTT(unroll_length=Constant(9), window_length=Constant(9)),
        RaTBPTT(unroll_length=Constant(9), window_length=Constant(9)),
    ],
)
def test_a_window_as_long_as_the_unroll_is_bptt(rule: Drawn) -> None:
    assert windows(rule, 10) == windows(BPTT(unroll_length=Constant(9)), 10)


def test_a_rule_without_room_is_t_bptt() -> None:
    rat = RaTBPTT(unroll_length=Constant(12), window_length=Constant(4), min_window_start=8)
    assert windows(rat, 10) == windows(TBPTT(unroll_length=Constant(12), window_length=Constant(4)), 10)


def test_the_window_is_a_function_of_seed_and_outer_step_and_the_same_for_every_replica() -> None:
    """A stream moved by `at(outer_step=...)` stands at replica 0, wherever it stood."""
    rule = RaTBPTT(unroll_length=Constant(1000), window_length=Constant(10))
    first = windows(rule, 10)
    assert first == windows(rule, 10)
    assert len(set(first)) > 5
    elsewhere = Stream(seed=8, name="window", outer_step=77, replica=5)
    assert [rule.draw(elsewhere.at(outer_step=i)) for i in range(10)] == first
    other_seed = Stream(seed=9, name="window")
    assert [rule.draw(other_seed.at(outer_step=i)) for i in range(10)] != first


def test_lengths_are_those_of_the_stream_s_outer_step() -> None:
    """Unroll 10 to 18 and window 2 to 4 over 5 steps: W = 2, 2.5, 3, 3.5, 4, halves up."""
    unroll, window = Linear(start=10, end=18, steps=5), Linear(start=2, end=4, steps=5)
    assert windows(BPTT(unroll_length=unroll), 5) == [Window(0, n) for n in (10, 12, 14, 16, 18)]
    late = windows(TBPTT(unroll_length=unroll, window_length=window), 5)
    assert late == [Window(8, 2), Window(9, 3), Window(11, 3), Window(12, 4), Window(14, 4)]
    rat = RaTBPTT(unroll_length=unroll, window_length=window, min_window_start=8)
    drawn = windows(rat, 5)
    assert [w.length for w in drawn] == [2, 3, 3, 4, 4]
    assert drawn[0] == Window(8, 2), "8 is the only start there is"
    assert all(8 <= w.start <= t.start for w, t in zip(drawn, late, strict=True))


def test_scheduled_lengths_change_the_range_of_a_random_rule_from_step_to_step() -> None:
    """R-BPTT, unroll 1 to 400: the draw at step k is that of a constant unroll of k + 1."""
    drawn = windows(RBPTT(unroll_length=Linear(start=1, end=400, steps=400)), 400)
    for k in (0, 7, 399):
        assert drawn[k] == RBPTT(unroll_length=Constant(k + 1)).draw(STREAM.at(outer_step=k))
    assert max(w.length for w in drawn) > 300


def starts(rule: ForwardCurriculum, losses: list[float]) -> list[int]:
    """The window's start before any validation and after each; validations come before steps 1, 2, ..."""
    state, seen = CurriculumState(), [rule.draw(0, CurriculumState()).start]
    for i, loss in enumerate(losses, start=1):
        state = rule.update(i, state, loss)
        seen.append(rule.draw(i, state).start)
    return seen


def forward(patience: int, min_window_start: int = 1) -> ForwardCurriculum:
    return ForwardCurriculum(
        unroll_length=Constant(12),
        window_length=Constant(4),
        min_window_start=min_window_start,
        patience=patience,
    )


def test_the_curriculum_moves_by_a_window_exactly_at_its_patience() -> None:
    """Patience 3: the loss falls, ties once, rises twice: the third without a new lowest one moves it.

    2 is the best there; at the new place 9 is the first and the best, although it is worse than 2.
    """
    losses = [3.0, 2.0, 2.0, 2.5, 2.1, 9.0, 9.5, 9.5]
    assert starts(forward(3), losses) == [1, 1, 1, 1, 1, 5, 5, 5, 5]
    assert starts(forward(3), [*losses, 9.0]) == [1, 1, 1, 1, 1, 5, 5, 5, 5, 8]


def test_a_new_lowest_loss_starts_the_patience_again() -> None:
    """Two stalls, an improvement, two stalls: patience 3 is never used up; against the best, not the last."""
    assert set(starts(forward(3), [3.0, 3.0, 3.1, 2.9, 3.0, 2.95])) == {1}
    assert starts(forward(3), [3.0, 5.0, 4.0, 3.5])[-1] == 5


def test_the_curriculum_ends_at_the_end_of_the_unroll_and_stays_there() -> None:
    """Starts 1, 5, then 8 = N - W and not 9; from 0 on, 8 is met exactly."""
    assert starts(forward(1), [1.0] * 12) == [1, 1, 5, 5, 8, 8, 8, 8, 8, 8, 8, 8, 8]
    assert starts(forward(1, 0), [1.0] * 8) == [0, 0, 4, 4, 8, 8, 8, 8, 8]
    assert starts(forward(1, 8), [1.0] * 4) == [8] * 5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_a_stall(bad: float) -> None:
    """At once, and after a finite one; it is never the best that others are compared with."""
    assert starts(forward(2), [bad, bad]) == [1, 1, 5]
    assert starts(forward(2), [1.0, bad, 2.0]) == [1, 1, 1, 5]
    state = forward(2).update(1, CurriculumState(), bad)
    assert forward(2).update(2, state, 7.0) == CurriculumState(advanced=0, best_loss=7.0)


def test_the_curriculum_follows_scheduled_lengths() -> None:
    """N = 20, then 10 from step 4, 20 again from step 7; W = 3, then 5 from step 2. Every validation stalls from the second.

    Steps 2 (before it: on by 5, to 5) and 4 (to 10, but N - W is 5 by then: 5). Back at N = 20 it goes on from
    there, at step 8 to 10.
    """
    rule = ForwardCurriculum(
        unroll_length=Piecewise(values=(20, 10, 20), from_steps=(0, 4, 7)),
        window_length=Piecewise(values=(3, 5), from_steps=(0, 2)),
        patience=1,
    )
    assert starts(rule, [1.0] * 8) == [0, 0, 5, 5, 5, 5, 5, 5, 10]
    state = CurriculumState(advanced=15)
    assert [rule.draw(k, state) for k in (3, 4, 7)] == [Window(15, 5), Window(5, 5), Window(15, 5)]
