"""From the configuration to core: what reaches it, and what does not fit the data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from ray_distill.builders import batching, networks
from ray_distill.builders.checks import check_worker_count
from ray_distill.builders.experiment import build_experiment, build_inner_problem
from ray_distill.config.config import ConfigError
from ray_distill.core.augment import Augmentation
from ray_distill.core.inner_optimizer import SGD, Adam
from ray_distill.core.networks.network import ImageShape, Network, NetworkSpec
from ray_distill.core.outer_loop import draw_real_batch
from ray_distill.pipeline import prepare
from ray_distill.utils.progress import Update
from tests.helpers.tiny import Bench, tiny_config

GREY, COLOUR = (1, 8, 8), (3, 8, 8)


@contextmanager
def silent(label: str, total: int) -> Iterator[Update]:
    yield lambda *_: None


def test_each_side_has_its_own_augmentation_in_core() -> None:
    config = tiny_config(
        inner={"augmentation": ["crop", "flip"], "augmentation_mode": "composed"},
        outer={"augmentation": ["cutout", "color"]},
    )
    experiment = build_experiment(config, COLOUR, 10)
    assert experiment.inner.augmentation == Augmentation(("crop", "flip"), "composed")
    assert experiment.real_augmentation == Augmentation(("cutout", "color"), "single")


@pytest.mark.parametrize("section", ["inner", "outer"])
def test_saturation_is_refused_for_images_of_one_channel(section: str) -> None:
    """Where it would do nothing. `color` is accepted: two of its three parts do something."""
    config = tiny_config(**{section: {"augmentation": ["flip", "saturation"]}})
    with pytest.raises(
        ConfigError, match=rf"^{section}\.augmentation: saturation .* one channel .*flip.*remove"
    ):
        build_experiment(config, GREY, 10)
    build_experiment(config, COLOUR, 10)
    build_experiment(tiny_config(**{section: {"augmentation": ["color"]}}), GREY, 10)


def test_more_classes_in_a_batch_than_the_data_have_are_refused() -> None:
    """As many are accepted, and reach core."""
    config = tiny_config(inner={"classes_per_batch": 7})
    assert build_experiment(config, GREY, 7).inner.classes_per_inner_batch == 7
    with pytest.raises(ConfigError, match=r"^inner\.classes_per_batch: .* 6 classes .*got 7.*remove"):
        build_experiment(config, GREY, 6)
    assert build_experiment(tiny_config(), GREY, 6).inner.classes_per_inner_batch is None


@pytest.mark.parametrize(
    ("section", "changes"),
    [("outer", {"augmentation": ["saturation"]}), ("inner", {"classes_per_batch": 11})],
)
def test_what_does_not_fit_the_data_is_known_before_a_store_is_made(
    section: str, changes: dict[str, object], tmp_path: Path
) -> None:
    """Read from the data, which are grey digits of ten classes, and not in a worker."""
    config = tiny_config(**{section: changes})
    with pytest.raises(ConfigError, match=rf"^{section}\."):
        prepare(config, f"sqlite:///{tmp_path}/store.db", silent)
    assert list(tmp_path.iterdir()) == []


def test_the_real_batch_is_augmented_by_its_section_alone(bench: Callable[..., Bench]) -> None:
    """A cutout on the real side leaves zeros in every image, at least 2 x 2; one on the distilled side none."""

    def dark_images(**sections: object) -> int:
        b = bench(data={"preprocessing": "normalise"}, **sections)
        images = draw_real_batch(b.experiment, b.train, 0, 0).images_NCHW
        return int(((images == 0).flatten(1).sum(dim=1) >= 4).sum())

    cutout, nothing = {"augmentation": ["cutout"]}, {"augmentation": []}
    assert dark_images(inner=nothing, outer=cutout) == 32
    assert dark_images(inner=cutout, outer=nothing) == 0


def test_the_optimizer_is_the_configurations() -> None:
    sgd = build_experiment(tiny_config(inner={"optimizer": "sgd", "lr": 0.1, "momentum": 0.5}), GREY, 10)
    assert sgd.inner.optimizer == SGD(lr=0.1, momentum=0.5, weight_decay=5e-4)
    adam = build_experiment(tiny_config(inner={"eps_convention": "higher"}), GREY, 10)
    assert adam.inner.optimizer == Adam(lr=1e-3, eps_convention="higher")


def test_only_long_runs_are_compiled_by_themselves() -> None:
    """The tiny run is a matter of seconds; CIFAR-10 at 10 images per class for 10,000 steps, of hours.

    Its largest map is 128x8x8 in float64, 64 KiB an image: 96 in 6 MiB, and 50 is the divisor of 100 below.
    """
    assert not build_experiment(tiny_config(), GREY, 10).inner.functions.compiled
    large = {"network": {"name": "convnet3", "width": 128}, "distilled": {"ipc": 10}}
    long = build_experiment(tiny_config(**large, outer={"steps": 10_000}), COLOUR, 10).inner.functions
    assert (long.compiled, long.images_per_pass) == (True, 50)
    never = tiny_config(**large, outer={"steps": 10_000}, compute={"compile": "never"})
    assert not build_experiment(never, COLOUR, 10).inner.functions.compiled
    assert build_experiment(tiny_config(compute={"compile": "always"}), GREY, 10).inner.functions.compiled


def test_the_memory_for_states_bounds_the_window() -> None:
    """Tiny ConvNet-1, width 4, one channel of 28x28: (2 + 2) vectors of 8 bytes for each state."""
    problem = build_experiment(tiny_config(replicas=1, compute={"state_memory_gib": 1e-3}), GREY, 10).inner
    bytes_per_state = 4 * 8 * problem.network.num_parameters
    assert problem.max_states == int(1e-3 * 2**30 / bytes_per_state)
    with pytest.raises(
        ConfigError, match=r"compute.state_memory_gib: a window of 6 steps needs memory for at least 5"
    ):
        build_experiment(
            tiny_config(truncation={"window_length": 6}, compute={"state_memory_gib": 1e-6}), GREY, 10
        )


def test_small_networks_take_their_replicas_at_once() -> None:
    """The tiny network's 5 replicas: 3 and 2; a wide ConvNet-3 takes them one by one."""
    tiny = build_experiment(tiny_config(replicas=5), GREY, 10)
    assert tiny.groups == [range(3), range(3, 5)]
    chosen = tiny_config(replicas=5, compute={"replicas_at_once": 2})
    assert build_experiment(chosen, GREY, 10).group_size == 2
    for replicas, at_once in ((1, 1), (2, 1), (3, 2), (4, 2), (9, 5), (16, 8), (17, 6)):
        assert build_experiment(tiny_config(replicas=replicas), GREY, 10).group_size == at_once
    wide = {"network": {"name": "convnet3", "width": 128}, "distilled": {"ipc": 10}}
    assert build_experiment(tiny_config(replicas=5, **wide), (3, 32, 32), 10).group_size == 1
    assert build_experiment(tiny_config(replicas=5, engine="higher"), GREY, 10).group_size == 1


def test_fresh_networks_are_trained_at_once_where_that_pays() -> None:
    """Even groups, of three at least, two or more of them where that leaves so many; one by one where maps or parameters are many, or on a GPU."""
    config, cpu = tiny_config(), torch.device("cpu")

    def at_once(
        count: int, name: str = "convnet1", shape: ImageShape = GREY, device: torch.device = cpu, **how: int
    ) -> int:
        network = networks.network_for(config, name, shape, 10)
        return batching.network_group_size(config, network, shape, 10, device, count, **how)

    sizes = {1: 1, 2: 1, 3: 3, 5: 5, 6: 3, 8: 4, 9: 5, 17: 6}
    assert {count: at_once(count) for count in sizes} == sizes
    assert {count: at_once(count, min_groups=1) for count in (1, 2, 3, 8, 9)} == {
        **{1: 1, 2: 1, 3: 3, 8: 8, 9: 5}
    }
    assert at_once(8, "convnet1-bn") == at_once(8, "mlp2") == 4
    # Width 4 on 8x8 maps: 256 numbers an image, so 390 images are below 100,000 and 391 above.
    assert (at_once(8, batch=390), at_once(8, batch=391)) == (4, 1)
    assert at_once(8, "resnet18", (1, 16, 16)) == 1
    assert at_once(8, device=torch.device("cuda")) == 1
    for joining, size in ((nn.Identity(), 4), (nn.LocalResponseNorm(2), 1)):
        with torch.device("meta"):
            layers = nn.Sequential(nn.Conv2d(1, 2, 3), joining, nn.Flatten(), nn.Linear(72, 10))
            assert batching.network_group_size(config, Network(layers), GREY, 10, cpu, 8) == size


def test_the_number_of_workers_does_not_change_the_groups() -> None:
    """It would change the rounding, and by it the run; more workers than groups are refused."""
    one, two = (tiny_config(replicas=4, cluster={"num_workers": n}) for n in (1, 2))
    assert build_experiment(one, GREY, 10).groups == build_experiment(two, GREY, 10).groups
    check_worker_count(two, GREY, 10)
    with pytest.raises(ConfigError, match="at most 2, since the 4 replicas are computed in groups of 2"):
        check_worker_count(tiny_config(replicas=4, cluster={"num_workers": 3}), GREY, 10)
    alone = {"replicas_at_once": 1}
    check_worker_count(tiny_config(replicas=4, cluster={"num_workers": 4}, compute=alone), GREY, 10)


def spec(judge: str, /, **network: object) -> NetworkSpec:
    return networks.network_spec(tiny_config(network={"width": None} | network), judge)


def test_networks_that_judge_share_the_options_of_their_kin() -> None:
    """Convnets and perceptrons the width and activation, a family's members all; a ResNet beside them is published."""
    own = {"name": "convnet3", "width": 32, "activation": "gelu", "pooling": "max"}
    convnet = NetworkSpec(name="convnet2-bn", width=32, activation="gelu", pooling="max")
    assert spec("convnet2-bn", **own) == convnet
    assert spec("mlp2", **own) == NetworkSpec(name="mlp2", width=32, activation="gelu")
    assert spec("resnet18-bn", **own) == NetworkSpec(name="resnet18-bn")
    assert spec("vgg11", **own) == NetworkSpec(name="vgg11")
    assert spec("convnet3", name="mlp1", width=9) == NetworkSpec(name="convnet3", width=9, activation="relu")
    assert spec("resnet18-bn", name="resnet34", width=8) == NetworkSpec(name="resnet18-bn", width=8)
    assert spec("convnet3", name="torchvision:mobilenet_v2") == NetworkSpec(name="convnet3")


def test_batch_norm_takes_whole_batches() -> None:
    """By itself; asked for passes, it is an error of the own network, and left for a network that judges."""
    batch_norm = {"network": {"name": "convnet1-bn"}}
    functions = build_experiment(tiny_config(**batch_norm), GREY, 10).inner.functions
    assert functions.network.has_batch_norm
    assert functions.images_per_pass is None
    passes = {"compute": {"images_per_pass": 4}}
    with pytest.raises(ConfigError, match=r"^compute\.images_per_pass: .*convnet1-bn.*got 4.*remove"):
        build_experiment(tiny_config(**batch_norm, **passes), GREY, 10)
    config = tiny_config(**passes)
    judge = networks.network_for(config, "convnet1-bn", GREY, 10)
    assert build_inner_problem(config, judge, GREY, 10).functions.images_per_pass is None


def test_a_network_that_cannot_be_set_side_by_side_takes_its_replicas_one_by_one() -> None:
    """By itself; asked for two at once, it is an error."""
    own = {"network": {"name": "torchvision:squeezenet1_1", "width": None}}
    assert build_experiment(tiny_config(**own), GREY, 10).group_size == 1
    at_once = {"compute": {"replicas_at_once": 2}}
    with pytest.raises(
        ConfigError, match=r"^compute\.replicas_at_once: .*SqueezeNet cannot be grouped.*got 2.*set it to 1"
    ):
        build_experiment(tiny_config(**own, **at_once), GREY, 10)


@pytest.mark.parametrize("key", ["network.name", "evaluation.networks"])
def test_a_network_that_does_not_fit_is_told_by_its_key(key: str) -> None:
    config = tiny_config()
    with pytest.raises(ConfigError, match=rf"^{key}: vgg11 for 8x8 images: the images are too small"):
        networks.network_for(config, "vgg11", GREY, 10, key)
    with pytest.raises(ConfigError, match=rf"^{key}: torchvision has no classifier 'vgg12'"):
        networks.network_for(config, "torchvision:vgg12", GREY, 10, key)
