"""The outer optimiser: clipping by hand, and Adam against torch.optim."""

import pytest
import torch
from torch import Tensor

from ray_distill.core.distilled import DistilledData
from ray_distill.core.outer_optimizer import OuterOptimizer, OuterState
from ray_distill.core.rng import Stream
from ray_distill.core.schedules import Constant, Linear

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
    for outer_step, grad in enumerate(grads):
        data, state, report = optimizer.step(data, state, grad, outer_step)
        history.append((data, report))
    return history, state


def torch_adam(
    optimizer: OuterOptimizer, start: Tensor, grads: list[Tensor], lr_scale: float = 1.0
) -> list[Tensor]:
    """torch.optim.Adam with the step size of each outer step, divided by a scale."""
    parameter = start.clone().requires_grad_()
    betas = (optimizer.beta1, optimizer.beta2)
    reference = torch.optim.Adam(
        [parameter], lr=optimizer.lr.at(0), betas=betas, eps=optimizer.eps, foreach=False
    )
    path = []
    for outer_step, grad in enumerate(grads):
        reference.param_groups[0]["lr"] = optimizer.lr.at(outer_step) / lr_scale
        parameter.grad = grad.clone()
        reference.step()
        path.append(parameter.detach().clone())
    return path


@pytest.mark.parametrize(
    "optimizer",
    [
        OuterOptimizer(lr=Constant(1e-3)),
        OuterOptimizer(lr=Constant(0.1), beta1=0.5, beta2=0.8, eps=1e-3),
        OuterOptimizer(lr=Linear(start=0.1, end=0.001, steps=20)),
    ],
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
    assert state.labels is None


@pytest.mark.parametrize("norm", [1e-6, 1.0, 1e6])
def test_the_first_step_never_clips(norm: float, data: DistilledData) -> None:
    ((_, report),), state = follow(OuterOptimizer(lr=Constant(1e-3)), data, [with_norm(norm)])
    assert not report.clipped
    assert report.metagradient_norm == pytest.approx(norm, rel=1e-12)
    assert report.clip_ema == state.clip_ema == pytest.approx(norm, rel=1e-12)


def test_what_is_no_spike_by_the_updated_average_is_left_alone(data: DistilledData) -> None:
    """Norms 1 and 2.1: above twice the average before it, 2, and below twice its own, 2 (0.9 + 0.21) = 2.22. Scaled
    to that, it would grow."""
    optimizer = OuterOptimizer(lr=Constant(1e-2))
    grads = [with_norm(1.0), with_norm(2.1, 1)]
    history, _ = follow(optimizer, data, grads)
    assert not history[1][1].clipped
    expected = torch_adam(optimizer, data.images_NCHW, [g.images_NCHW for g in grads])
    torch.testing.assert_close(history[1][0].images_NCHW, expected[1], rtol=1e-12, atol=1e-12)


def test_a_spike_is_clipped_to_twice_the_updated_average(data: DistilledData) -> None:
    """Norms 1, 10, 3: averages 1, .9 + 1 = 1.9, 1.71 + .3 = 2.01.

    The spike of 10 passes as 3.8 (2 x 1.9; by the average before it, it would pass as 2), and the third is
    below 4.02 and passes whole. Adam then sees norms 1, 3.8, 3.
    """
    optimizer = OuterOptimizer(lr=Constant(1e-2))
    history, _ = follow(optimizer, data, [with_norm(n, t) for t, n in enumerate((1.0, 10.0, 3.0))])
    assert [r.clipped for _, r in history] == [False, True, False]
    assert [r.metagradient_norm for _, r in history] == pytest.approx([1.0, 10.0, 3.0], rel=1e-12)
    assert [r.clip_ema for _, r in history] == pytest.approx([1.0, 1.9, 2.01], rel=1e-12)
    seen = [with_norm(n, t).images_NCHW for t, n in enumerate((1.0, 3.8, 3.0))]
    for (stepped, _), reference in zip(history, torch_adam(optimizer, data.images_NCHW, seen), strict=True):
        torch.testing.assert_close(stepped.images_NCHW, reference, rtol=1e-12, atol=1e-12)


def test_clipping_follows_its_own_constants(data: DistilledData) -> None:
    """Decay 1/2, multiple 3/2: norms 1, 9 give the average 5 and the spike passes as 7.5."""
    optimizer = OuterOptimizer(lr=Constant(1e-2), clip_ema_decay=0.5, clip_multiple=1.5)
    history, _ = follow(optimizer, data, [with_norm(1.0), with_norm(9.0, 1)])
    assert history[1][1].clip_ema == pytest.approx(5.0, rel=1e-12)
    seen = [with_norm(1.0).images_NCHW, with_norm(7.5, 1).images_NCHW]
    expected = torch_adam(optimizer, data.images_NCHW, seen)[-1]
    torch.testing.assert_close(history[1][0].images_NCHW, expected, rtol=1e-12, atol=1e-12)


def test_a_zero_metagradient_moves_nothing(data: DistilledData) -> None:
    ((stepped, report),), _ = follow(OuterOptimizer(lr=Constant(1e-3)), data, [with_norm(0.0)])
    assert torch.equal(stepped.images_NCHW, data.images_NCHW)
    assert report.metagradient_norm == report.clip_ema == 0.0


def test_a_step_is_pure_and_can_be_resumed_from_its_state(data: DistilledData) -> None:
    optimizer, grads = (
        OuterOptimizer(lr=Constant(1e-2)),
        [with_norm(n, t) for t, n in enumerate((1.0, 10.0, 3.0))],
    )
    first, state = follow(optimizer, data, grads[:2])
    copies = [x.clone() for x in (*first[-1][0], *state.images, *grads[2])]
    one, other = (optimizer.step(first[-1][0], state, grads[2], 2)[0] for _ in range(2))
    assert torch.equal(one.images_NCHW, other.images_NCHW)
    assert torch.equal(one.images_NCHW, follow(optimizer, data, grads)[0][-1][0].images_NCHW)
    for value, copy in zip((*first[-1][0], *state.images, *grads[2]), copies, strict=True):
        assert torch.equal(value, copy)


def test_the_step_size_follows_the_outer_step_and_not_the_steps_taken(data: DistilledData) -> None:
    """After skipped steps: the first step of Adam, -lr sign(g) up to eps, at outer step 3 of 1, 2, 3, 4, ..."""
    optimizer = OuterOptimizer(lr=Linear(start=1.0, end=11.0, steps=11))
    stepped, state, _ = optimizer.step(data, optimizer.init(data), with_norm(1.0), 3)
    moved = data.images_NCHW - stepped.images_NCHW
    torch.testing.assert_close(moved, 4.0 * with_norm(1.0).images_NCHW.sign(), rtol=1e-4, atol=0)
    assert state.num_steps == 1


def with_label_grad(norm: float, place: int) -> DistilledData:
    """A metagradient of the images with this norm, and a random one of the labels."""
    labels = Stream(seed=2, name="l", outer_step=place).normal(8, dtype=torch.float64).reshape(4, 2)
    return with_norm(norm, place)._replace(labels_NK=labels)


@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_learnt_labels_take_torch_optim_adam_of_their_own_that_nothing_clips(
    scale: float, data: DistilledData
) -> None:
    """At lr / scale, on labels far from 0, while a spike of the images is clipped at the second step."""
    optimizer = OuterOptimizer(lr=Linear(start=0.1, end=0.01, steps=10), label_lr_scale=scale)
    grads = [with_label_grad(10.0 if t == 1 else 1.0, t) for t in range(10)]
    data = data._replace(labels_NK=data.labels_NK + 5.0)
    history, state = follow(optimizer, data, grads)
    expected = torch_adam(optimizer, data.labels_NK, [g.labels_NK for g in grads], scale)
    assert history[1][1].clipped
    assert state.labels is not None
    for (stepped, report), reference, grad in zip(history, expected, grads, strict=True):
        torch.testing.assert_close(stepped.labels_NK, reference, rtol=1e-12, atol=1e-12)
        assert report.label_metagradient_norm == pytest.approx(float(grad.labels_NK.norm()), rel=1e-12)


def test_labels_do_not_count_in_the_norm_of_the_images(data: DistilledData) -> None:
    """Images, average and clipping are the same bits whether labels are learnt or not, though theirs are huge."""
    grads = [with_norm(n, t) for t, n in enumerate((1.0, 10.0, 3.0))]
    fixed, learnt = (
        follow(OuterOptimizer(lr=Constant(1e-2), label_lr_scale=scale), data, grads) for scale in (None, 1.0)
    )
    for (a, first), (b, second) in zip(fixed[0], learnt[0], strict=True):
        assert torch.equal(a.images_NCHW, b.images_NCHW)
        assert not torch.equal(a.labels_NK, b.labels_NK)
        assert first._replace(label_metagradient_norm=None) == second._replace(label_metagradient_norm=None)
        assert first.label_metagradient_norm is None
    assert fixed[1].clip_ema == learnt[1].clip_ema


def test_labels_are_cut_off_at_zero_and_not_normalised(data: DistilledData) -> None:
    """Adam's first step is lr = .3 against the sign: one-hot rows (1, 0) become (.7, 0) or (1.3, .3)."""
    optimizer = OuterOptimizer(lr=Constant(0.6), label_lr_scale=2.0)
    signs = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.float64).expand(4, 2)
    grad = with_norm(1.0)._replace(labels_NK=signs)
    stepped, state, _ = optimizer.step(data, optimizer.init(data), grad, 0)
    expected = torch.tensor([[0.7, 0.0], [0.3, 1.3], [0.7, 0.0], [0.3, 1.3]], dtype=torch.float64)
    torch.testing.assert_close(stepped.labels_NK, expected, rtol=1e-7, atol=1e-12)
    assert float(stepped.labels_NK.min()) == 0.0
    assert state.labels is not None
    torch.testing.assert_close(state.labels.m, 0.1 * signs, rtol=1e-12, atol=0)
