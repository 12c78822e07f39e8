"""Replicas at once: each gives what it gives alone, whatever its neighbours are."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ray_distill.core.augment import OPERATIONS
from ray_distill.core.distilled import DistilledData
from ray_distill.core.inner_optimizer import SGD, Adam
from ray_distill.core.metagradient import Metagradient, adjoint_metagradient, adjoint_metagradients
from ray_distill.core.microbatches import Batches
from ray_distill.core.networks.group import NetworkGroup, check_groupable
from ray_distill.core.networks.names import ACTIVATIONS, FAMILIES, NORMS, POOLINGS
from ray_distill.core.networks.network import Network, NetworkSpec, build_network
from ray_distill.core.rng import Stream
from ray_distill.core.step_functions import PRODUCTS, StepFunctions
from ray_distill.core.truncation import Window
from ray_distill.core.unroll import InnerDraws


class Branches(nn.Module):
    """What a residual network has and a chain has not: a skip connection, a strided and a grouped convolution."""

    keeps_channels_apart = True

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False)
        self.block = nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=2))
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False))

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        maps = self.stem(images)
        logits: Tensor = self.head(self.pool(maps + self.block(maps)))
        return logits


def side(name: str) -> int:
    """Height and width of the images: the least that is not too small for the network, and 8 at least."""
    return {"resnet18": 16, "resnet18-bn": 16, "vgg11": 32}.get(name, 8)


def networks() -> dict[str, Network]:
    widths = {
        **dict.fromkeys(("convnet2", "convnet2-none", "convnet2-bn", "convnet2-ln"), 5),
        **{"convnet2-gn": 8, "mlp2": 6, "alexnet": 4, "resnet18-bn": 2},
    }
    built = {
        name: build_network(NetworkSpec(name=name, width=width), (2, side(name), side(name)), 3)
        for name, width in widths.items()
    }
    for option in ({"activation": "gelu", "pooling": "max"}, {"activation": "leaky-relu", "pooling": "none"}):
        spec = NetworkSpec(name="convnet1", width=4, **option)
        built[f"convnet1-{option['activation']}"] = build_network(spec, (2, 8, 8), 3)
    with torch.device("meta"):
        return built | {"branches": Network(Branches())}


def more_networks() -> dict[str, Network]:
    """Those that take longer."""
    more = {
        name: build_network(NetworkSpec(name=name, width=2), (2, side(name), side(name)), 3)
        for name in ("vgg11", "resnet18")
    }
    return networks() | more


def test_every_family_of_networks_is_among_those_that_are_set_side_by_side() -> None:
    """In numbers below; and every network of the families in any norm, activation and pooling is let through."""
    names = {name.partition("-")[0].rstrip("0123456789") for name in more_networks()}
    assert names == {*FAMILIES, "branches"}
    for family, what in FAMILIES.items():
        for depth in what.depths[-1:] or ("",):
            for norm in NORMS if what.norm else ("",):
                suffix = f"-{norm}" if norm and NORMS[norm] != what.norm else ""
                spec = NetworkSpec(name=f"{family}{depth}{suffix}", width=16)
                image_shape = (1, 512, 512) if family == "convnet" else (1, 32, 32)
                check_groupable(build_network(spec, image_shape, 2).module)
    for activation in ACTIVATIONS:
        for pooling in POOLINGS:
            spec = NetworkSpec(name="convnet1", activation=activation, pooling=pooling)
            check_groupable(build_network(spec, (1, 8, 8), 2).module)


def random_group(
    network: Network, replicas: int, name: str = "", dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Batches, Tensor]:
    """Parameters, batches of five images and vectors, all different for each replica."""
    size = side(name)

    def normal(what: str, *shape: int) -> Tensor:
        count = torch.Size(shape).numel()
        return Stream(seed=3, name=what).normal(count, dtype=dtype).reshape(shape)

    theta = torch.stack(
        [network.init(Stream(seed=3, name="init", replica=r), dtype=dtype) for r in range(replicas)]
    )
    labels = normal("labels", replicas, 5, 3).abs()
    return theta, Batches(normal("images", replicas, 5, 2, size, size), labels), normal("lam", *theta.shape)


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("name", more_networks())
def test_a_group_is_each_network_on_its_own_images(
    relative_difference: Callable, name: str, replicas: int
) -> None:
    """Logits of the module itself, one network after another, to rounding; of one network, the same bits."""
    network = more_networks()[name]
    theta, batches, _ = random_group(network, replicas, name)
    logits = NetworkGroup(network, replicas)(theta, batches.images_RBCHW)
    assert logits.shape == (replicas, 5, 3)
    for r in range(replicas):
        alone = network(theta[r], batches.images_RBCHW[r])
        assert relative_difference(logits[r], alone) < 1e-13
        assert replicas > 1 or torch.equal(logits[r], alone)


def test_a_layer_that_joins_channels_is_refused() -> None:
    with torch.device("meta"):
        network = Network(nn.Sequential(nn.Conv2d(2, 4, 3), nn.LocalResponseNorm(3), nn.Flatten()))
    with pytest.raises(
        ValueError, match="layers of type LocalResponseNorm cannot be grouped; compute the replicas one by"
    ):
        NetworkGroup(network, 2)
    NetworkGroup(network, 1)


def test_a_module_that_does_not_say_that_it_keeps_channels_apart_is_refused() -> None:
    """Layers that all can be set side by side, and a forward that joins what they give: no error would tell."""

    class Concatenating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = (
                nn.Conv2d(2, 2, 3, padding=1),
                nn.Sequential(nn.Flatten(), nn.Linear(36, 3)),
            )

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.cat([images, self.body(images)], dim=1))
            return logits

    with torch.device("meta"):
        network = Network(Concatenating())
    with pytest.raises(
        ValueError,
        match="Concatenating cannot be grouped, since it does not declare keeps_channels_apart; compute",
    ):
        NetworkGroup(network, 2)


def one_by_one(functions: StepFunctions, theta: Tensor, batches: Batches, lam: Tensor) -> list[list[Tensor]]:
    """Gradient, loss, Hessian product and mixed products of each replica alone."""
    results = []
    for r, batch in enumerate(batches.unstack()):
        hessian, mixed = functions.product(theta[r], batch, lam[r])
        results.append([*functions.gradient(theta[r], batch), hessian, *mixed])
    return results


def at_once(functions: StepFunctions, theta: Tensor, batches: Batches, lam: Tensor) -> list[list[Tensor]]:
    """The same of all replicas as one computation."""
    hessian, mixed = functions.products(theta, batches, lam)
    stacks = (*functions.gradients(theta, batches), hessian, *mixed)
    return [list(of_replica) for of_replica in zip(*stacks, strict=True)]


@pytest.mark.parametrize(
    ("name", "images_per_pass"),
    [
        (name, passes)
        for name, network in networks().items()
        for passes in ((None,) if network.has_batch_norm else (None, 1, 2, 3))
    ],
)
@pytest.mark.parametrize("form", PRODUCTS)
def test_step_functions_of_a_group_are_those_of_each_alone(
    relative_difference: Callable, name: str, form: str, images_per_pass: int | None
) -> None:
    """Five images: whole, one by one, in parts of 2, 2 and 1, and of 3 and 2."""
    network = networks()[name]
    group = random_group(network, 3, name)
    functions = StepFunctions(network, product_form=form, images_per_pass=images_per_pass)
    whole = StepFunctions(network, product_form=form)
    for ours, alone in zip(at_once(functions, *group), one_by_one(whole, *group), strict=True):
        for a, b in zip(ours, alone, strict=True):
            assert relative_difference(a, b) < 1e-12


@pytest.mark.parametrize("name", networks())
def test_step_functions_of_a_group_agree_in_single_precision(
    relative_difference: Callable, name: str
) -> None:
    """1e-6; the deeper ones and their second derivatives magnify rounding, to 1e-4."""
    network, limit = networks()[name], 1e-4 if name in ("alexnet", "resnet18-bn") else 1e-6
    group = random_group(network, 3, name, dtype=torch.float32)
    functions = StepFunctions(network)
    for ours, alone in zip(at_once(functions, *group), one_by_one(functions, *group), strict=True):
        for a, b in zip(ours, alone, strict=True):
            assert relative_difference(a, b) < limit


@pytest.mark.slow  # the compiler
@pytest.mark.parametrize("form", PRODUCTS)
def test_compiled_groups_are_eager_ones_and_each_size_is_compiled_once(
    relative_difference: Callable, form: str
) -> None:
    """Groups of two and of one, five images in passes of 2, 2 and 1 that is filled up."""
    torch._dynamo.reset()
    network = networks()["convnet2"]
    compiled = StepFunctions(network, product_form=form, images_per_pass=2, compiled=True)
    theta, batches, lam = random_group(network, 2, dtype=torch.float32)
    assert compiled.try_compile(theta[0], batches.unstack()[0], (1, 2)) == ""
    with torch.compiler.set_stance("fail_on_recompile"):
        both = at_once(compiled, theta, batches, lam)
        first = one_by_one(compiled, theta[:1], Batches(*(x[:1] for x in batches)), lam[:1])
    eager = one_by_one(StepFunctions(network), theta, batches, lam)
    for ours, alone in zip([*both, *first], [*eager, eager[0]], strict=True):
        for a, b in zip(ours, alone, strict=True):
            assert relative_difference(a, b) < 1e-5


def replica_arguments(
    make_case: Callable, replicas: Sequence[int], **what: object
) -> tuple[list[InnerDraws], list[DistilledData]]:
    """Draws and real batches of some replicas of one case; the real batches differ too."""
    cases = [make_case(**what, replica=r) for r in replicas]
    real = [
        c.real._replace(images_NCHW=c.real.images_NCHW * (1.0 + 0.3 * r))
        for c, r in zip(cases, replicas, strict=True)
    ]
    return [c.draws for c in cases], real


def numbers(one: Metagradient) -> list[Tensor]:
    assert one.position_norms_W is not None
    return [*one.grad, one.outer_loss, one.position_norms_W]


CASES = {
    "convnet-adam": {"network": "convnet2"},
    "convnet-sgd": {"network": "convnet2", "optimizer": SGD(lr=0.05, weight_decay=5e-2)},
    "convnet-bn": {"network": "convnet2-bn"},
    "convnet-ln": {"network": "convnet1-ln"},
    "mlp-adam": {"network": "mlp2", "width": 8},
    "mlp-sgd": {"network": "mlp2", "width": 8, "optimizer": SGD(lr=0.05)},
    "passes-segments": {"images_per_pass": 4, "max_states": 6},
    "forward-composed": {"product_form": "forward", "augmentation_mode": "composed"},
}
ALL = tuple(OPERATIONS)


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_metagradients_of_a_group_are_those_of_each_replica_alone(
    make_case: Callable, relative_difference: Callable, name: str, replicas: int
) -> None:
    """Operations differ from replica to replica at most steps; 1e-10 in float64."""
    what = {"ipc": 3, "inner_batch_per_class": 2, "augmentation": ALL, **CASES[name]}
    case, window = make_case(**what), Window(3, 7)
    draws, real = replica_arguments(make_case, range(replicas), **what)
    if replicas > 1:
        assert what.get("augmentation_mode") or any(
            d.operations != e.operations
            for d, e in zip(*(one.augments[3:] for one in draws[:2]), strict=True)
        )
    together = adjoint_metagradients(case.problem, case.data, draws, window, real)
    assert len(together) == replicas
    # Alone, with nothing cut into parts.
    problem = replace(case.problem, functions=StepFunctions(case.problem.network), max_states=None)
    for ours, own, batch in zip(together, draws, real, strict=True):
        alone = adjoint_metagradient(problem, case.data, own, window, batch)
        for a, b in zip(numbers(ours), numbers(alone), strict=True):
            assert relative_difference(a, b) < 1e-10


@pytest.mark.parametrize("optimizer", [SGD(lr=0.05), Adam(lr=1e-2, eps=1e-2)], ids=["sgd", "adam"])
@pytest.mark.parametrize("what", [{"network": "convnet2"}, {"network": "mlp2"}], ids=str)
def test_metagradients_of_a_group_agree_in_single_precision(
    make_case: Callable, relative_difference: Callable, what: dict[str, object], optimizer: object
) -> None:
    """1e-6 for a few steps; Adam's first, near a sign function, would magnify rounding without its eps of 1e-2."""
    what = {**what, "dtype": torch.float32, "optimizer": optimizer, "augmentation": ("flip",)}
    case, window = make_case(**what), Window(1, 3)
    draws, real = replica_arguments(make_case, range(3), **what)
    together = adjoint_metagradients(case.problem, case.data, draws, window, real)
    for ours, own, batch in zip(together, draws, real, strict=True):
        alone = adjoint_metagradient(case.problem, case.data, own, window, batch)
        assert relative_difference(ours.outer_loss, alone.outer_loss) < 1e-6
        for a, b in zip(ours.grad, alone.grad, strict=True):
            assert relative_difference(a, b) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("bad", [0, 1, 2])
@pytest.mark.parametrize(
    "what", [{"network": "convnet2"}, {"network": "convnet2-bn"}, {"network": "mlp2"}], ids=str
)
def test_a_nan_stays_in_its_replica(
    make_case: Callable, what: dict[str, object], bad: int, dtype: torch.dtype
) -> None:
    """A NaN or an infinity among one replica's first parameters: the others' numbers keep their bits."""
    what = {**what, "dtype": dtype, "width": 5}
    case, window = make_case(**what), Window(2, 4)
    draws, real = replica_arguments(make_case, range(3), **what)
    sound = adjoint_metagradients(case.problem, case.data, draws, window, real)
    for value in (float("nan"), float("inf")):
        theta_P = draws[bad].theta_P.clone()
        theta_P[7] = value
        spoilt = [one._replace(theta_P=theta_P) if r == bad else one for r, one in enumerate(draws)]
        together = adjoint_metagradients(case.problem, case.data, spoilt, window, real)
        for r, (ours, right) in enumerate(zip(together, sound, strict=True)):
            same = [torch.equal(a, b) for a, b in zip(numbers(ours), numbers(right), strict=True)]
            assert all(same) if r != bad else not ours.grad.images_NCHW.isfinite().all()
