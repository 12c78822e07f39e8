"""Networks: sizes, initialisation, the functional form, and errors."""

import math

import pytest
import torch
from torch import nn

from ray_distill.core.networks.network import Network, NetworkSpec, build_network
from ray_distill.core.rng import Stream

STREAM = Stream(seed=3, name="init")


@pytest.mark.parametrize(
    ("name", "width", "image_shape", "num_classes", "expected"),
    [
        ("convnet3", None, (1, 28, 28), 10, 317_322),
        ("convnet4", 128, (3, 64, 64), 200, 856_648),
        ("mlp2", 5, (1, 3, 3), 4, 104),
    ],
)
def test_parameter_counts(
    name: str, width: int | None, image_shape: tuple[int, int, int], num_classes: int, expected: int
) -> None:
    """Worked out by hand.

    A 3x3 convolution c -> 128 has 1152 c weights: 1152 (c = 1), 3456 (c = 3), 147,456 (c = 128); a norm has 256;
    a map of 4x4 gives 2048 features. ConvNet-3, 28x28 (padded to a 32x32 map), K = 10:
    1152 + 2 x 147,456 + 3 x 256 + 10 x 2048 + 10 = 317,322. ConvNet-4, 64x64, K = 200:
    3456 + 3 x 147,456 + 4 x 256 + 200 x 2048 + 200 = 856,648.
    MLP, 9 -> 5 -> 5 -> 4: 50 + 30 + 24 = 104.
    """
    spec = NetworkSpec(name=name, width=width)
    network = build_network(spec, image_shape, num_classes)
    assert network.num_parameters == expected
    assert network.init(STREAM, dtype=torch.float32).shape == (expected,)


@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 32, 32)])
def test_the_last_map_of_convnet3_is_4x4(image_shape: tuple[int, int, int]) -> None:
    network = build_network(NetworkSpec(name="convnet3", width=2), image_shape, 5)
    theta = network.init(STREAM, dtype=torch.float64)
    body = network.module[:-2]
    values = {k: v for k, v in network.unflatten(theta).items() if int(k.split(".")[0]) < len(body)}
    assert torch.func.functional_call(body, values, (torch.zeros(1, *image_shape).double(),)).shape == (
        1,
        2,
        4,
        4,
    )


def test_init_is_pytorchs_law_and_norms_start_at_one_and_zero() -> None:
    """Convolution and linear weights and biases: uniform on +-1/sqrt(fan in); fan in 27, 72, 128 here.

    n uniform draws on +-b: largest magnitude above b (1 - 10/n) but for chance e^-10; mean within
    5 b/sqrt(3 n).
    """
    network = build_network(NetworkSpec(name="convnet2", width=8), (3, 16, 16), 10)
    parts = network.unflatten(network.init(STREAM, dtype=torch.float64))
    fan_in = {"0": 27, "4": 72, "9": 128}
    for name, value in parts.items():
        layer, kind = name.split(".")
        if layer not in fan_in:
            assert torch.equal(value, torch.full_like(value, 1.0 if kind == "weight" else 0.0)), name
            continue
        bound, n = 1 / math.sqrt(fan_in[layer]), value.numel()
        assert float(value.abs().max()) <= bound
        assert float(value.abs().max()) > bound * (1 - 10 / n)
        assert abs(float(value.mean())) < 5 * bound / math.sqrt(3 * n)


def test_init_bounds_are_those_of_torch() -> None:
    """The widest of many of torch's own initialisations reaches, and does not pass, our bound."""
    torch_max = max(float(nn.Linear(4, 50).weight.detach().abs().max()) for _ in range(20))
    network = build_network(NetworkSpec(name="mlp1", width=500), (1, 2, 2), 2)
    ours = float(network.unflatten(network.init(STREAM, dtype=torch.float64))["1.weight"].abs().max())
    assert ours == pytest.approx(0.5, rel=0.01)
    assert torch_max == pytest.approx(0.5, rel=0.01)


def test_init_is_a_function_of_the_stream_alone() -> None:
    network = build_network(NetworkSpec(name="convnet1", width=4), (1, 8, 8), 3)
    before = torch.get_rng_state()
    theta = network.init(STREAM, dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(theta, network.init(STREAM, dtype=torch.float64))
    torch.testing.assert_close(network.init(STREAM, dtype=torch.float32).double(), theta, rtol=1e-6, atol=0)
    assert not torch.equal(theta, network.init(STREAM.at(outer_step=0, replica=1), dtype=torch.float64))


def test_building_draws_nothing_and_allocates_nothing() -> None:
    before = torch.get_rng_state()
    network = build_network(NetworkSpec(name="convnet3", width=128), (3, 32, 32), 10)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.is_meta for p in network.module.parameters())


def test_unflatten_gives_views_in_order() -> None:
    network = build_network(NetworkSpec(name="mlp1", width=2), (1, 1, 3), 2)
    theta = torch.arange(14, dtype=torch.float64)
    parts = network.unflatten(theta)
    assert {name: part.tolist() for name, part in parts.items()} == {
        "1.weight": [[0, 1, 2], [3, 4, 5]],
        "1.bias": [6, 7],
        "3.weight": [[8, 9], [10, 11]],
        "3.bias": [12, 13],
    }
    theta[0] = -1.0
    assert float(parts["1.weight"][0, 0]) == -1.0


@pytest.mark.parametrize("name", ["convnet2", "convnet2-none", "mlp2"])
def test_the_function_is_the_module(name: str) -> None:
    """The same layers written out again as an ordinary module, loaded with theta."""
    network = build_network(NetworkSpec(name=name, width=3), (2, 8, 8), 4)
    theta = network.init(STREAM, dtype=torch.float64) + 0.01
    layers: list[nn.Module] = []
    if name != "mlp2":
        normed = name == "convnet2"
        for channels in (2, 3):
            layers.append(nn.Conv2d(channels, 3, 3, padding=1, bias=not normed))
            layers += [nn.InstanceNorm2d(3, affine=True)] if normed else []
            layers += [nn.ReLU(), nn.AvgPool2d(2)]
        layers += [nn.Flatten(), nn.Linear(12, 4)]
    else:
        layers = [nn.Flatten(), nn.Linear(128, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 4)]
    module = nn.Sequential(*layers).double()
    nn.utils.vector_to_parameters(theta, module.parameters())
    x = Stream(seed=1, name="x").normal(5 * 128, dtype=torch.float64).reshape(5, 2, 8, 8)
    torch.testing.assert_close(network(theta, x), module(x), rtol=1e-12, atol=1e-12)


def test_a_bias_before_an_instance_norm_would_do_nothing() -> None:
    """Why there is none: an ordinary convolution's bias moves the normed map by rounding alone."""
    x = Stream(seed=1, name="x").normal(5 * 128, dtype=torch.float64).reshape(5, 2, 8, 8)
    module = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.GroupNorm(3, 3)).double()
    before = module(x)
    with torch.no_grad():
        module[0].bias += 10.0
    torch.testing.assert_close(module(x), before, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("spec", "image_shape", "message"),
    [
        (
            NetworkSpec(name="convnet4", width=4),
            (3, 8, 8),
            "convnet4 for 8x8 images: the images are too small",
        ),
        (NetworkSpec(name="convnet3", width=4), (3, 32, 4), "too small: a map of 8x1 cannot be halved"),
        (NetworkSpec(name="convnet", width=4), (3, 32, 32), "unknown network 'convnet'"),
    ],
)
def test_errors_say_what_was_wrong_and_what_is_allowed(
    spec: NetworkSpec, image_shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_network(spec, image_shape, 10)


def test_the_deepest_network_that_fits_runs() -> None:
    network = build_network(NetworkSpec(name="convnet3", width=2), (1, 8, 8), 3)
    theta = network.init(STREAM, dtype=torch.float64)
    assert network(theta, torch.ones(2, 1, 8, 8, dtype=torch.float64)).shape == (2, 3)


def test_buffers_are_refused() -> None:
    """Other than the running statistics of batch norms: nothing would say what they are."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    module.register_buffer("scale", torch.ones(1))
    with pytest.raises(ValueError, match=r"buffers .* .got scale."):
        Network(module)


def test_a_network_that_draws_by_itself_is_refused() -> None:
    """At a probability of 0 it draws nothing."""
    with pytest.raises(
        ValueError, match=r"Dropout\(0.5\) uses the global random generator; set its probability to 0"
    ):
        Network(nn.Sequential(nn.Flatten(), nn.Dropout(0.5)))
    Network(nn.Sequential(nn.Flatten(), nn.Dropout(0.0)))


def test_an_unknown_layer_has_no_initialisation() -> None:
    with pytest.raises(ValueError, match="no initialisation is known for PReLU"):
        Network(nn.Sequential(nn.Flatten(), nn.PReLU()))
