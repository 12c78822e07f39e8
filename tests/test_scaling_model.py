"""The model of many workers: its closed forms, its sharing out, and what it says of what was measured."""

import sys
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture(scope="module")
def model() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        import scaling_model

        yield scaling_model
        sys.modules.pop("scaling_model")


def work(model: Any, **fields: Any) -> Any:
    return model.Work(**{"name": "", "replicas": 12, "seconds_per_replica": 2.0, "num_values": 100} | fields)


@pytest.mark.parametrize(
    ("workers", "at_once", "seconds"),
    [(1, 1, 24.0), (2, 1, 12.0), (5, 1, 6.0), (12, 1, 2.0), (2, 5, 14.0), (3, 5, 10.0), (1, 5, 24.0)],
)
def test_without_stragglers_a_step_is_the_largest_share(
    model: Any, workers: int, at_once: int, seconds: float
) -> None:
    """12 replicas of 2 s and a network that costs nothing: ceil(12 / w) x 2 s; in groups of 5, 5 and 2, two workers have
    5 + 2 and 5."""
    free = model.Network(0.0, float("inf"))
    point = model.simulate(work(model, replicas_at_once=at_once), free, workers, steps=3)
    assert point.seconds == pytest.approx(seconds, rel=1e-12)
    assert point.waiting == pytest.approx(1 - 24.0 / workers / seconds, abs=1e-12)
    assert point.summing == 0.0


def test_the_ring(model: Any) -> None:
    """One worker sums nothing; without latency many take twice the time of the bytes; with latency alone, two messages
    for each worker but one."""
    assert model.all_reduce_s(1, 10**9, model.Network(1.0, 1.0)) == 0.0
    assert model.all_reduce_s(2, 1000, model.Network(0.0, 100.0)) == pytest.approx(10.0)
    assert model.all_reduce_s(10**6, 1000, model.Network(0.0, 100.0)) == pytest.approx(20.0, rel=1e-5)
    assert model.all_reduce_s(501, 0, model.Network(0.01, 1.0)) == pytest.approx(10.0)


def test_stragglers_are_the_largest_of_as_many_draws(model: Any) -> None:
    """A coefficient of variation of 1 makes a group's seconds exponential. The largest of 6 has the mean 1 + 1/2 + .. +
    1/6 and the variance 1 + 1/4 + .. + 1/36 (in units of its mean and its square); one worker sums 6: mean 6."""
    straggling = work(model, replicas=6, variation=1.0)
    free, steps = model.Network(0.0, float("inf")), 20_000
    six, one = (model.simulate(straggling, free, w, steps) for w in (6, 1))
    harmonic = sum(1 / i for i in range(1, 7))
    error = 2.0 * sqrt(sum(1 / i**2 for i in range(1, 7)) / steps)
    assert abs(six.seconds - 2.0 * harmonic) < 4 * error
    assert abs(one.seconds - 12.0) < 4 * 2.0 * sqrt(6 / steps)
    assert six.waiting == pytest.approx(1 - 1 / harmonic, abs=0.01)


def test_the_variation_is_that_of_a_group(model: Any) -> None:
    """Mean 2 s and standard deviation 0.3 x 2 s, over 40,000 draws."""
    seconds = model.computing_s(work(model, replicas=4, variation=0.3), 4, 10_000, seed=1)
    assert np.mean(seconds) == pytest.approx(2.0, rel=0.01)
    assert np.std(seconds) == pytest.approx(0.6, rel=0.03)


def test_the_same_groups_go_to_the_same_ranks_as_in_a_run(model: Any, bench: Callable[..., Any]) -> None:
    """7 replicas by 3, on two ranks: 3 + 1 and 3 replicas, as the outer loop shares them out; and what it sums."""
    b = bench(replicas=7, compute={"replicas_at_once": 3})
    of_run = [sum(len(group) for group in b.experiment.groups[rank::2]) for rank in range(2)]
    mine = work(model, replicas=7, replicas_at_once=3, seconds_per_replica=1.0)
    assert model.computing_s(mine, 2, 1, seed=0)[0].tolist() == of_run == [4, 3]
    assert mine.groups == [len(group) for group in b.experiment.groups]


def test_what_is_summed_is_what_a_run_sums(model: Any, bench: Callable[..., Any]) -> None:
    """The bytes of the one tensor that the outer loop hands to its world."""
    from ray_distill.core.distributed import SingleProcess
    from ray_distill.core.outer_loop import outer_step
    from ray_distill.core.state import RunState

    summed: list[int] = []

    class Weighing(SingleProcess):
        def sum(self, values: Any) -> Any:
            summed.append(values.numel() * values.element_size())
            return values

    b = bench()
    outer_step(b.experiment, b.train, RunState.start(b.initial, b.experiment.outer), Weighing())
    values = sum(x.numel() for x in b.initial)
    assert summed == [work(model, replicas=2, num_values=values).summed_bytes]


def test_where_it_stops_paying(model: Any) -> None:
    """8 replicas of 1 s, and an all-reduce of 0.1 s for each worker but one. Efficiency 8 / (w t(w)), t = ceil(8 / w) +
    (w - 1) / 10: at 4, 8 / (4 x 2.3) = 0.87; at 5, 0.67; at 6, 0.53; at 7, 0.44; at 8, 8 / (8 x 1.7) = 0.59."""
    eight = work(model, replicas=8, seconds_per_replica=1.0)
    points = [model.simulate(eight, model.Network(0.05, float("inf")), w) for w in range(1, 9)]
    efficiencies = [round(model.efficiency(p, points[0]), 2) for p in points]
    assert efficiencies[3:] == [0.87, 0.67, 0.53, 0.44, 0.59]
    assert model.pays_until(points) == 8
    assert model.pays_until(points[:7]) == 6


def test_against_what_was_measured(model: Any) -> None:
    """Without Ray, two workers are predicted to 3%. With Ray, which takes a part of the cores that both are on, the model
    promises more than was measured, by a quarter; less so if told of that part."""
    bare, ray, told = model.checks()
    assert abs(bare.predicted / bare.measured - 1) < 0.03
    assert 1.2 < ray.predicted / ray.measured < 1.3
    assert 1.1 < told.predicted / told.measured < 1.2


def test_the_tables_are_those_of_the_model(model: Any) -> None:
    """The committed file is what the script writes."""
    assert (EXPERIMENTS / "results" / "scaling" / "model.md").read_text() == model.report()
