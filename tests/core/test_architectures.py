"""The families of networks: sizes, the functions that they are, and that all can be differentiated twice."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ray_distill.core.distilled import DistilledData
from ray_distill.core.networks.names import ACTIVATIONS, FAMILIES, POOLINGS, parse_name
from ray_distill.core.networks.network import BUILDERS, Network, NetworkSpec, build_network
from ray_distill.core.rng import Stream
from ray_distill.core.step_functions import PRODUCTS, StepFunctions

STREAM = Stream(seed=3, name="init")
CIFAR = (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("convnet3", 319_626),
        ("convnet3-bn", 319_626),
        ("convnet3-gn", 320_010),
        ("convnet3-ln", 663_306),
        ("convnet3-none", 319_242),
        ("mlp2", 411_146),
        ("alexnet", 1_873_162),
        ("alexnet-none", 1_872_202),
        ("vgg11", 9_231_114 - 2_752),
        ("vgg13", 9_416_010 - 2_944),
        ("vgg16", 14_728_266 - 4_224),
        ("vgg19", 20_040_522 - 5_504),
        ("vgg11-gn", 9_231_114),
        ("resnet18", 11_173_962),
        ("resnet18-bn", 11_173_962),
        ("resnet34", 21_282_122),
        ("resnet50", 23_520_842),
    ],
)
def test_parameter_counts_for_ten_classes_of_32x32(name: str, expected: int) -> None:
    """Published where there is a published network, otherwise worked out by hand; and the output's shape.

    ConvNet-3: convolutions 3 x 9 x 128 + 2 x 128 x 9 x 128 = 298,368; 256 for each instance, batch or group
    norm; 128 biases for each convolution before a group or layer norm, or none; head 2048 x 10 + 10 = 20,490.
    A layer norm has two for each number of its map: 2 x 128 x (1024 + 256 + 64) = 344,064 in all.
    MLP-2: 3072 x 128 + 128 + 128 x 128 + 128 + 1290.
    AlexNet: 3 x 25 x 128 + 128 x 25 x 192 + 192 x 9 x 256 + 256 x 9 x 192 + 192 x 9 x 192 = 1,840,512; 960
    channels with 2 for a norm, or a bias; head 192 x 16 x 10 + 10 = 30,730.
    VGG: the counts of the networks with batch norm that CIFAR-10's tables are of, less one dead bias for each
    channel of their convolutions: 64 + 128 + 2 x 256 + 4 x 512 for VGG11. A group norm keeps them.
    ResNet: likewise, without biases. From those for ImageNet (11,689,512, 21,797,672 and 25,557,032): a 3x3
    stem for the 7x7 one (7,680 less), ten classes for a thousand (990 x 513, or 990 x 2049, less).
    """
    network = build_network(NetworkSpec(name=name), CIFAR, 10)
    assert network.num_parameters == expected
    assert all(p.is_meta for p in network.module.parameters())
    assert network.module(torch.empty(2, *CIFAR, device="meta")).shape == (2, 10)


def test_counts_of_imagenets_resnets_give_those_of_small_images() -> None:
    """The arithmetic of the docstring above."""
    assert [11_689_512 - 7_680 - 990 * 513, 21_797_672 - 7_680 - 990 * 513] == [11_173_962, 21_282_122]
    assert 25_557_032 - 7_680 - 990 * 2049 == 23_520_842


NARROW = {
    **{"convnet2": 4, "convnet2-bn": 4, "convnet2-ln": 4, "convnet2-gn": 8, "convnet2-none": 4, "mlp2": 8},
    **{"alexnet": 4, "alexnet-bn": 4, "alexnet-none": 4, "vgg11": 2, "vgg13": 2, "vgg16": 2, "vgg19": 2},
    **{"vgg11-bn": 2, "resnet18": 2, "resnet18-bn": 2, "resnet18-gn": 8, "resnet34": 2, "resnet50": 2},
    "resnet50-bn": 2,
}


def side(name: str) -> int:
    """Of the least images that the network takes: five halvings of a VGG, three strides of a ResNet."""
    return {"vgg": 32, "resnet": 16}.get(parse_name(name).family, 8)


def narrow(name: str) -> tuple[Network, Tensor, Tensor]:
    """A narrow network for grey images and two classes, its first parameters, and three images."""
    shape = (1, side(name), side(name))
    network = build_network(NetworkSpec(name=name, width=NARROW[name]), shape, 2)
    images = Stream(seed=1, name="x").normal(3 * side(name) ** 2, dtype=torch.float64)
    return network, network.init(STREAM, dtype=torch.float64), images.reshape(3, *shape)


@pytest.mark.parametrize("name", NARROW)
def test_the_function_is_the_module(name: str) -> None:
    """An ordinary module in training mode that holds theta, to rounding."""
    network, theta, images = narrow(name)
    parts, usual = parse_name(name), FAMILIES[parse_name(name).family]
    options: dict[str, object] = {"width": NARROW[name]}
    options |= {"depth": parts.depth} if usual.depths else {}
    options |= {"norm": parts.norm} if usual.norm else {}
    options |= {"activation": "relu"} if usual.activation else {}
    options |= {"pooling": "avg"} if usual.pooling else {}
    module = BUILDERS[parts.family](tuple(images.shape[1:]), 2, **options).double()
    nn.utils.vector_to_parameters(theta, module.parameters())
    torch.testing.assert_close(network(theta, images), module(images), rtol=1e-12, atol=1e-12)


def test_alexnet_is_the_published_chain() -> None:
    """Its layers written out, at width 4 for grey images of 8x8: 4, 6, 8, 6 and 6 channels."""
    network, theta, images = narrow("alexnet")
    layers: list[nn.Module] = []
    for before, after, kernel, pooled in (
        *((1, 4, 5, True), (4, 6, 5, True)),
        *((6, 8, 3, False), (8, 6, 3, False), (6, 6, 3, True)),
    ):
        layers.append(nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False))
        layers += [nn.InstanceNorm2d(after, affine=True), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pooled else []
    module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(6, 2)).double()
    nn.utils.vector_to_parameters(theta, module.parameters())
    torch.testing.assert_close(network(theta, images), module(images), rtol=1e-12, atol=1e-12)


def assert_twice_differentiable(
    network: Network, theta: Tensor, images: Tensor, relative_difference: Callable, form: str
) -> None:
    """The second-order product is a central difference of the gradient, in theta and in the batch.

    h = 1e-6 along a unit direction moves a preactivation by about as much, so that here none of the units
    crosses its kink, at which the gradient would jump; rounding leaves about 1e-8.
    """
    labels = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.4, 0.7]], dtype=torch.float64)
    batch, functions = DistilledData(images, labels), StepFunctions(network, product_form=form)
    lam = Stream(seed=1, name="lam").normal(len(theta), dtype=torch.float64)[0]
    lam, h = lam / lam.norm(), 1e-6
    hessian, mixed = functions.product(theta, batch, lam)

    def gradients(at: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in (at, *batch)]
        logits = network(leaves[0], leaves[1])
        loss = -(leaves[2] * logits.log_softmax(dim=1)).sum() / 3
        return torch.autograd.grad(loss, leaves)

    assert relative_difference(functions.gradient(theta, batch)[0], gradients(theta)[0]) < 1e-12
    for ours, up, down in zip(
        (hessian, *mixed), gradients(theta + h * lam), gradients(theta - h * lam), strict=True
    ):
        assert relative_difference(ours, (up - down) / (2 * h)) < 1e-6


@pytest.mark.parametrize("form", PRODUCTS)
@pytest.mark.parametrize("name", NARROW)
def test_second_order_is_the_difference_of_the_first(
    relative_difference: Callable, name: str, form: str
) -> None:
    assert_twice_differentiable(*narrow(name), relative_difference, form)


@pytest.mark.parametrize("form", PRODUCTS)
@pytest.mark.parametrize(
    ("activation", "pooling"), [*((a, "avg") for a in ACTIVATIONS), *(("relu", p) for p in POOLINGS)]
)
def test_second_order_with_every_activation_and_pooling(
    relative_difference: Callable, activation: str, pooling: str, form: str
) -> None:
    spec = NetworkSpec(name="convnet2", width=4, activation=activation, pooling=pooling)
    network = build_network(spec, (1, 8, 8), 2)
    _, _, images = narrow("convnet2")
    assert_twice_differentiable(
        network, network.init(STREAM, dtype=torch.float64), images, relative_difference, form
    )


@pytest.mark.parametrize(
    ("activation", "at_minus_one"),
    [
        ("relu", 0.0),
        ("leaky-relu", -0.01),
        ("sigmoid", 0.2689414),
        ("silu", -0.2689414),
        ("gelu", -0.1586553),
        ("softplus", 0.3132617),
    ],
)
def test_activations_are_what_they_are_called(activation: str, at_minus_one: float) -> None:
    """At -1: 0; -0.01; 1/(1 + e); -1/(1 + e); -Phi(-1); log(1 + 1/e). A unit with weight -1 and input 1, read off."""
    network = build_network(NetworkSpec(name="mlp1", width=1, activation=activation), (1, 1, 1), 1)
    theta = torch.tensor([-1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    assert float(network(theta, torch.ones(1, 1, 1, 1).double())) == pytest.approx(at_minus_one, abs=1e-7)


@pytest.mark.parametrize(
    ("pooling", "features"), [("avg", 4 * 4 * 2), ("max", 4 * 4 * 2), ("none", 8 * 8 * 2)]
)
def test_pooling_halves_the_map_or_does_not(pooling: str, features: int) -> None:
    network = build_network(NetworkSpec(name="convnet1", width=2, pooling=pooling), (1, 8, 8), 3)
    assert network.shapes["4.weight" if pooling == "none" else "5.weight"] == (3, features)


@pytest.mark.parametrize("name", ["convnet3", "alexnet", "vgg11"])
def test_28x28_images_are_padded_to_a_map_of_32x32(name: str) -> None:
    """So the networks, their heads among them, are those for 32x32."""
    small, large = (build_network(NetworkSpec(name=name, width=2), (1, s, s), 5) for s in (28, 32))
    assert small.shapes == large.shapes
    assert small.module[0](torch.empty(1, 1, 28, 28, device="meta")).shape[2:] == (32, 32)


@pytest.mark.parametrize("name", ["convnet2", "alexnet", "vgg11", "resnet18", "resnet50"])
@pytest.mark.parametrize(("norm", "biased"), [("", 0), ("-bn", 0), ("-gn", 1), ("-ln", 1), ("-none", 1)])
def test_convolutions_have_a_bias_where_it_does_something(name: str, norm: str, biased: int) -> None:
    """Adding 3 to a convolution's output, as a bias does, changes what its norm gives, or there is no bias."""
    network = build_network(NetworkSpec(name=name + norm, width=8), CIFAR, 5)
    convolutions = [m for m in network.module.modules() if isinstance(m, nn.Conv2d)]
    assert {m.bias is not None for m in convolutions} == {bool(biased)}
    if not norm.endswith("none"):
        normed = network.module[1]
        own = {k: torch.ones(p.shape).double() for k, p in normed.named_parameters()}
        maps = Stream(seed=1, name="maps").normal(2 * 8 * 1024, dtype=torch.float64).reshape(2, 8, 32, 32)
        shifted = maps + 3.0 * (torch.arange(8) == 5).double()[:, None, None]
        before, after = (torch.func.functional_call(normed, own, (x,)) for x in (maps, shifted))
        assert (float((after - before).abs().max()) > 0.1) == bool(biased)


@pytest.mark.parametrize("name", ["convnet3", "mlp2", "alexnet", "vgg16", "resnet18", "resnet50-bn"])
@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 32, 32), (3, 64, 64), (4, 40, 36)])
def test_other_channels_and_sizes(name: str, image_shape: tuple[int, int, int]) -> None:
    network = build_network(NetworkSpec(name=name, width=2), image_shape, 7)
    assert network.module(torch.empty(2, *image_shape, device="meta")).shape == (2, 7)


@pytest.mark.parametrize(
    ("spec", "image_shape", "message"),
    [
        (
            NetworkSpec(name="vgg11-bn"),
            (1, 16, 16),
            "vgg11-bn for 16x16 images: .*too small: a map of 1x1 cannot",
        ),
        (
            NetworkSpec(name="vgg11"),
            (1, 16, 16),
            "too small: an instance norm would get a map of 1x1",
        ),
        (NetworkSpec(name="resnet18"), (1, 8, 8), "resnet18 for 8x8 images: .*too small: an instance norm"),
        (NetworkSpec(name="alexnet"), (1, 4, 4), "alexnet for 4x4 images: .*too small"),
        (NetworkSpec(name="alexnet", width=3), (1, 32, 32), r"width must be even.*\(got 3\)"),
        (
            NetworkSpec(name="convnet3-gn", width=6),
            (1, 32, 32),
            "4 equal groups of two channels or more .got 6 channels",
        ),
        (
            NetworkSpec(name="convnet3-gn", width=4),
            (1, 32, 32),
            "4 equal groups of two channels or more .got 4 channels",
        ),
        (NetworkSpec(name="resnet18", activation="gelu"), CIFAR, "activation cannot be chosen .got 'gelu'"),
        (NetworkSpec(name="mlp2", pooling="max"), CIFAR, "mlp2 .*pooling cannot be chosen .got 'max'"),
    ],
)
def test_errors_say_what_was_wrong(
    spec: NetworkSpec, image_shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(spec, image_shape, 10)


def test_a_resnet_with_batch_norm_takes_images_that_leave_one_pixel() -> None:
    """8x8 -> 1x1: the statistics are over the batch."""
    network = build_network(NetworkSpec(name="resnet18-bn", width=2), (1, 8, 8), 3)
    assert network.module(torch.empty(2, 1, 8, 8, device="meta")).shape == (2, 3)
