"""The outer loop without Ray: what is averaged, what a resumed run gives, what a NaN may not do."""

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ray_distill.builders.experiment import build_inner_problem
from ray_distill.core import outer_loop as loop
from ray_distill.core.distributed import SingleProcess
from ray_distill.core.metagradient import (
    Metagradient,
    adjoint_metagradient,
    adjoint_metagradients,
    per_replica,
)
from ray_distill.core.outer_loop import (
    NonFiniteError,
    Report,
    draw_real_batch,
    draw_window,
    mean_metagradient,
    outer_loop,
    outer_step,
    replica_metagradients,
    scheduled_values,
    validate,
)
from ray_distill.core.retrain import Score, retrain
from ray_distill.core.state import Best, RunState
from ray_distill.core.truncation import CurriculumState
from ray_distill.core.unroll import InnerDraws, draw_inner
from ray_distill.distillation import checkpoint
from ray_distill.distillation.checkpoint import from_record, to_record
from tests.helpers.tiny import Bench, whole

Make = Callable[..., Bench]


def run(b: Bench, state: RunState | None = None, reports: list[Report] | None = None) -> RunState:
    """The loop in one process, from the start or from a state."""
    state = state or RunState.start(b.initial, b.experiment.outer)
    seen = reports if reports is not None else []
    return outer_loop(b.experiment, b.train, b.validation, state, SingleProcess(), seen.append)


def same(a: RunState, b: RunState) -> bool:
    """Bit-equal tensors and equal records."""
    (ta, ra), (tb, rb) = to_record(a), to_record(b)
    return ra == rb and ta.keys() == tb.keys() and all(torch.equal(ta[k], tb[k]) for k in ta)


LINEAR = {"schedule": "linear"}
EVERYTHING = {
    "distilled": {"ipc": 2, "learn_labels": True, "label_lr_scale": 0.5},
    "inner": {"lr": {"schedule": "cosine", "start": 0.01, "end": 0.002}},
    "truncation": {
        "rule": "forward",
        "unroll_length": LINEAR | {"start": 6, "end": 9},
        "window_length": LINEAR | {"start": 2, "end": 3},
        "patience": 2,
    },
    "outer": {"steps": 20, "lr": LINEAR | {"start": 0.01, "end": 0.001}},
    "validation": {"every": 1},
}
"""All of a run's state at work: schedules, a curriculum that moves, learnt labels."""


@pytest.mark.parametrize("sections", [{}, EVERYTHING], ids=["plain", "everything"])
def test_twenty_steps_are_some_and_the_rest_from_a_checkpoint(
    bench: Make, tmp_path: Path, sections: dict
) -> None:
    """A state that went through a file goes on bit for bit: D, moments, clip average, counters and best set.

    With a curriculum the stop is within a patience, after its window has moved and before it last moves.
    """
    b = bench(**sections, tracking={"report_every": 1})
    reports: list[Report] = []
    straight = run(b, reports=reports)
    stop = 10
    if sections:
        curricula = {r.state.outer_step: r.state.curriculum for r in reports}
        last = straight.curriculum.advanced
        stop = min(k for k, c in curricula.items() if 0 < c.advanced < last and c.num_stalled == 1)
    half = replace(b.experiment, outer_steps=stop)
    stopped = outer_loop(
        half, b.train, b.validation, RunState.start(b.initial, half.outer), SingleProcess(), lambda _: None
    )
    checkpoint.save_tensors(tmp_path / "state.arrow", *to_record(stopped))
    resumed = run(b, from_record(*checkpoint.load_tensors(tmp_path / "state.arrow")))
    assert straight.outer_step == resumed.outer_step == 20
    assert same(straight, resumed)
    assert not torch.equal(straight.data.images_NCHW, stopped.data.images_NCHW)
    if sections:
        at = stopped.curriculum
        assert 0 < at.advanced < straight.curriculum.advanced, "it moved before the stop and after it"
        assert at.num_stalled == 1, "the stop is within a patience"
        assert not torch.equal(straight.data.labels_NK, stopped.data.labels_NK)


def test_each_step_says_how_alike_its_replicas_are_and_where_in_the_window_it_learns(bench: Make) -> None:
    """From the replicas' own metagradients; ranks give the same (`test_ranks_share_the_replicas`)."""
    b = bench(replicas=3)
    window = draw_window(b.experiment, 0, CurriculumState())
    each = replica_metagradients(b.experiment, b.train, b.initial, window, 0, range(3))
    flat = torch.stack([one.grad.images_NCHW.flatten() for one in each])
    _, values = outer_step(
        b.experiment, b.train, RunState.start(b.initial, b.experiment.outer), SingleProcess()
    )
    assert values["metagradient_variance"] == pytest.approx(float(flat.var(dim=0).sum()), rel=1e-9)
    assert values["metagradient_norm"] == pytest.approx(float(flat.mean(dim=0).norm()), rel=1e-12)
    assert -0.5 <= values["replica_cosine"] <= 1.0
    first = sum(float(one.position_norms_W[0]) for one in each) / 3
    assert values["window_position_norm/00"] == pytest.approx(first, rel=1e-12)
    assert window.length == 3


def test_the_metagradient_is_the_mean_over_replicas(bench: Make) -> None:
    """With two replicas: half the sum of what each gives alone."""
    b = bench()
    window = draw_window(b.experiment, 3, CurriculumState())
    mean, finite, _ = mean_metagradient(b.experiment, b.train, b.initial, window, 3, SingleProcess())
    (first,), (second,) = (
        replica_metagradients(b.experiment, b.train, b.initial, window, 3, [r]) for r in range(2)
    )
    assert finite.tolist() == [1, 1]
    assert not torch.allclose(first.grad.images_NCHW, second.grad.images_NCHW)
    expected = (first.grad.images_NCHW + second.grad.images_NCHW) / 2
    torch.testing.assert_close(mean.grad.images_NCHW, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(mean.outer_loss, (first.outer_loss + second.outer_loss) / 2)


@pytest.mark.parametrize("at_once", [1, 2, 3, 5])
def test_replicas_at_once_change_no_number(bench: Make, at_once: int) -> None:
    """Five replicas in groups of 1, of 2, 2 and 1, of 3 and 2, and all: the mean of each computed alone."""
    b = bench(replicas=5)
    experiment = replace(b.experiment, engine=adjoint_metagradients, group_size=at_once)
    window = draw_window(experiment, 3, CurriculumState())
    mean, finite, _ = mean_metagradient(experiment, b.train, b.initial, window, 3, SingleProcess())
    each = [replica_metagradients(b.experiment, b.train, b.initial, window, 3, [r])[0] for r in range(5)]
    assert finite.tolist() == [1] * 5
    for ours, parts in zip(mean.grad, zip(*(one.grad for one in each), strict=True), strict=True):
        torch.testing.assert_close(ours, torch.stack(parts).mean(dim=0), rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(mean.outer_loss, torch.stack([one.outer_loss for one in each]).mean())


def test_a_replica_of_a_group_that_is_not_finite_is_the_one_that_is_named(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NaN in the first parameters of replica 3, in a group with 2: its bit alone is 0."""
    b = bench(replicas=5)

    def spoilt(*args: object) -> InnerDraws:
        draws = draw_inner(*args)  # type: ignore[arg-type]
        return draws._replace(theta_P=draws.theta_P * float("nan")) if args[3] == 3 else draws

    monkeypatch.setattr(loop, "draw_inner", spoilt)
    experiment = replace(b.experiment, engine=adjoint_metagradients, group_size=2)
    window = draw_window(experiment, 3, CurriculumState())
    _, finite, _ = mean_metagradient(experiment, b.train, b.initial, window, 3, SingleProcess())
    assert finite.tolist() == [1, 1, 1, 0, 1]


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


@pytest.mark.parametrize(
    ("replicas", "size", "sections"),
    [
        (2, 2, {"outer": {"steps": 4}}),
        (3, 2, {"outer": {"steps": 4}}),
        (4, 3, {"outer": {"steps": 4}}),
        (5, 2, {"outer": {"steps": 4}, "precision": "float32"}),
        (3, 2, EVERYTHING | {"outer": EVERYTHING["outer"] | {"steps": 4}}),
    ],
)
def test_any_number_of_ranks_gives_the_same_state(
    bench: Make, replicas: int, size: int, sections: dict
) -> None:
    """Replicas and validation networks shared out over ranks, evenly or not: D to 1e-10, on every rank; in float32
    too, since the same replicas are computed together and their sum is taken in float64."""
    b = bench(replicas=replicas, **sections)
    alone = run(b)
    board: list[Tensor | None] = [None] * size
    barrier = threading.Barrier(size, timeout=60)
    ends: dict[int, RunState] = {}

    # functional_call borrows the module while it runs, so each thread has a network of its own.
    benches = [bench(replicas=replicas, **sections) for _ in range(size)]

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
        torch.testing.assert_close(end.data.images_NCHW, alone.data.images_NCHW, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(end.data.labels_NK, alone.data.labels_NK, rtol=1e-10, atol=1e-12)
        assert end.best is not None
        assert alone.best is not None
        assert end.best.accuracy == pytest.approx(alone.best.accuracy, abs=1e-12)
        assert end.curriculum == ends[0].curriculum
        assert end.curriculum._replace(best_loss=None) == alone.curriculum._replace(best_loss=None)


def test_an_outer_step_leaves_every_global_generator_alone(bench: Make) -> None:
    """torch, numpy and random draw next what they would have drawn without it."""
    b = bench()
    state = RunState.start(b.initial, b.experiment.outer)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    state, _ = outer_step(b.experiment, b.train, state, SingleProcess())
    validate(b.experiment, b.validation, state, SingleProcess())
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
    experiment = replace(b.experiment, engine=per_replica(nan_engine({2: 1})))
    states: list[RunState] = [RunState.start(b.initial, experiment.outer)]
    for _ in range(4):
        state, values = outer_step(experiment, b.train, states[-1], SingleProcess())
        states.append(state)
    assert values["outer_loss"] > 0
    assert torch.equal(states[3].data.images_NCHW, states[2].data.images_NCHW)
    assert states[3].outer == states[2].outer
    assert [s.nonfinite_total for s in states] == [0, 0, 0, 1, 1]
    assert [s.nonfinite_in_a_row for s in states] == [0, 0, 0, 1, 0]
    assert states[4].data.images_NCHW.isfinite().all()
    assert not torch.equal(states[4].data.images_NCHW, states[3].data.images_NCHW)


def test_nans_in_a_row_end_the_run_and_name_their_place(bench: Make) -> None:
    """The third skipped step in a row raises, naming step, window and replica, with D still finite; the steps
    since the last report, which was after the fifth, are reported first."""
    b = bench(outer={"max_nonfinite_steps": 3})
    experiment = replace(b.experiment, engine=per_replica(nan_engine({4: 0, 5: 1, 6: 1})))
    window = draw_window(experiment, 6, CurriculumState())
    reports: list[Report] = []
    with pytest.raises(NonFiniteError, match="outer step 6") as caught:
        outer_loop(
            experiment,
            b.train,
            b.validation,
            RunState.start(b.initial, experiment.outer),
            SingleProcess(),
            reports.append,
        )
    assert [[p.outer_step for p in r.points] for r in reports] == [[1, 2, 3, 4, 5], [6]]
    assert not reports[-1].checkpoint
    assert reports[-1].state.data.images_NCHW.isfinite().all()
    assert f"window [{window.start}, {window.end}), replicas [1]" in str(caught.value)


def test_the_window_is_redrawn_on_its_cadence(bench: Make) -> None:
    """redraw_every 4: steps 0-3 share a window, 4-7 another; and it is a window of the rule."""
    b = bench(truncation={"unroll_length": 100, "redraw_every": 4})
    windows = [draw_window(b.experiment, step, CurriculumState()) for step in range(40)]
    assert all(windows[i] == windows[i - i % 4] for i in range(40))
    assert len(set(windows)) > 5
    assert all(w.length == 3 and 0 <= w.start <= 97 for w in windows)


def test_a_shared_window_has_the_lengths_of_the_step_that_drew_it(bench: Make) -> None:
    """Unroll 20 to 58 and window 1 to 20 over 20 steps, drawn anew every 4: N = 20 + 2 k, W = 1 + k at k = 0, 4, ..."""
    b = bench(
        truncation={
            "unroll_length": {"schedule": "linear", "start": 20, "end": 58},
            "window_length": {"schedule": "linear", "start": 1, "end": 20},
            "redraw_every": 4,
        }
    )
    windows = [draw_window(b.experiment, step, CurriculumState()) for step in range(20)]
    assert [w.length for w in windows] == [1 + k - k % 4 for k in range(20)]
    assert all(windows[i] == windows[i - i % 4] for i in range(20))
    unrolls = [scheduled_values(b.experiment, step)["unroll_length"] for step in range(20)]
    assert unrolls == [20 + 2 * (k - k % 4) for k in range(20)]


RAMP = {"schedule": "linear", "start": 0.1, "end": 0.2}


def test_each_outer_step_learns_at_its_own_inner_step_size(bench: Make) -> None:
    """The metagradient at step 7 of 20 is that of a constant lr of .1 + .1 x 7/19; the log says so."""
    b = bench(inner={"lr": RAMP})
    constant = bench(inner={"lr": (1 - 7 / 19) * 0.1 + 7 / 19 * 0.2})
    window = draw_window(b.experiment, 7, CurriculumState())
    ours, other, first = (
        replica_metagradients(x.experiment, x.train, x.initial, window, step, [0])[0]
        for x, step in ((b, 7), (constant, 7), (b, 0))
    )
    assert torch.equal(ours.grad.images_NCHW, other.grad.images_NCHW)
    assert not torch.allclose(ours.grad.images_NCHW, first.grad.images_NCHW)
    assert scheduled_values(b.experiment, 7)["inner_lr"] == pytest.approx(0.1 + 0.1 * 7 / 19, rel=1e-14)


def test_networks_that_judge_are_trained_at_the_last_inner_step_size(bench: Make) -> None:
    """At every outer step of the run, and in the final evaluation: a score is that of the constant lr .2."""
    b, constant = bench(inner={"lr": RAMP}), bench(inner={"lr": 0.2})
    state = RunState.start(b.initial, b.experiment.outer)
    ours, other = (validate(x.experiment, b.validation, state, SingleProcess()) for x in (b, constant))
    assert ours == other
    network = b.experiment.inner.network
    problem = build_inner_problem(b.config, network, b.data.image_shape, b.data.num_classes)
    assert problem.optimizer.lr == 0.2


def test_the_outer_step_size_follows_its_schedule_and_the_log(bench: Make) -> None:
    """.01, then 1e-9 from step 3 on; skipped steps count."""
    pieces = {"schedule": "piecewise", "values": [0.01, 1e-9], "from_steps": [0, 3]}
    b = bench(outer={"steps": 4, "lr": pieces})
    experiment = replace(b.experiment, engine=per_replica(nan_engine({1: 0})))
    states, rates = [RunState.start(b.initial, experiment.outer)], []
    for _ in range(4):
        state, values = outer_step(experiment, b.train, states[-1], SingleProcess())
        states.append(state)
        rates.append(values["outer_lr"])
    assert rates == [0.01, 0.01, 0.01, 1e-9]
    moved = [
        float((after.data.images_NCHW - before.data.images_NCHW).abs().max())
        for before, after in pairwise(states)
    ]
    assert moved[0] > 1e-3
    assert moved[1] == 0.0
    assert moved[2] > 1e-3
    assert 0.0 < moved[3] < 1e-8


def test_the_curriculum_moves_with_the_validation_loss(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validations after steps 2, 4, ..; patience 2, window 2 of 6: the losses 3 2 2 2 move it before step 8.

    Then 9 9 9 before step 14, to the end, where it stays. Accuracies rise all the while, and do not count.
    """
    b = bench(
        truncation={"rule": "forward", "window_length": 2, "patience": 2}, validation={"every": 2}, replicas=1
    )
    losses = iter([3.0, 2.0, 2.0, 2.0, 9.0, 9.0, 9.0, 5.0, 5.0, 5.0])
    accuracies = iter(range(10))
    monkeypatch.setattr(
        "ray_distill.core.outer_loop.validate", lambda *_: Score(next(accuracies) / 10, next(losses))
    )
    reports: list[Report] = []
    run(b, reports=reports)
    seen = [p.values["window_start"] for r in reports for p in r.points]
    assert seen == [0.0] * 8 + [2.0] * 6 + [4.0] * 6


def test_learnt_labels_move_with_the_images_and_tell_how_they_do(bench: Make) -> None:
    """One step from one-hot: every label moves by about lr / scale = .02, none below 0; the log has their sums."""
    b = bench(distilled={"learn_labels": True, "label_lr_scale": 0.5})
    state = RunState.start(b.initial, b.experiment.outer)
    stepped, values = outer_step(b.experiment, b.train, state, SingleProcess())
    before, after = state.data.labels_NK, stepped.data.labels_NK
    assert torch.equal(before, torch.eye(10, dtype=torch.float64))
    assert float(after.min()) == 0.0
    moved = (after - before)[after > 0]
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.02), rtol=1e-3, atol=0)
    window = draw_window(b.experiment, 0, CurriculumState())
    mean, _, _ = mean_metagradient(b.experiment, b.train, b.initial, window, 0, SingleProcess())
    assert values["label_metagradient_norm"] == pytest.approx(float(mean.grad.labels_NK.norm()), rel=1e-14)
    sums = after.sum(dim=1)
    assert [values[f"label_row_sum_{what}"] for what in ("mean", "min", "max")] == [
        float(sums.mean()),
        float(sums.min()),
        float(sums.max()),
    ]
    assert float(sums.min()) < float(sums.max())


def test_hard_labels_stay_and_cost_a_checkpoint_nothing(bench: Make) -> None:
    """Without learn_labels: the one-hot rows, no moments for them, and no word of them in the log."""
    b = bench(outer={"steps": 2})
    reports: list[Report] = []
    end = run(b, reports=reports)
    assert torch.equal(end.data.labels_NK, b.initial.labels_NK)
    tensors, _ = to_record(end)
    assert set(tensors) == {"images", "labels", "outer_m", "outer_v", "best_images", "best_labels"}
    assert not [name for r in reports for p in r.points for name in p.values if "label" in name]


def test_real_batches_are_without_replacement_and_differ_by_place(bench: Make) -> None:
    """Each replica and outer step draws its own rows; the labels belong to the images."""
    b = bench(outer={"augmentation": []})
    one = draw_real_batch(b.experiment, b.train, 0, 0)
    images, _ = whole(b.train)
    rows = [int((images == image).flatten(1).all(dim=1).nonzero()[0]) for image in one.images_NCHW]
    assert len(set(rows)) == 32
    assert torch.equal(one.labels_NK.argmax(dim=1), b.train.labels_N[rows])
    for step, replica in ((1, 0), (0, 1)):
        other = draw_real_batch(b.experiment, b.train, step, replica)
        assert not torch.equal(one.images_NCHW, other.images_NCHW)


def test_reports_come_on_the_cadence_and_lose_no_step(bench: Make) -> None:
    """Report every 5, checkpoint every 6, validate every 4, 14 steps: the last step does all three. Points
    stand at least as far apart as their step and validation took."""
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
    for before, after in pairwise(points):
        took = after.values["seconds_per_outer_step"] + after.values.get("seconds_per_validation", 0.0)
        assert after.unix_s - before.unix_s > took - 1e-3, after
    assert all({"outer_loss", "metagradient_norm", "clip_rate"} <= p.values.keys() for p in points)
    assert all(("validation_loss" in p.values) == ("validation_accuracy" in p.values) for p in points)
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
    first = start.with_candidate(Best(b.initial, 1, 0.5))
    assert first.with_candidate(Best(b.initial, 2, 0.5)).best == first.best
    better = first.with_candidate(Best(b.initial, 2, 0.6)).best
    assert better is not None
    assert better.outer_step == 2


def test_validation_is_the_mean_over_its_networks(bench: Make) -> None:
    """Three networks, beyond the replicas' indices: accuracy and loss are the means of the three."""
    b = bench(validation={"num_networks": 3})
    state = RunState.start(b.initial, b.experiment.outer)
    ours = validate(b.experiment, b.validation, state, SingleProcess())
    scores = [
        retrain(b.experiment.inner, b.initial, b.validation.batches, [6], seed=b.config.seed, index=2 + i)[0]
        for i in range(3)
    ]
    assert len(set(scores)) == 3
    assert ours.accuracy == pytest.approx(sum(s.accuracy for s in scores) / 3, rel=1e-12)
    assert ours.loss == pytest.approx(sum(s.loss for s in scores) / 3, rel=1e-12)


def test_validation_looks_at_validation_data_only(bench: Make) -> None:
    """With the validation labels shifted by one class the accuracy changes; with the train labels it does not."""
    b = bench()
    state = RunState.start(b.initial._replace(images_NCHW=b.initial.images_NCHW * 5), b.experiment.outer)
    rows = [int((b.train.labels_N == k).nonzero()[0]) for k in range(10)]
    state = state._replace(data=state.data._replace(images_NCHW=b.train.images(torch.tensor(rows))))
    experiment = replace(b.experiment, validation=replace(b.experiment.validation, horizon=40))
    right = validate(experiment, b.validation, state, SingleProcess())
    shifted = replace(b.validation, labels_N=(b.validation.labels_N + 1) % 10)
    wrong = validate(experiment, shifted, state, SingleProcess())
    assert right.accuracy > 0.3 > wrong.accuracy
    assert right.loss < wrong.loss


def test_a_run_through_batch_norm_learns_and_judges_as_any_other(bench: Make) -> None:
    """The same D from replicas at once and one by one, to rounding; better than it began on the validation set."""
    b = bench(
        network={"name": "convnet1-bn"},
        outer={"lr": 0.05, "steps": 10},
        validation={"horizon": 40},
        compute={"replicas_at_once": 2},
    )
    start = RunState.start(b.initial, b.experiment.outer)
    end = run(b)
    alone = outer_loop(
        replace(b.experiment, group_size=1),
        b.train,
        b.validation,
        start,
        SingleProcess(),
        lambda _: None,
    )
    torch.testing.assert_close(end.data.images_NCHW, alone.data.images_NCHW, rtol=1e-8, atol=1e-10)
    before, after = (validate(b.experiment, b.validation, state, SingleProcess()) for state in (start, end))
    assert after.loss < before.loss
