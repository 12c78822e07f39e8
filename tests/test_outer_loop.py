"""The outer loop without Ray: what is averaged, what a resumed run gives, what a NaN may not do."""

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Bench
from torch import Tensor

from ray_distill import checkpoint
from ray_distill.core.metagradient import Metagradient, adjoint_metagradient
from ray_distill.outer_loop import (
    NonFiniteError,
    OneProcess,
    Report,
    draw_real_batch,
    draw_window,
    mean_metagradient,
    outer_loop,
    outer_step,
    replica_metagradient,
    validate,
)
from ray_distill.run_state import Best, RunState

Make = Callable[..., Bench]


def run(b: Bench, state: RunState | None = None, reports: list[Report] | None = None) -> RunState:
    """The loop in one process, from the start or from a state."""
    state = state or RunState.start(b.initial, b.experiment.outer)
    seen = reports if reports is not None else []
    return outer_loop(b.experiment, b.train, b.validation, state, OneProcess(), seen.append)


def same(a: RunState, b: RunState) -> bool:
    """Bit-equal tensors and equal records."""
    (ta, ra), (tb, rb) = a.to_record(), b.to_record()
    return ra == rb and ta.keys() == tb.keys() and all(torch.equal(ta[k], tb[k]) for k in ta)


def test_twenty_steps_are_ten_and_ten_more_from_a_checkpoint(bench: Make, tmp_path: Path) -> None:
    """A state that went through a file goes on bit for bit: D, moments, clip average, counters and best set."""
    b = bench()
    straight = run(b)
    half = replace(b.experiment, outer_steps=10)
    stopped = outer_loop(
        half, b.train, b.validation, RunState.start(b.initial, half.outer), OneProcess(), lambda _: None
    )
    checkpoint.save(tmp_path / "state.arrow", *stopped.to_record())
    resumed = run(b, RunState.from_record(*checkpoint.load(tmp_path / "state.arrow")))
    assert straight.outer_step == resumed.outer_step == 20
    assert same(straight, resumed)
    assert not torch.equal(straight.data.images_NCHW, stopped.data.images_NCHW)


def test_the_metagradient_is_the_mean_over_replicas(bench: Make) -> None:
    """With two replicas: half the sum of what each gives alone."""
    b = bench()
    window = draw_window(b.experiment, 3)
    mean, finite = mean_metagradient(b.experiment, b.train, b.initial, window, 3, OneProcess())
    first, second = (replica_metagradient(b.experiment, b.train, b.initial, window, 3, r) for r in (0, 1))
    assert finite.tolist() == [1, 1]
    assert not torch.allclose(first.grad.images_NCHW, second.grad.images_NCHW)
    expected = (first.grad.images_NCHW + second.grad.images_NCHW) / 2
    torch.testing.assert_close(mean.grad.images_NCHW, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(mean.outer_loss, (first.outer_loss + second.outer_loss) / 2)


class ThreadWorld:
    """Ranks that are threads: the sum is taken in rank order once all have put their values down."""

    def __init__(self, rank: int, size: int, board: list[Tensor | None], barrier: threading.Barrier) -> None:
        self.rank, self.size, self._board, self._barrier = rank, size, board, barrier

    def sum(self, values: Tensor) -> Tensor:
        self._board[self.rank] = values
        self._barrier.wait()
        total = torch.stack([v for v in self._board if v is not None]).sum(dim=0)
        self._barrier.wait()
        return total


@pytest.mark.parametrize(("replicas", "size"), [(2, 2), (3, 2), (4, 3)])
def test_any_number_of_ranks_gives_the_same_state(bench: Make, replicas: int, size: int) -> None:
    """Replicas and validation networks shared out over ranks, evenly or not: D to 1e-12, on every rank."""
    b = bench(replicas=replicas, outer={"steps": 4})
    alone = run(b)
    board: list[Tensor | None] = [None] * size
    barrier = threading.Barrier(size, timeout=60)
    ends: dict[int, RunState] = {}

    # functional_call borrows the module while it runs, so each thread has a network of its own.
    benches = [bench(replicas=replicas, outer={"steps": 4}) for _ in range(size)]

    def rank(r: int) -> None:
        own = benches[r]
        state = RunState.start(own.initial, own.experiment.outer)
        world = ThreadWorld(r, size, board, barrier)
        ends[r] = outer_loop(own.experiment, own.train, own.validation, state, world, lambda _: None)

    threads = [threading.Thread(target=rank, args=(r,), daemon=True) for r in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(ends) == size
    for end in ends.values():
        torch.testing.assert_close(end.data.images_NCHW, alone.data.images_NCHW, rtol=1e-12, atol=1e-14)
        assert end.best is not None
        assert alone.best is not None
        assert end.best.accuracy == pytest.approx(alone.best.accuracy, abs=1e-12)


def test_an_outer_step_leaves_every_global_generator_alone(bench: Make) -> None:
    """torch, numpy and random draw next what they would have drawn without it."""
    b = bench()
    state = RunState.start(b.initial, b.experiment.outer)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    state, _ = outer_step(b.experiment, b.train, state, OneProcess())
    validate(b.experiment, b.validation, state, OneProcess())
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_global_seeds_do_not_reach_the_numbers(bench: Make) -> None:
    """Two runs under different global seeds are the same run."""
    b = bench(outer={"steps": 3})
    torch.manual_seed(1)
    first = run(b)
    torch.manual_seed(2)
    assert same(first, run(b))


def nan_engine(bad: dict[int, int]) -> Callable[..., Metagradient]:
    """The adjoint, but a NaN in one replica's metagradient at some outer steps (counted in calls)."""
    calls = [0]

    def engine(*args: object) -> Metagradient:
        step, replica = divmod(calls[0], 2)
        calls[0] += 1
        result = adjoint_metagradient(*args)  # type: ignore[arg-type]
        if bad.get(step) == replica:
            result.grad.images_NCHW[0, 0, 0, 0] = float("nan")
        return result

    return engine


def test_a_nan_never_reaches_the_distilled_set(bench: Make) -> None:
    """The step is skipped: D, moments and the clip average stay as they were; the next steps go on."""
    b = bench(outer={"steps": 4})
    experiment = replace(b.experiment, engine=nan_engine({2: 1}))
    states: list[RunState] = [RunState.start(b.initial, experiment.outer)]
    for _ in range(4):
        state, values = outer_step(experiment, b.train, states[-1], OneProcess())
        states.append(state)
    assert values["outer_loss"] > 0
    assert torch.equal(states[3].data.images_NCHW, states[2].data.images_NCHW)
    assert states[3].outer == states[2].outer
    assert [s.nonfinite_total for s in states] == [0, 0, 0, 1, 1]
    assert [s.nonfinite_in_a_row for s in states] == [0, 0, 0, 1, 0]
    assert states[4].data.images_NCHW.isfinite().all()
    assert not torch.equal(states[4].data.images_NCHW, states[3].data.images_NCHW)


def test_nans_in_a_row_end_the_run_and_name_their_place(bench: Make) -> None:
    """The third skipped step in a row raises, naming step, window and replica, with D still finite."""
    b = bench(outer={"max_nonfinite_steps": 3})
    experiment = replace(b.experiment, engine=nan_engine({4: 0, 5: 1, 6: 1}))
    window = draw_window(experiment, 6)
    with pytest.raises(NonFiniteError, match="outer step 6") as caught:
        outer_loop(
            experiment,
            b.train,
            b.validation,
            RunState.start(b.initial, experiment.outer),
            OneProcess(),
            lambda _: None,
        )
    assert f"window [{window.start}, {window.end}), replicas [1]" in str(caught.value)


def test_the_window_is_redrawn_on_its_cadence(bench: Make) -> None:
    """redraw_every 4: steps 0-3 share a window, 4-7 another; and it is a window of the rule."""
    b = bench(truncation={"unroll_length": 100, "redraw_every": 4})
    windows = [draw_window(b.experiment, step) for step in range(40)]
    assert all(windows[i] == windows[i - i % 4] for i in range(40))
    assert len(set(windows)) > 5
    assert all(w.length == 3 and 0 <= w.start <= 97 for w in windows)


def test_real_batches_are_without_replacement_and_differ_by_place(bench: Make) -> None:
    """Each replica and outer step draws its own rows; the labels belong to the images."""
    b = bench(outer={"augmentation": []})
    one = draw_real_batch(b.experiment, b.train, 10, 0, 0)
    rows = [
        int((b.train.images_NCHW == image).flatten(1).all(dim=1).nonzero()[0]) for image in one.images_NCHW
    ]
    assert len(set(rows)) == 32
    assert torch.equal(one.labels_NK.argmax(dim=1), b.train.labels_N[rows])
    for step, replica in ((1, 0), (0, 1)):
        other = draw_real_batch(b.experiment, b.train, 10, step, replica)
        assert not torch.equal(one.images_NCHW, other.images_NCHW)


def test_reports_come_on_the_cadence_and_lose_no_step(bench: Make) -> None:
    """Report every 5, checkpoint every 6, validate every 4, 14 steps: the last step does all three."""
    b = bench(
        outer={"steps": 14},
        validation={"every": 4, "num_networks": 1},
        checkpoint={"every": 6},
        tracking={"report_every": 5},
    )
    reports: list[Report] = []
    end = run(b, reports=reports)
    assert [(r.state.outer_step, r.checkpoint) for r in reports] == [
        (5, False),
        (6, True),
        (10, False),
        (12, True),
        (14, True),
    ]
    points = [p for r in reports for p in r.points]
    assert [p.outer_step for p in points] == list(range(1, 15))
    assert [p.outer_step for p in points if "validation_accuracy" in p.values] == [4, 8, 12, 14]
    assert all({"outer_loss", "metagradient_norm", "clip_rate"} <= p.values.keys() for p in points)
    accuracies = {
        p.outer_step: p.values["validation_accuracy"] for p in points if p.outer_step in (4, 8, 12, 14)
    }
    assert end.best is not None
    assert end.best.accuracy == max(accuracies.values())
    assert end.best.outer_step == max(accuracies, key=lambda s: (accuracies[s], -s))


def test_the_best_set_is_the_earlier_one_on_a_tie(bench: Make) -> None:
    """judge keeps what it has unless the candidate is better."""
    b = bench()
    start = RunState.start(b.initial, b.experiment.outer)
    first = start.judge(Best(b.initial, 1, 0.5))
    assert first.judge(Best(b.initial, 2, 0.5)).best == first.best
    better = first.judge(Best(b.initial, 2, 0.6)).best
    assert better is not None
    assert better.outer_step == 2


def test_validation_looks_at_validation_data_only(bench: Make) -> None:
    """With the validation labels shifted by one class the accuracy changes; with the train labels it does not."""
    b = bench()
    state = RunState.start(b.initial._replace(images_NCHW=b.initial.images_NCHW * 5), b.experiment.outer)
    rows = [int((b.train.labels_N == k).nonzero()[0]) for k in range(10)]
    state = state._replace(data=state.data._replace(images_NCHW=b.train.images_NCHW[rows]))
    experiment = replace(b.experiment, validation=replace(b.experiment.validation, horizon=40))
    right = validate(experiment, b.validation, state, OneProcess())
    shifted = b.validation._replace(labels_N=(b.validation.labels_N + 1) % 10)
    assert right > 0.3 > validate(experiment, shifted, state, OneProcess())
