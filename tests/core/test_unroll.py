"""The inner training: draws as data, and stretches that join without a seam."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ray_distill.core import augment
from ray_distill.core.inner_optimizer import InnerState
from ray_distill.core.unroll import (
    InnerDraws,
    draw_inner,
    group_batches,
    initial_state,
    inner_batch,
    run_steps,
    run_window,
)


def tensors(state: InnerState) -> tuple[Tensor, ...]:
    return state.theta_P, *state.moments


def same_state(a: InnerState, b: InnerState) -> bool:
    return a.num_steps == b.num_steps and all(
        torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True)
    )


def same_draws(a: InnerDraws, b: InnerDraws) -> dict[str, bool]:
    pairs = list(zip(a.augments, b.augments, strict=True))
    return {
        "theta": torch.equal(a.theta_P, b.theta_P),
        "rows": torch.equal(a.rows_TB, b.rows_TB),
        "operation": all(x.operations == y.operations for x, y in pairs),
        "magnitude": all(torch.equal(x.magnitudes[0], y.magnitudes[0]) for x, y in pairs),
    }


@pytest.fixture
def augmented(make_case: Callable) -> Callable:
    """Case with mini-batches and both operations."""

    def build(**changes: object) -> object:
        return make_case(
            **{"ipc": 3, "inner_batch_per_class": 2, "augmentation": ("flip", "rotate"), **changes}
        )

    return build


@pytest.mark.parametrize("place", [{"seed": 8}, {"outer_step": 1}, {"replica": 1}], ids=str)
def test_every_part_of_a_draw_depends_on_every_part_of_the_place(
    augmented: Callable, place: dict[str, int]
) -> None:
    case = augmented()
    where = {"seed": 7, "outer_step": 0, "replica": 0}
    first = draw_inner(case.problem, *where.values(), 20, case.data)
    other = draw_inner(case.problem, *{**where, **place}.values(), 20, case.data)
    assert same_draws(first, other) == dict.fromkeys(("theta", "rows", "operation", "magnitude"), False)


def test_draws_do_not_depend_on_the_values_of_the_data_and_fewer_steps_are_a_prefix(
    augmented: Callable,
) -> None:
    case = augmented()
    data = case.data._replace(images_NCHW=case.data.images_NCHW + 1.0)
    long, short = case.draws, draw_inner(case.problem, case.seed, 0, 0, 4, data)
    prefix = InnerDraws(long.theta_P, long.rows_TB[:4], long.augments[:4])
    assert all(same_draws(short, prefix).values())


def test_inner_batch_takes_its_rows_and_its_augmentation(augmented: Callable) -> None:
    case = augmented()
    draws = case.draws
    for t in (0, 3):
        rows, drawn = draws.rows_TB[t].tolist(), draws.augments[t]
        batch = inner_batch(case.data, draws, t)
        images = torch.stack([case.data.images_NCHW[r] for r in rows])
        assert torch.equal(batch.images_NCHW, augment.apply(images, drawn))
        assert torch.equal(batch.labels_NK, torch.stack([case.data.labels_NK[r] for r in rows]))


@pytest.mark.parametrize("burn_in", [0, 1, 4])
def test_burn_in_then_window_is_one_straight_run(augmented: Callable, burn_in: int) -> None:
    case = augmented()
    problem, data, draws = case.problem, case.data, [case.draws]
    initial = initial_state(problem, draws)
    straight = run_steps(problem, data, draws, initial, 9)
    middle = run_steps(problem, data, draws, initial, burn_in)
    unrolled = run_window(problem, data, draws, middle, 9 - burn_in)
    assert straight.num_steps == 9
    assert same_state(unrolled.final, straight)
    assert not torch.equal(straight.theta_P, initial.theta_P)


def test_a_window_keeps_the_state_before_each_step_and_its_gradient(augmented: Callable) -> None:
    case = augmented()
    problem, data, draws = case.problem, case.data, [case.draws]
    start = run_steps(problem, data, draws, initial_state(problem, draws), 2)
    unrolled = run_window(problem, data, draws, start, 5)
    assert len(unrolled.states) == len(unrolled.grads) == 5
    for k, (state, grad) in enumerate(zip(unrolled.states, unrolled.grads, strict=True)):
        assert same_state(state, run_steps(problem, data, draws, start, k))
        batches = group_batches(data, draws, 2 + k)
        assert torch.equal(grad, problem.functions.gradients(state.theta_P, batches)[0])


def test_no_steps_change_nothing(make_case: Callable) -> None:
    case = make_case()
    draws = [case.draws]
    initial = initial_state(case.problem, draws)
    assert same_state(run_steps(case.problem, case.data, draws, initial, 0), initial)
    unrolled = run_window(case.problem, case.data, draws, initial, 0)
    assert unrolled.states == unrolled.grads == []


def test_inner_training_lowers_the_inner_loss(make_case: Callable) -> None:
    """Hard labels, whose smallest cross entropy is 0, start near log 3."""
    case = make_case(inner_steps=40)
    problem, draws = case.problem, [case.draws]
    data = case.data._replace(labels_NK=torch.eye(3, dtype=torch.float64).repeat_interleave(2, dim=0))
    final = run_steps(problem, data, draws, initial_state(problem, draws), 40)
    thetas = draws[0].theta_P, final.theta_P[0]
    losses = [
        float(F.cross_entropy(problem.network(theta, data.images_NCHW), data.labels_NK)) for theta in thetas
    ]
    assert losses[1] < 0.8 * losses[0]


def test_inner_training_is_a_pure_function(augmented: Callable) -> None:
    """Same numbers twice; inputs and global generator untouched; no tape, even if the data asks for one."""
    case = augmented()
    data = type(case.data)(*(x.requires_grad_() for x in case.data))
    draws = case.draws
    initial = initial_state(case.problem, [draws])
    copies = [x.detach().clone() for x in (*data, draws.theta_P, draws.rows_TB)]
    generator = torch.get_rng_state()
    first = run_window(case.problem, data, [draws], initial, 4)
    assert same_state(first.final, run_steps(case.problem, data, [draws], initial, 4))
    assert torch.equal(torch.get_rng_state(), generator)
    for value, copy in zip((*data, draws.theta_P, draws.rows_TB), copies, strict=True):
        assert torch.equal(value, copy)
    assert not any(x.requires_grad for x in (*tensors(first.final), *first.grads))
