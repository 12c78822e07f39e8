"""The outer optimiser: clipping by hand, and Adam against torch.optim."""

import pytest
import torch
from torch import Tensor

from ray_distill.core.distilled import DistilledData
from ray_distill.core.outer_optimizer import OuterOptimizer, OuterState
from ray_distill.core.rng import Stream

SHAPE = (4, 1, 3, 3)


def with_norm(norm: float, place: int = 0) -> DistilledData:
    """A random metagradient of the images with this norm; that of the labels is huge, and must not count."""
    images = Stream(seed=1, name="g", outer_step=place).normal(36, dtype=torch.float64).reshape(SHAPE)
    return DistilledData(norm * images / images.norm(), torch.full((4, 2), 1e6, dtype=torch.float64))


@pytest.fixture
def data() -> DistilledData:
    images = Stream(seed=1, name="d").normal(36, dtype=torch.float64).reshape(SHAPE)
    return DistilledData(images, torch.eye(2, dtype=torch.float64).repeat(2, 1))


def follow(
    optimizer: OuterOptimizer, data: DistilledData, grads: list[DistilledData]
) -> tuple[list, OuterState]:
    state, history = optimizer.init(data), []
    for grad in grads:
        data, state, report = optimizer.step(data, state, grad)
        history.append((data, report))
    return history, state


def torch_adam(optimizer: OuterOptimizer, start: Tensor, grads: list[Tensor]) -> list[Tensor]:
    parameter = start.clone().requires_grad_()
    betas = (optimizer.beta1, optimizer.beta2)
    reference = torch.optim.Adam([parameter], lr=optimizer.lr, betas=betas, eps=optimizer.eps, foreach=False)
    path = []
    for grad in grads:
        parameter.grad = grad.clone()
        reference.step()
        path.append(parameter.detach().clone())
    return path


@pytest.mark.parametrize(
    "optimizer", [OuterOptimizer(lr=1e-3), OuterOptimizer(lr=0.1, beta1=0.5, beta2=0.8, eps=1e-3)]
)
def test_without_clipping_it_is_torch_optim_adam(optimizer: OuterOptimizer, data: DistilledData) -> None:
    """Norms between 1 and 2 never pass twice their moving average."""
    grads = [with_norm(1.0 + (t % 3) / 2, t) for t in range(20)]
    history, state = follow(optimizer, data, grads)
    expected = torch_adam(optimizer, data.images_NCHW, [g.images_NCHW for g in grads])
    assert state.num_steps == 20
    for (stepped, report), reference in zip(history, expected, strict=True):
        assert not report.clipped
        torch.testing.assert_close(stepped.images_NCHW, reference, rtol=1e-12, atol=1e-12)
        assert torch.equal(stepped.labels_NK, data.labels_NK)


@pytest.mark.parametrize("norm", [1e-6, 1.0, 1e6])
def test_the_first_step_never_clips(norm: float, data: DistilledData) -> None:
    ((_, report),), state = follow(OuterOptimizer(lr=1e-3), data, [with_norm(norm)])
    assert not report.clipped
    assert report.metagradient_norm == pytest.approx(norm, rel=1e-12)
    assert report.clip_ema == state.clip_ema == pytest.approx(norm, rel=1e-12)


def test_a_spike_is_clipped_to_twice_the_updated_average(data: DistilledData) -> None:
    """Norms 1, 10, 3: averages 1, .9 + 1 = 1.9, 1.71 + .3 = 2.01.

    The spike of 10 passes as 3.8 (2 x 1.9; by the average before it, it would pass as 2), and the third is
    below 4.02 and passes whole. Adam then sees norms 1, 3.8, 3.
    """
    optimizer = OuterOptimizer(lr=1e-2)
    history, _ = follow(optimizer, data, [with_norm(n, t) for t, n in enumerate((1.0, 10.0, 3.0))])
    assert [r.clipped for _, r in history] == [False, True, False]
    assert [r.metagradient_norm for _, r in history] == pytest.approx([1.0, 10.0, 3.0], rel=1e-12)
    assert [r.clip_ema for _, r in history] == pytest.approx([1.0, 1.9, 2.01], rel=1e-12)
    seen = [with_norm(n, t).images_NCHW for t, n in enumerate((1.0, 3.8, 3.0))]
    for (stepped, _), reference in zip(history, torch_adam(optimizer, data.images_NCHW, seen), strict=True):
        torch.testing.assert_close(stepped.images_NCHW, reference, rtol=1e-12, atol=1e-12)


def test_clipping_follows_its_own_constants(data: DistilledData) -> None:
    """Decay 1/2, multiple 3/2: norms 1, 9 give the average 5 and the spike passes as 7.5."""
    optimizer = OuterOptimizer(lr=1e-2, clip_ema_decay=0.5, clip_multiple=1.5)
    history, _ = follow(optimizer, data, [with_norm(1.0), with_norm(9.0, 1)])
    assert history[1][1].clip_ema == pytest.approx(5.0, rel=1e-12)
    seen = [with_norm(1.0).images_NCHW, with_norm(7.5, 1).images_NCHW]
    expected = torch_adam(optimizer, data.images_NCHW, seen)[-1]
    torch.testing.assert_close(history[1][0].images_NCHW, expected, rtol=1e-12, atol=1e-12)


def test_a_zero_metagradient_moves_nothing(data: DistilledData) -> None:
    ((stepped, report),), _ = follow(OuterOptimizer(lr=1e-3), data, [with_norm(0.0)])
    assert torch.equal(stepped.images_NCHW, data.images_NCHW)
    assert report.metagradient_norm == report.clip_ema == 0.0


def test_a_step_is_pure_and_can_be_resumed_from_its_state(data: DistilledData) -> None:
    optimizer, grads = OuterOptimizer(lr=1e-2), [with_norm(n, t) for t, n in enumerate((1.0, 10.0, 3.0))]
    first, state = follow(optimizer, data, grads[:2])
    copies = [x.clone() for x in (*first[-1][0], *state[:2], *grads[2])]
    one, other = (optimizer.step(first[-1][0], state, grads[2])[0] for _ in range(2))
    assert torch.equal(one.images_NCHW, other.images_NCHW)
    assert torch.equal(one.images_NCHW, follow(optimizer, data, grads)[0][-1][0].images_NCHW)
    for value, copy in zip((*first[-1][0], *state[:2], *grads[2]), copies, strict=True):
        assert torch.equal(value, copy)
