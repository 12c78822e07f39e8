"""What pays: whether the step functions are worth compiling, how many replicas or networks are one computation.

Each is a function of the experiment and its device alone, not of how busy a machine is or how many processes share the
work, so that a run's numbers do not hang on them.
"""

import torch

from ray_distill.builders.networks import network_for
from ray_distill.builders.settings import device_of, inner_batch_size, truncation
from ray_distill.config.config import Config, ConfigError
from ray_distill.core.networks.group import check_groupable
from ray_distill.core.networks.network import ImageShape, Network

EAGER_FLOPS_PER_SECOND = {"cpu": 5e10, "cuda": 1e13}
"""Rough, for one device: what decides whether a compiler's minute is worth while, from the configuration
alone, so that a run's numbers do not hang on how busy its machine was."""
SECONDS_PER_CALL = 5e-3
"""What a call of an eager step function takes at least."""
MIN_SAVING_TO_COMPILE_S = 600.0


def should_compile(
    config: Config, network: Network, image_shape: ImageShape, num_classes: int, device: torch.device
) -> bool:
    """Whether the whole run's step functions would take ten minutes or more without torch.compile."""
    rule, _ = truncation(config)
    unroll = rule.unroll_length.at(0)
    window = rule.window_length.at(0) if hasattr(rule, "window_length") else unroll
    batch = inner_batch_size(config, num_classes)
    # A gradient is three forward passes; a window step has another gradient and six more.
    per_inner_step = 3 * batch * network.forward_flops(image_shape)
    rate = EAGER_FLOPS_PER_SECOND.get(device.type, EAGER_FLOPS_PER_SECOND["cpu"])
    seconds = (unroll + 3 * window) * (per_inner_step / rate + SECONDS_PER_CALL)
    return seconds * config.outer.steps * config.replicas >= MIN_SAVING_TO_COMPILE_S


SMALL_MAPS = 100_000
"""Numbers that the largest layer puts out for one network's batch."""
SMALL_THETA = 100_000
"""Parameters. Up to both, groups of four were 1.3 to 2.5 times as fast as one by one on a CPU; above either, most
gained little, and some took twice as long (LOG, 2026-11-25)."""
MOST_AT_ONCE = 8
LEAST_AT_ONCE = 3
"""Of networks that are judged: pairs were 1.3 times as fast as one by one, threes 1.4 to 1.75 (LOG, 2026-11-25)."""
AUTO_GROUPS = 2
"""At least so many groups, so that two workers can share them."""


def _pays_at_once(network: Network, image_shape: ImageShape, batch: int, device: torch.device) -> bool:
    """Whether several networks, each with a batch of so many images, are quicker as one computation."""
    maps = batch * network.largest_map(image_shape)
    return device.type == "cpu" and maps <= SMALL_MAPS and network.num_parameters <= SMALL_THETA


def _of_even_groups(count: int, least_groups: int) -> int:
    """The size of so many groups, or more, none larger than the most."""
    return -(-count // max(least_groups, -(-count // MOST_AT_ONCE)))


def _of_groups_that_pay(count: int, least_groups: int) -> int:
    """Likewise, but rather fewer groups than small ones; 1 where even one group would be."""
    if count < LEAST_AT_ONCE:
        return 1
    return _of_even_groups(count, min(least_groups, count // LEAST_AT_ONCE))


def network_batch_size(
    config: Config,
    network: Network,
    image_shape: ImageShape,
    num_classes: int,
    device: torch.device,
    count: int,
    *,
    batch: int | None = None,
    least_groups: int = AUTO_GROUPS,
) -> int:
    """How many of `count` fresh networks are trained as one computation, on a set that is to be judged.

    Like `replica_batch_size` a function of the experiment and not of how many processes share the work.

    Args:
        batch: images of each network in a step, where it is not the inner training's.
        least_groups: at least so many groups, where there are networks enough, so that processes can share them.
    """
    images = inner_batch_size(config, num_classes) if batch is None else batch
    if not _pays_at_once(network, image_shape, images, device):
        return 1
    try:
        check_groupable(network.module)
    except ValueError:
        return 1
    return _of_groups_that_pay(count, least_groups)


def replica_batch_size(
    config: Config, network: Network, image_shape: ImageShape, num_classes: int, device: torch.device
) -> int:
    """How many replicas are computed as one: the size of the groups that workers share out.

    A function of the experiment and not of the number of workers. In float32 a group rounds otherwise than its
    replicas alone, and an unroll makes much of that (LOG, 2026-11-25): groups that followed the workers would
    give another D on another cluster.

    Raises: ConfigError if more than one are asked for, of a network that cannot be set side by side.
    """
    chosen, replicas = config.compute.replicas_at_once, config.replicas
    try:
        check_groupable(network.module)
    except ValueError as e:
        if chosen != "auto" and chosen > 1:
            raise ConfigError(f"compute.replicas_at_once: {e} (found {chosen}); set it to 1") from None
        return 1
    if chosen != "auto":
        return chosen
    pays = _pays_at_once(network, image_shape, inner_batch_size(config, num_classes), device)
    return _of_even_groups(replicas, AUTO_GROUPS) if pays and config.engine == "adjoint" else 1


def check_groups(config: Config, image_shape: ImageShape, num_classes: int) -> None:
    """Raises: ConfigError if there are more workers than groups of replicas to share out."""
    network = network_for(config, config.network.name, image_shape, num_classes)
    device = device_of(config)
    at_once = replica_batch_size(config, network, image_shape, num_classes, device)
    groups, workers = -(-config.replicas // at_once), config.cluster.num_workers
    if workers > groups:
        raise ConfigError(
            f"cluster.num_workers: must be at most {groups}, since the {config.replicas} replicas are computed "
            f"in groups of {at_once} (found {workers}); lower it, or set compute.replicas_at_once to 1"
        )
