"""Names of networks: one for each, and what cannot be one."""

import re

import pytest

from ray_distill.core.networks.names import FAMILIES, NORMS, parse_name
from ray_distill.core.networks.network import BUILDERS


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("convnet3", ("convnet", 3, "instance")),
        ("convnet9-none", ("convnet", 9, "none")),
        ("mlp2", ("mlp", 2, "none")),
        ("alexnet", ("alexnet", 0, "instance")),
        ("alexnet-gn", ("alexnet", 0, "group")),
        ("vgg11-ln", ("vgg", 11, "layer")),
        ("resnet18-bn", ("resnet", 18, "batch")),
    ],
)
def test_a_name_is_family_depth_and_norm(name: str, parts: tuple[str, int, str]) -> None:
    assert parse_name(name) == parts


def test_no_network_has_two_names() -> None:
    """All that parse, of all that could be written, are different networks: 26 plain names, 17 of them with norms.

    9 convnets, 9 perceptrons, AlexNet, 4 VGGs, 3 ResNets; all but the perceptrons have 4 other norms.
    """
    written = [
        f"{family}{depth}{suffix}"
        for family in FAMILIES
        for depth in ["", *range(60)]
        for suffix in ["", *(f"-{norm}" for norm in NORMS)]
    ]
    found = []
    for name in written:
        try:
            found.append(parse_name(name))
        except ValueError:
            continue
    assert len(found) == len(set(found)) == 9 + 5 * (9 + 1 + 4 + 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "convnet",
            "unknown network 'convnet'; known: convnet1 .. convnet9, mlp1 .. mlp9, alexnet, vgg11, vgg13,",
        ),
        ("convnet10", "unknown network 'convnet10'; known:"),
        ("convnet03", "unknown network"),
        ("alexnet5", "unknown network 'alexnet5'"),
        (
            "resnet19",
            "unknown network 'resnet19'; known: .* resnet18, resnet34, resnet50; with a suffix for another norm",
        ),
        ("ResNet18", "unknown network"),
        ("resnet18bn", "unknown network"),
        ("resnet18-", "unknown network"),
        ("resnet18-xy", "unknown norm -xy of network 'resnet18-xy'; known: -bn, -gn, -in, -ln, -none"),
        ("resnet18-in", "instance norm is the default of resnet18; write resnet18, not resnet18-in"),
        ("mlp2-bn", "mlp2 has no norms, so -bn has no effect; write mlp2"),
        ("mlp2-none", "mlp2 has no norms"),
    ],
)
def test_what_is_no_name_is_refused_with_what_is_one(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_name(name)


def test_every_family_has_a_builder() -> None:
    assert set(BUILDERS) == set(FAMILIES)


def test_a_message_names_a_norm_that_can_be_written() -> None:
    """The example in the message of an unknown name is a name."""
    with pytest.raises(ValueError, match="unknown network") as caught:
        parse_name("nothing")
    (example,) = re.findall(r"as in (\S+)$", str(caught.value))
    assert parse_name(example).norm == "batch"
