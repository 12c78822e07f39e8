"""The metagradient by four routes: the adjoint, `higher`, central differences, a closed form by hand."""

import copy
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_distill.core import augment
from ray_distill.core.distilled import DistilledData
from ray_distill.core.higher_reference import higher_metagradient
from ray_distill.core.inner_optimizer import SGD, Adam, InnerState
from ray_distill.core.metagradient import (
    Metagradient,
    accumulate_gradient,
    adjoint_metagradient,
    segment_length,
)
from ray_distill.core.networks.network import Network
from ray_distill.core.rng import Stream
from ray_distill.core.step_functions import StepFunctions
from ray_distill.core.truncation import Window
from ray_distill.core.unroll import (
    InnerDraws,
    InnerProblem,
    inner_batch,
)

BOTH = ("flip", "rotate")


def both_engines(case: object, window: Window) -> tuple[Metagradient, Metagradient]:
    arguments = (case.problem, case.data, case.draws, window, case.real)
    return adjoint_metagradient(*arguments), higher_metagradient(*arguments)


@pytest.mark.parametrize("eps_convention", ["torch", "higher"])
@pytest.mark.parametrize("length", [1, 2, 6])
@pytest.mark.parametrize("start", [0, 1, 5])
@pytest.mark.parametrize(
    "what",
    [
        {"network": "convnet1", "augmentation": BOTH, "ipc": 3, "inner_batch_per_class": 2},
        {"network": "convnet2", "augmentation": ("rotate",), "ipc": 2, "inner_batch_per_class": 1},
        {"network": "convnet2-none", "ipc": 1},
        {"network": "mlp2", "width": 12, "augmentation": ("flip",), "ipc": 2},
    ],
    ids=["convnet1-flip-rotate", "convnet2-rotate", "convnet2-no-norm", "mlp2-flip"],
)
def test_adjoint_is_higher(
    make_case: Callable,
    relative_difference: Callable,
    what: dict[str, object],
    start: int,
    length: int,
    eps_convention: str,
) -> None:
    """Two independent differentiations of one function, equal to rounding: 1e-8 relative in float64."""
    case = make_case(**what, optimizer=Adam(lr=1e-2, eps_convention=eps_convention))
    ours, reference = both_engines(case, Window(start, length))
    assert float(ours.outer_loss) == pytest.approx(float(reference.outer_loss), rel=1e-10)
    assert relative_difference(ours.grad.images_NCHW, reference.grad.images_NCHW) < 1e-8
    assert relative_difference(ours.grad.labels_NK, reference.grad.labels_NK) < 1e-8


@pytest.mark.parametrize("window", [Window(0, 1), Window(0, 5), Window(4, 3)], ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_adjoint_is_higher_for_sgd(
    make_case: Callable, relative_difference: Callable, momentum: float, window: Window
) -> None:
    optimizer = SGD(lr=0.05, momentum=momentum, weight_decay=5e-2)
    case = make_case(ipc=3, inner_batch_per_class=2, augmentation=BOTH, optimizer=optimizer)
    ours, reference = both_engines(case, window)
    for a, b in zip(ours.grad, reference.grad, strict=True):
        assert relative_difference(a, b) < 1e-8


@pytest.mark.parametrize("max_states", [7, 8, 10, 12])
def test_a_replayed_window_gives_the_same_bits(make_case: Callable, max_states: int) -> None:
    """Windows of 11 steps in segments of 3 to 6: the same operations on the same numbers."""
    what = {"ipc": 3, "inner_batch_per_class": 2, "augmentation": BOTH, "inner_steps": 14}
    whole = make_case(**what)
    arguments = (whole.data, whole.draws, Window(2, 11), whole.real)
    straight = adjoint_metagradient(whole.problem, *arguments)
    replayed = adjoint_metagradient(make_case(**what, max_states=max_states).problem, *arguments)
    for a, b in zip(
        (*straight.grad, straight.outer_loss, straight.position_norms_W),
        (*replayed.grad, replayed.outer_loss, replayed.position_norms_W),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("length", "max_states", "segment"),
    [(11, None, 11), (11, 11, 11), (11, 10, 8), (11, 7, 4), (1000, 64, 36), (0, 1, 0), (1, 1, 1)],
)
def test_segments_fit_and_are_as_long_as_can_be(length: int, max_states: int | None, segment: int) -> None:
    """ceil(length / k) + k <= most: 11 steps in 10 states: k = 8 (2 + 8); in 7: k = 4 (3 + 4); 1000 in 64: 28 + 36."""
    assert segment_length(length, max_states) == segment


def test_a_window_that_cannot_fit_is_refused_with_the_least_room() -> None:
    """ceil(1000 / k) + k is least at, for one, k = 32: 32 + 32."""
    with pytest.raises(ValueError, match="1000 steps needs memory for at least 64 states, not 20"):
        segment_length(1000, 20)


def test_a_replayed_window_holds_few_states_at_once(make_case: Callable) -> None:
    """The most InnerStates alive at once, counted by the parameter vectors that the optimiser has made."""
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    @dataclass(frozen=True, kw_only=True)
    class Counting(Adam):
        def step(self, state: InnerState, grad_P: Tensor) -> InnerState:
            nonlocal most
            after = super().step(state, grad_P)
            alive.append(weakref.ref(after.theta_P))
            most = max(most, sum(ref() is not None for ref in alive))
            return after

    counts = {}
    for max_states in (None, 12):
        case = make_case(optimizer=Counting(lr=1e-2), inner_steps=36, max_states=max_states)
        alive.clear()
        most = 0
        adjoint_metagradient(case.problem, case.data, case.draws, Window(0, 36), case.real)
        counts[max_states] = most
    assert counts[None] >= 36
    assert counts[12] <= 13  # and the one that is being made


def test_position_norms_are_those_of_each_steps_share(
    make_case: Callable, relative_difference: Callable
) -> None:
    """Batches of one image of three: where the steps' images are disjoint, squares of norms add up."""
    case = make_case(ipc=3, inner_batch_per_class=1)
    t = next(
        t
        for t in range(10)
        if not set(case.draws.rows_TB[t].tolist()) & set(case.draws.rows_TB[t + 1].tolist())
    )
    ours = adjoint_metagradient(case.problem, case.data, case.draws, Window(t, 2), case.real)
    norms = [ours.grad.images_NCHW[case.draws.rows_TB[s]].norm() for s in (t, t + 1)]
    assert ours.position_norms_W.tolist() == pytest.approx([float(n) for n in norms], rel=1e-12)


def test_adjoint_is_higher_for_other_betas_and_rectangular_images(
    make_case: Callable, relative_difference: Callable
) -> None:
    optimizer = Adam(lr=5e-3, beta1=0.6, beta2=0.9, eps=1e-5)
    case = make_case(
        image_shape=(2, 8, 6), optimizer=optimizer, augmentation=("flip",), replica=3, outer_step=2
    )
    ours, reference = both_engines(case, Window(2, 4))
    assert relative_difference(ours.grad.images_NCHW, reference.grad.images_NCHW) < 1e-8


@pytest.mark.parametrize(
    ("operations", "mode"),
    [
        *(((name,), "single") for name in augment.OPERATIONS),
        (tuple(augment.OPERATIONS), "single"),
        (tuple(augment.OPERATIONS), "composed"),
    ],
    ids=[*augment.OPERATIONS, "one-of-all", "composed"],
)
def test_adjoint_is_higher_under_every_augmentation(
    make_case: Callable, relative_difference: Callable, operations: tuple[str, ...], mode: augment.Mode
) -> None:
    """Each operation alone, one of all at each step, and composed; on rectangular images."""
    case = make_case(
        image_shape=(2, 8, 6),
        ipc=3,
        inner_batch_per_class=2,
        augmentation=operations,
        augmentation_mode=mode,
        optimizer=Adam(lr=1e-2),
        inner_steps=7,
    )
    ours, reference = both_engines(case, Window(2, 5))
    assert float(ours.outer_loss) == pytest.approx(float(reference.outer_loss), rel=1e-10)
    assert relative_difference(ours.grad.images_NCHW, reference.grad.images_NCHW) < 1e-8
    assert relative_difference(ours.grad.labels_NK, reference.grad.labels_NK) < 1e-8


@pytest.mark.parametrize("inner_batch_per_class", [2, 3])
@pytest.mark.parametrize("augmentation", [(), ("crop", "flip", "color")], ids=["plain", "composed"])
def test_adjoint_is_higher_for_batches_of_some_classes(
    make_case: Callable,
    relative_difference: Callable,
    augmentation: tuple[str, ...],
    inner_batch_per_class: int,
) -> None:
    """Two of four classes at each step, some or all of their images; classes outside the window have no gradient."""
    case = make_case(
        num_classes=4,
        ipc=3,
        inner_batch_per_class=inner_batch_per_class,
        classes_per_inner_batch=2,
        augmentation=augmentation,
        augmentation_mode="composed",
        inner_steps=6,
    )
    assert case.draws.rows_TB.shape == (6, 2 * inner_batch_per_class)
    ours, reference = both_engines(case, Window(1, 5))
    assert relative_difference(ours.grad.images_NCHW, reference.grad.images_NCHW) < 1e-8
    assert relative_difference(ours.grad.labels_NK, reference.grad.labels_NK) < 1e-8
    touched = ours.grad.labels_NK.abs().sum(dim=1).nonzero().flatten().tolist()
    assert touched == case.draws.rows_TB[1:6].unique().tolist()


@pytest.mark.parametrize("eps_convention", ["torch", "higher"])
def test_dead_units_give_a_finite_metagradient_and_highers(
    make_case: Callable, relative_difference: Callable, eps_convention: str
) -> None:
    """Half of the first ReLUs are dead on every image (bias -100): their gradients and v are 0 throughout."""
    case = make_case(network="mlp2", width=6, optimizer=Adam(lr=1e-2, eps_convention=eps_convention))
    draws = case.draws
    case.problem.network.unflatten(draws.theta_P)["1.bias"][:3] = -100.0
    arguments = (case.problem, case.data, draws, Window(1, 4), case.real)
    assert int((case.problem.functions.gradient(draws.theta_P, case.data)[0] == 0).sum()) >= 3 * 129
    ours, reference = adjoint_metagradient(*arguments), higher_metagradient(*arguments)
    assert all(bool(x.isfinite().all()) for x in ours.grad)
    for a, b in zip(ours.grad, reference.grad, strict=True):
        assert relative_difference(a, b) < 1e-8


def test_a_network_dead_throughout_has_a_zero_image_metagradient(make_case: Callable) -> None:
    """Every ReLU is dead: logits are the last bias, which the labels move and the images do not."""
    case = make_case(network="mlp1", width=6)
    draws = case.draws
    case.problem.network.unflatten(draws.theta_P)["1.bias"][:] = -100.0
    arguments = (case.problem, case.data, draws, Window(0, 3), case.real)
    ours, reference = adjoint_metagradient(*arguments), higher_metagradient(*arguments)
    assert torch.equal(ours.grad.images_NCHW, torch.zeros_like(ours.grad.images_NCHW))
    assert float(ours.grad.labels_NK.abs().max()) > 0
    torch.testing.assert_close(ours.grad.labels_NK, reference.grad.labels_NK, rtol=1e-8, atol=1e-14)


def loss_by_torch_optim(
    case: object, burn_in_data: DistilledData, window_data: DistilledData, window: Window
) -> float:
    """The outer loss by an ordinary module and torch.optim.Adam: burn-in on one D, the window on another.

    The state at the window's start is thus the same for every `window_data`: it is held constant.
    """
    draws, config = case.draws, case.optimizer
    assert config.eps_convention == "torch"
    module = copy.deepcopy(case.problem.network.module).to_empty(device="cpu").double()
    nn.utils.vector_to_parameters(draws.theta_P, module.parameters())
    betas = (config.beta1, config.beta2)
    optimizer = torch.optim.Adam(
        module.parameters(), lr=config.lr, betas=betas, eps=config.eps, foreach=False
    )
    for t in range(window.start + window.length):
        data = burn_in_data if t < window.start else window_data
        rows, drawn = draws.rows_TB[t], draws.augments[t]
        images = augment.apply(data.images_NCHW[rows], drawn)
        optimizer.zero_grad()
        F.cross_entropy(module(images), data.labels_NK[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return float(F.cross_entropy(module(case.real.images_NCHW), case.real.labels_NK))


def directions(data: DistilledData, seed: int) -> dict[str, DistilledData]:
    """Random unit directions: in the images alone, and in the labels alone."""
    images, labels = (
        Stream(seed=seed, name=f"direction-{i}").normal(x.numel(), dtype=torch.float64).view_as(x)
        for i, x in enumerate(data)
    )
    return {
        "images": DistilledData(images / images.norm(), torch.zeros_like(labels)),
        "labels": DistilledData(torch.zeros_like(images), labels / labels.norm()),
    }


def along(data: DistilledData, direction: DistilledData, h: float) -> DistilledData:
    return DistilledData(*(x + h * d for x, d in zip(data, direction, strict=True)))


def slope(grad: DistilledData, direction: DistilledData) -> float:
    return sum(float((g * d).sum()) for g, d in zip(grad, direction, strict=True))


@pytest.mark.parametrize("part", ["images", "labels"])
@pytest.mark.parametrize(
    "window", [Window(0, 1), Window(0, 5), Window(3, 1), Window(3, 4), Window(6, 5)], ids=str
)
def test_adjoint_is_the_central_difference_of_an_ordinary_training(
    make_case: Callable, smooth_module: Callable, window: Window, part: str
) -> None:
    """Five-point difference of step h = 1e-3 along random unit directions: error h^4 f5/30 plus rounding / h.

    Two choices make 1e-7 honest. The network is smooth (softplus): across a ReLU's kink the inner gradient
    jumps, so the trained parameters do, and no difference converges there. And eps = 1e-2 keeps Adam's
    g / (|g| + eps) smooth on the scale of h; at eps = 1e-8 and the first steps it is a sign function.
    """
    case = make_case(
        module=smooth_module(),
        ipc=3,
        inner_batch_per_class=2,
        augmentation=BOTH,
        optimizer=Adam(lr=2e-2, eps=1e-2),
    )
    ours = adjoint_metagradient(case.problem, case.data, case.draws, window, case.real)
    direction, h = directions(case.data, 1)[part], 1e-3

    def loss(step: float) -> float:
        return loss_by_torch_optim(case, case.data, along(case.data, direction, step), window)

    assert float(ours.outer_loss) == pytest.approx(loss(0.0), rel=1e-12)
    difference = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)
    assert slope(ours.grad, direction) == pytest.approx(difference, rel=1e-7)


def test_adjoint_of_a_relu_network_is_the_central_difference_between_kinks(make_case: Callable) -> None:
    """ConvNet-2 with ReLU, and h = 1e-6 so that, as here, no unit crosses its kink; rounding leaves 1e-6."""
    case = make_case(network="convnet2", augmentation=BOTH, optimizer=Adam(lr=1e-2, eps=1e-3))
    window, h = Window(2, 4), 1e-6
    ours = adjoint_metagradient(case.problem, case.data, case.draws, window, case.real)
    # Along the metagradient itself, where the slope is largest against the rounding.
    norm = float(torch.cat([x.flatten() for x in ours.grad]).norm())
    direction = DistilledData(*(x / norm for x in ours.grad))
    up, down = (
        loss_by_torch_optim(case, case.data, along(case.data, direction, s * h), window) for s in (1, -1)
    )
    assert norm == pytest.approx((up - down) / (2 * h), rel=1e-6)


def test_the_start_of_the_window_is_held_constant(make_case: Callable, smooth_module: Callable) -> None:
    """The slope through burn-in and window together is another number, and it is the one of BPTT."""
    case = make_case(module=smooth_module(), optimizer=Adam(lr=2e-2, eps=1e-2))
    direction, h = directions(case.data, 1)["images"], 1e-4
    points = [along(case.data, direction, s * h) for s in (1, -1)]
    up, down = (loss_by_torch_optim(case, p, p, Window(3, 4)) for p in points)
    through_all = (up - down) / (2 * h)
    truncated, whole = (
        adjoint_metagradient(case.problem, case.data, case.draws, w, case.real)
        for w in (Window(3, 4), Window(0, 7))
    )
    assert torch.equal(truncated.outer_loss, whole.outer_loss)
    assert slope(whole.grad, direction) == pytest.approx(through_all, rel=1e-6)
    assert abs(slope(truncated.grad, direction) / through_all - 1) > 1e-2


@pytest.mark.parametrize("eps_convention", ["torch", "higher"])
def test_metagradient_in_closed_form(eps_convention: str) -> None:
    """One image x (a number), two classes, logits w_k x without bias, w = 0, one step of Adam.

    Softmax is (1/2, 1/2), so the inner gradient for the label (y0, y1) is g0 = x (y1 - y0)/2 = -g1. With
    d = |g0| = x (y0 - y1)/2 > 0 and f(d) = d/(d + e), the step gives w0 - w1 = 2 lr f(d), where e is eps, or
    eps/sqrt(1 - beta2) for `higher`. On the real image r of class 0, L = log(1 + exp(-z)) with
    z = 2 lr f(d) r, so
        dL/dd = -2 lr r f'(d) / (1 + exp(z)),  f'(d) = e/(d + e)^2,
        dL/dx = dL/dd (y0 - y1)/2,  dL/dy0 = dL/dd x/2 = -dL/dy1.
    """
    lr, eps, beta2, x, y, r = 0.3, 0.2, 0.96, 1.7, (0.8, 0.3), 2.5
    with torch.device("meta"):
        module = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    optimizer = Adam(lr=lr, beta2=beta2, eps=eps, eps_convention=eps_convention)
    problem = InnerProblem(
        functions=StepFunctions(Network(module)), optimizer=optimizer, inner_batch_per_class=1
    )

    def number(value: float) -> Tensor:
        return torch.full((1, 1, 1, 1), value, dtype=torch.float64)

    data = DistilledData(number(x), torch.tensor([y], dtype=torch.float64))
    real = DistilledData(number(r), torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    nothing = augment.AugmentDraw((), ())
    draws = InnerDraws(torch.zeros(2, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.int64), [nothing])
    ours = adjoint_metagradient(problem, data, draws, Window(0, 1), real)

    e = eps if eps_convention == "torch" else eps / math.sqrt(1 - beta2)
    d = x * (y[0] - y[1]) / 2
    z = 2 * lr * r * d / (d + e)
    dl_dd = -2 * lr * r * e / (d + e) ** 2 / (1 + math.exp(z))
    assert float(ours.outer_loss) == pytest.approx(math.log1p(math.exp(-z)), rel=1e-13)
    assert float(ours.grad.images_NCHW) == pytest.approx(dl_dd * (y[0] - y[1]) / 2, rel=1e-12)
    assert ours.grad.labels_NK[0].tolist() == pytest.approx([dl_dd * x / 2, -dl_dd * x / 2], rel=1e-12)


def test_pull_back_puts_each_cotangent_into_its_own_row(make_case: Callable) -> None:
    case = make_case(ipc=3, inner_batch_per_class=1)
    draws = case.draws
    cotangent = DistilledData(
        torch.arange(1.0, 4.0).double()[:, None, None, None].expand(3, 2, 8, 8),
        torch.arange(1.0, 4.0).double()[:, None].expand(3, 3),
    )
    pulled = DistilledData(*(torch.zeros_like(x) for x in case.data))
    accumulate_gradient(pulled, case.data, draws, 4, cotangent)
    expected = [0.0] * 9
    for position, row in enumerate(draws.rows_TB[4].tolist()):
        expected[row] = position + 1.0
    assert pulled.images_NCHW[:, 0, 0, 0].tolist() == expected
    assert pulled.labels_NK[:, 2].tolist() == expected
    assert draws.rows_TB[4].tolist() != draws.rows_TB[5].tolist()


def test_pull_back_undoes_the_steps_own_augmentation(make_case: Callable) -> None:
    """<c, batch(D')> - <c, batch(0)> = <pull back of c, D'>: the batch is linear in D."""
    case = make_case(ipc=3, inner_batch_per_class=2, augmentation=BOTH)
    draws, data = case.draws, case.data
    assert {d.operations for d in draws.augments} == {(name,) for name in BOTH}
    for t in range(len(draws.augments)):
        batch = inner_batch(data, draws, t)
        cotangent = DistilledData(
            *(Stream(seed=t, name="c").normal(x.numel(), dtype=x.dtype).view_as(x) for x in batch)
        )
        pulled = DistilledData(*(torch.zeros_like(x) for x in data))
        accumulate_gradient(pulled, data, draws, t, cotangent)
        assert slope(pulled, data) == pytest.approx(slope(cotangent, batch), rel=1e-11)


def test_images_outside_the_windows_batches_have_no_metagradient(make_case: Callable) -> None:
    """One image of three per class at one step: the batch of burn-in does not count, the window's does."""
    case = make_case(ipc=3, inner_batch_per_class=1)
    ours = adjoint_metagradient(case.problem, case.data, case.draws, Window(2, 1), case.real)
    touched = ours.grad.images_NCHW.flatten(1).norm(dim=1) > 0
    assert touched.nonzero().flatten().tolist() == sorted(case.draws.rows_TB[2].tolist())
    assert case.draws.rows_TB[2].tolist() != case.draws.rows_TB[1].tolist()


def test_a_window_of_no_steps_has_no_metagradient(make_case: Callable) -> None:
    case = make_case()
    ours = adjoint_metagradient(case.problem, case.data, case.draws, Window(3, 0), case.real)
    assert all(torch.equal(x, torch.zeros_like(x)) for x in ours.grad)
    assert float(ours.outer_loss) == pytest.approx(
        loss_by_torch_optim(case, case.data, case.data, Window(3, 0)), rel=1e-12
    )


def test_metagradient_is_a_value_and_leaves_everything_alone(make_case: Callable) -> None:
    """No graph, even if the data asks for one; twice the same bits; data, draws and generator untouched."""
    case = make_case(ipc=3, inner_batch_per_class=2, augmentation=BOTH)
    data = DistilledData(*(x.requires_grad_() for x in case.data))
    draws, real = case.draws, case.real
    copies = [x.detach().clone() for x in (*data, draws.theta_P, draws.rows_TB, *real)]
    generator = torch.get_rng_state()
    first, again = (adjoint_metagradient(case.problem, data, draws, Window(2, 3), real) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), generator)
    for value, kept in zip((*data, draws.theta_P, draws.rows_TB, *real), copies, strict=True):
        assert torch.equal(value, kept)
    for a, b in zip((*first.grad, first.outer_loss), (*again.grad, again.outer_loss), strict=True):
        assert not a.requires_grad
        assert torch.equal(a, b)
    assert all(x.grad is None for x in data)
    assert [x.shape for x in first.grad] == [x.shape for x in data]


def test_metagradient_in_single_precision_has_its_dtype_and_agrees_away_from_the_first_steps(
    make_case: Callable, relative_difference: Callable
) -> None:
    """eps = 1e-3 keeps Adam's step smooth; float32 then agrees with float64 to about 1e-5."""
    optimizer = Adam(lr=1e-2, eps=1e-3)
    single, double = (
        adjoint_metagradient(c.problem, c.data, c.draws, Window(4, 4), c.real)
        for c in (make_case(optimizer=optimizer, dtype=d) for d in (torch.float32, torch.float64))
    )
    assert all(x.dtype == torch.float32 for x in (*single.grad, single.outer_loss))
    assert relative_difference(single.grad.images_NCHW.double(), double.grad.images_NCHW) < 1e-3
