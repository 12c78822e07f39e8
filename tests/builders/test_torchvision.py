"""torchvision's classifiers as networks: stem, head, what is refused; and as an independent twin of ours."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from ray_distill.builders.torchvision import HardSigmoid, torchvision_network
from ray_distill.core.distilled import DistilledData
from ray_distill.core.higher_reference import higher_metagradient
from ray_distill.core.inner_optimizer import Adam
from ray_distill.core.metagradient import adjoint_metagradient
from ray_distill.core.networks.group import NetworkGroup
from ray_distill.core.networks.network import NetworkSpec, build_network
from ray_distill.core.rng import Stream
from ray_distill.core.step_functions import PRODUCTS, StepFunctions
from ray_distill.core.truncation import Window
from ray_distill.core.unroll import InnerProblem, draw_inner

CIFAR = (3, 32, 32)


def normal(name: str, *shape: int) -> Tensor:
    return Stream(seed=1, name=name).normal(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


@pytest.mark.parametrize(
    ("name", "image_shape", "expected"),
    [
        ("resnet18", (3, 224, 224), 11_689_512 - 990 * 513),
        ("resnet18", CIFAR, 11_689_512 - 990 * 513 - 3 * 64 * (49 - 9)),
        ("resnet18", (1, 28, 28), 11_689_512 - 990 * 513 - 64 * (3 * 49 - 9)),
        ("mobilenet_v2", CIFAR, 3_504_872 - 990 * 1281),
        ("squeezenet1_1", CIFAR, 1_235_496 - 990 * 513),
        ("densenet121", CIFAR, 7_978_856 - 990 * 1025 - 3 * 64 * (49 - 9)),
        ("vgg11_bn", (1, 64, 64), 132_868_840 - 990 * 4097 - 2 * 64 * 9),
        ("shufflenet_v2_x0_5", CIFAR, 1_366_792 - 990 * 1025),
    ],
)
def test_parameter_counts(name: str, image_shape: tuple[int, int, int], expected: int) -> None:
    """torchvision's published counts for a thousand classes of 224x224, less what the fitting takes away.

    990 rows of the last layer, with their biases; of a 7x7 stem of 64 channels 40 of its 49 weights each, if
    the images are small; of other stems nothing but the inputs that grey images do not have.
    """
    network = torchvision_network(name, image_shape, 10)
    assert network.num_parameters == expected
    assert all(p.is_meta for p in network.module.parameters())
    assert network.module(torch.empty(2, *image_shape, device="meta")).shape == (2, 10)


def stem_and_pools(name: str, image_shape: tuple[int, int, int]) -> tuple[nn.Conv2d, int]:
    module = torchvision_network(name, image_shape, 10).module
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    return convolutions[0], sum(isinstance(m, nn.MaxPool2d) for m in module.modules())


@pytest.mark.parametrize(
    ("name", "pools"), [("resnet18", 1), ("densenet121", 1), ("shufflenet_v2_x0_5", 1), ("squeezenet1_1", 3)]
)
def test_small_images_keep_their_size_through_the_stem(name: str, pools: int) -> None:
    """Up to 64x64 the first convolution has stride 1, and the pool after it is gone; from 65 on all is as it was."""
    stem, left = stem_and_pools(name, (3, 64, 64))
    assert (stem.stride, stem.kernel_size, stem.padding, left) == ((1, 1), (3, 3), (1, 1), pools - 1)
    stem, left = stem_and_pools(name, (3, 65, 65))
    assert (stem.stride, left) == ((2, 2), pools)


def test_a_stem_without_a_stride_keeps_its_pools() -> None:
    """VGG's first pool comes after a convolution that keeps the size: it is part of its five halvings."""
    stem, pools = stem_and_pools("vgg11", (2, 32, 32))
    assert (stem.in_channels, stem.stride, pools) == (2, (1, 1), 5)


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_our_resnets_are_torchvisions(depth: int) -> None:
    """With batch norm and the stem for small images, of one theta: in training mode, and in test mode.

    Written apart from each other, with their parameters in the same order.
    """
    theirs = torchvision_network(f"resnet{depth}", CIFAR, 10)
    ours = build_network(NetworkSpec(name=f"resnet{depth}-bn"), CIFAR, 10)
    assert list(ours.shapes.values()) == list(theirs.shapes.values())
    # Quicker than an initialisation of so many; the norms make any scale do.
    theta, x = torch.sin(torch.arange(ours.num_parameters, dtype=torch.float64)), normal("x", 3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(theta, x), theirs(theta, x), rtol=1e-10, atol=1e-10)
        logits = []
        for network in (NetworkGroup(ours, 1), NetworkGroup(theirs, 1)):
            statistics = network.updated_statistics(network.initial_statistics(theta), theta[None], x[None])
            logits.append(network.eval_logits(theta[None], statistics, x[:2])[0])
        torch.testing.assert_close(*logits, rtol=1e-10, atol=1e-10)
        assert float((logits[0] - ours(theta, x[:2])).abs().max()) > 1e-3


def test_our_vggs_convolutions_are_torchvisions() -> None:
    """VGG11 with batch norm, up to the last map; torchvision's biases, 0 here, are what ours leaves out."""
    ours = build_network(NetworkSpec(name="vgg11-bn"), CIFAR, 10)
    theta, x = torch.sin(torch.arange(ours.num_parameters, dtype=torch.float64)), normal("x", 3, *CIFAR)
    values = list(ours.unflatten(theta).values())[:-2]
    module = models.vgg11_bn(init_weights=False).features.double()
    left = iter(values)
    with torch.no_grad():
        for layer in module:
            if isinstance(layer, nn.Conv2d):
                layer.weight.copy_(next(left))
                layer.bias.zero_()
            elif isinstance(layer, nn.BatchNorm2d):
                layer.weight.copy_(next(left))
                layer.bias.copy_(next(left))
        assert next(left, None) is None
        body = ours.module[:-2]
        named = dict(zip((name for name, _ in body.named_parameters()), values, strict=True))
        maps = torch.func.functional_call(body, named, (x,))
        torch.testing.assert_close(maps, module(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *(("mobilenet_v2", form) for form in PRODUCTS),
        *(("mobilenet_v3_small", form) for form in PRODUCTS),
        ("shufflenet_v2_x0_5", "reverse"),
        ("squeezenet1_1", "reverse"),
        ("mnasnet0_5", "reverse"),
    ],
)
def test_second_order_is_the_difference_of_the_first(
    name: str, form: str, relative_difference: Callable
) -> None:
    """As for our own, along a unit direction: three grey images of 32x32, central difference of step 1e-6."""
    network = torchvision_network(name, (1, 32, 32), 2)
    theta = network.init(Stream(seed=3, name="init"), dtype=torch.float64)
    labels = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.4, 0.7]], dtype=torch.float64)
    batch = DistilledData(normal("x", 3, 1, 32, 32), labels)
    functions, h = StepFunctions(network, product_form=form), 1e-6
    lam = normal("lam", len(theta))
    lam = lam / lam.norm()
    up, down = (functions.gradient(theta + s * h * lam, batch)[0] for s in (1, -1))
    assert relative_difference(functions.product(theta, batch, lam)[0], (up - down) / (2 * h)) < 1e-6


def test_the_hard_sigmoid_is_torchs() -> None:
    """On both sides of its kinks, -3 and 3."""
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    torch.testing.assert_close(HardSigmoid()(x), nn.Hardsigmoid()(x), rtol=0, atol=1e-15)


def test_the_metagradient_through_one_of_them_is_highers(relative_difference: Callable) -> None:
    """SqueezeNet 1.1, two steps on two grey images of 16x16: 1e-8 in float64."""
    network = torchvision_network("squeezenet1_1", (1, 16, 16), 2)
    problem = InnerProblem(
        functions=StepFunctions(network), optimizer=Adam(lr=1e-3, eps=1e-4), inner_batch_per_class=1
    )
    data, real = (
        DistilledData(normal(name, 2, 1, 16, 16), torch.eye(2, dtype=torch.float64))
        for name in ("images", "real")
    )
    arguments = (problem, data, draw_inner(problem, 7, 0, 0, 2, data), Window(0, 2), real)
    ours, reference = adjoint_metagradient(*arguments), higher_metagradient(*arguments)
    for a, b in zip(ours.grad, reference.grad, strict=True):
        assert relative_difference(a, b) < 1e-8


def test_nothing_is_drawn() -> None:
    """Building leaves the generator alone; dropout and stochastic depth are off, so that twice gives the same."""
    before = torch.get_rng_state()
    for name in ("alexnet", "efficientnet_b0", "regnet_y_400mf"):
        network = torchvision_network(name, (3, 64, 64), 10)
        drawing = [m for m in network.module.modules() if type(m).__name__ in ("Dropout", "StochasticDepth")]
        assert all(m.p == 0.0 for m in drawing)
        assert bool(drawing) == (name != "regnet_y_400mf")
    small = torchvision_network("shufflenet_v2_x0_5", CIFAR, 10)
    theta, x = small.init(Stream(seed=1, name="init"), dtype=torch.float64), normal("x", 2, *CIFAR)
    assert torch.equal(small(theta, x), small(theta, x))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "image_shape", "message"),
    [
        ("resnet19", CIFAR, "torchvision has no classifier 'resnet19'; it has: alexnet, .*, wide_resnet50_2"),
        ("fasterrcnn_resnet50_fpn", CIFAR, "torchvision has no classifier"),
        (
            "vit_b_16",
            (3, 224, 224),
            "no initialisation is known for VisionTransformer .parameter class_token",
        ),
        ("convnext_tiny", (3, 64, 64), "no initialisation is known for CNBlock .parameter .*layer_scale"),
        ("swin_t", (3, 64, 64), r"buffers .*relative_position_index and \d+ more"),
        ("inception_v3", CIFAR, "inception_v3 does not take images of 32x32"),
    ],
)
def test_what_cannot_be_is_refused(name: str, image_shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torchvision_network(name, image_shape, 10)
