"""Batch norm: a function of the whole batch in training, of running statistics when it is judged."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_distill.core import augment
from ray_distill.core.distilled import DistilledData
from ray_distill.core.higher_reference import higher_metagradient
from ray_distill.core.inner_optimizer import Adam
from ray_distill.core.metagradient import adjoint_metagradient
from ray_distill.core.microbatches import microbatch_size
from ray_distill.core.networks.group import NetworkGroup
from ray_distill.core.networks.network import Network, NetworkSpec, build_network
from ray_distill.core.retrain import retrain, scores, train_steps
from ray_distill.core.rng import Stream
from ray_distill.core.step_functions import PRODUCTS, StepFunctions
from ray_distill.core.truncation import Window
from ray_distill.core.unroll import draw_inner, initial_state

CPU = torch.device("cpu")
SHAPE = (2, 8, 8)


def images(count: int, name: str = "x") -> Tensor:
    """Not of mean 0 and variance 1, as running statistics start."""
    flat = Stream(seed=2, name=name).normal(count * 128, dtype=torch.float64)
    return 2.0 * flat.reshape(count, *SHAPE) + 1.5


def ordinary(network: Network, theta: Tensor, build: Callable[[], nn.Module]) -> nn.Module:
    """torch's own module with the network's parameters."""
    module = build().double()
    nn.utils.vector_to_parameters(theta.clone(), module.parameters())
    assert [p.shape for p in module.parameters()] == list(network.shapes.values())
    return module


def two_blocks() -> nn.Module:
    """convnet2-bn at width 3 for three classes, written out; the second norm has another momentum and eps."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(3, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3, eps=1e-3, momentum=0.3),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return two_blocks()


def test_batch_norm_joins_images_and_no_other_norm_does() -> None:
    """As said by the network; and the first image's logits do or do not move with the others."""
    for name in ("convnet2", "convnet2-bn", "convnet2-ln", "convnet2-gn", "convnet2-none", "resnet18-bn"):
        network = build_network(NetworkSpec(name=name, width=8), (2, 16, 16), 3)
        theta = network.init(Stream(seed=1, name="init"), dtype=torch.float64)
        few, many = (
            Stream(seed=2, name="x").normal(n * 512, dtype=torch.float64).reshape(n, 2, 16, 16)
            for n in (2, 6)
        )
        assert torch.equal(few, many[:2])
        apart = torch.allclose(network(theta, few), network(theta, many)[:2], rtol=1e-10)
        assert network.has_batch_norm == name.endswith("-bn") == (not apart), name


@pytest.mark.parametrize("augmentation", [(), ("flip", "rotate")], ids=["plain", "augmented"])
@pytest.mark.parametrize("per_class", [2, 3])
def test_a_retraining_is_torchs_own(
    make_case: Callable, per_class: int, augmentation: tuple[str, ...]
) -> None:
    """The same training by modules, torch.optim.Adam, .train() and .eval(): 1e-10 in float64 at each horizon."""
    case = make_case(
        module=on_meta(),
        ipc=3,
        inner_batch_per_class=per_class,
        augmentation=augmentation,
        optimizer=Adam(lr=1e-2),
    )
    problem, data, horizons = case.problem, case.data, (1, 4, 25)
    test_images, test_labels = images(40), torch.arange(40) % 3
    ours = retrain(problem, data, lambda: [(test_images, test_labels)], horizons, seed=7, index=2)

    draws = draw_inner(problem, 7, 0, 2, 25, data)
    module = ordinary(problem.network, draws.theta_P, two_blocks)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2, foreach=False)
    group, state = NetworkGroup(problem.network, 1), initial_state(problem, [draws])
    statistics = group.initial_statistics(draws.theta_P)
    done = 0
    for horizon, measured in zip(horizons, ours, strict=True):
        module.train()
        for t in range(done, horizon):
            rows = draws.rows_TB[t]
            batch = augment.apply(data.images_NCHW[rows], draws.augments[t])
            optimizer.zero_grad()
            F.cross_entropy(module(batch), data.labels_NK[rows]).backward()
            optimizer.step()
        state, statistics = train_steps(problem, data, group, [draws], state, statistics, horizon - done)
        done = horizon
        module.eval()
        with torch.no_grad():
            logits = module(test_images)
        (judged,) = group.eval_logits(state.theta_P, statistics, test_images)
        torch.testing.assert_close(judged, logits, rtol=1e-10, atol=1e-10)
        for name, buffer in module.named_buffers():
            torch.testing.assert_close(statistics[name], buffer, rtol=1e-10, atol=1e-10)
        loss = float(F.cross_entropy(logits, test_labels))
        assert measured.loss == pytest.approx(loss, rel=1e-10)
        assert measured.accuracy == float((logits.argmax(dim=1) == test_labels).double().mean())


def test_running_statistics_are_torchs_law() -> None:
    """After one batch: a tenth of its mean, and nine tenths of 1 and one tenth of its unbiased variance."""
    with torch.device("meta"):
        network = Network(nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(128, 3)))
    theta, x = network.init(Stream(seed=1, name="init"), dtype=torch.float64), images(5)
    group = NetworkGroup(network, 1)
    start = group.initial_statistics(theta)
    after = group.updated_statistics(start, theta[None], x[None])
    values = x.transpose(0, 1).flatten(1)
    torch.testing.assert_close(after["0.running_mean"], 0.1 * values.mean(dim=1), rtol=1e-12, atol=0)
    torch.testing.assert_close(after["0.running_var"], 0.9 + 0.1 * values.var(dim=1), rtol=1e-12, atol=0)
    assert int(after["0.num_batches_tracked"]) == 1
    assert start["0.running_mean"].tolist() == [0.0, 0.0], "the argument is left alone"
    assert start["0.running_var"].tolist() == [1.0, 1.0]
    assert after["0.running_mean"].dtype == torch.float64


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_a_score_does_not_depend_on_how_the_images_are_batched(make_case: Callable, batch: int) -> None:
    """One by one, in sevens, at once; in training mode it would, and by a lot."""
    case = make_case(network="convnet2-bn")
    network, theta = case.problem.network, case.draws.theta_P
    group = NetworkGroup(network, 1)
    statistics = group.initial_statistics(theta)
    for i in range(20):
        statistics = group.updated_statistics(statistics, theta[None], images(6, f"batch-{i}")[None])
    x, y = images(40), torch.arange(40) % 3
    (whole,) = scores(group, theta[None], statistics, [(x, y)])
    (parts,) = scores(group, theta[None], statistics, zip(x.split(batch), y.split(batch), strict=True))
    assert parts.accuracy == whole.accuracy
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    trained = [float(F.cross_entropy(network(theta, x[i : i + 7]), y[i : i + 7])) for i in range(0, 35, 7)]
    assert max(trained) - min(trained) > 1e-2


def test_other_networks_have_no_statistics(make_case: Callable) -> None:
    network, theta = make_case().problem.network, make_case().draws.theta_P
    group = NetworkGroup(network, 1)
    assert group.initial_statistics(theta) == {}
    assert group.updated_statistics({}, theta[None], images(3)[None]) == {}
    assert torch.equal(group.eval_logits(theta[None], {}, images(3))[0], network(theta, images(3)))


def test_batch_norm_is_not_computed_in_passes(make_case: Callable) -> None:
    """Parts would have other statistics than the whole, and rows of zeros would count among them."""
    network = make_case(network="convnet2-bn").problem.network
    with pytest.raises(ValueError, match="batch norm needs whole batches: images_per_pass must be None"):
        StepFunctions(network, images_per_pass=4)
    assert microbatch_size(network, SHAPE, 100, torch.float32, CPU) is None
    assert microbatch_size(make_case().problem.network, SHAPE, 100, torch.float32, CPU) == 100


def test_batch_norm_without_running_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="without running statistics has no eval mode"):
        Network(nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten()))


@pytest.mark.parametrize("form", PRODUCTS)
@pytest.mark.parametrize("window", [Window(0, 1), Window(0, 4), Window(3, 5)], ids=str)
@pytest.mark.parametrize(
    "what",
    [
        {"network": "convnet2-bn"},
        {"network": "convnet1-bn", "ipc": 3, "inner_batch_per_class": 2, "augmentation": ("flip", "rotate")},
        {"network": "convnet1-bn", "num_classes": 4, "classes_per_inner_batch": 2, "ipc": 3},
        {"network": "resnet18-bn", "width": 2, "image_shape": (1, 16, 16)},
    ],
    ids=["convnet2", "minibatches", "some-classes", "resnet18"],
)
def test_the_metagradient_is_highers(
    make_case: Callable, relative_difference: Callable, what: dict[str, object], window: Window, form: str
) -> None:
    """1e-8 in float64. The inner batches and the real batch each have statistics of their own."""
    case = make_case(**what, product_form=form, optimizer=Adam(lr=1e-3, eps=1e-4))
    arguments = (case.problem, case.data, case.draws, window, case.real)
    ours, reference = adjoint_metagradient(*arguments), higher_metagradient(*arguments)
    assert float(ours.outer_loss) == pytest.approx(float(reference.outer_loss), rel=1e-10)
    for a, b in zip(ours.grad, reference.grad, strict=True):
        assert relative_difference(a, b) < 1e-8


def test_every_image_of_a_batch_moves_by_the_others(make_case: Callable) -> None:
    """An outer loss of one step on class 0 alone: the mixed product reaches the images of label weight 0 too.

    With their targets 0, the other images enter the inner loss only by the statistics of the batch.
    """
    for name, reached in (("convnet1-bn", True), ("convnet1", False)):
        case = make_case(network=name, ipc=1)
        labels = torch.zeros(3, 3, dtype=torch.float64)
        labels[0, 0] = 1.0
        data = DistilledData(case.data.images_NCHW, labels)
        grad = adjoint_metagradient(case.problem, data, case.draws, Window(0, 1), case.real).grad.images_NCHW
        assert float(grad[0].norm()) > 0.0
        assert (float(grad[1:].norm()) > 0.0) == reached, name


@pytest.mark.slow  # the compiler
@pytest.mark.parametrize("form", PRODUCTS)
def test_compiled_is_eager_for_each_size_of_batch(
    make_case: Callable, relative_difference: Callable, form: str
) -> None:
    torch._dynamo.reset()
    case = make_case(network="convnet2-bn", dtype=torch.float32)
    theta, network = case.draws.theta_P, case.problem.network
    compiled, eager = StepFunctions(network, product_form=form, compiled=True), StepFunctions(network)
    lam = Stream(seed=1, name="lam").normal(len(theta), dtype=theta.dtype)[0]
    for rows in (6, 5):
        batch = DistilledData(*(x[:rows] for x in case.data))
        assert relative_difference(compiled.gradient(theta, batch)[0], eager.gradient(theta, batch)[0]) < 1e-5
        ours, right = (f.product(theta, batch, lam) for f in (compiled, eager))
        for a, b in zip((ours[0], *ours[1]), (right[0], *right[1]), strict=True):
            assert relative_difference(a, b) < 1e-4
