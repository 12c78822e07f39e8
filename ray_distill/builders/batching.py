"""Decides whether to compile the step functions, and how many replicas or networks form one computation.

The decisions depend on the experiment and its device alone, not on the load of the machine or the number of
processes: they change the rounding, so a run's numbers would depend on them.
"""

import torch

from ray_distill.builders.settings import inner_batch_size, truncation_rule
from ray_distill.config.config import Config, ConfigError
from ray_distill.core.networks.group import check_groupable
from ray_distill.core.networks.network import ImageShape, Network

EAGER_FLOPS_PER_SECOND = {"cpu": 5e10, "cuda": 1e13}
"""A rough rate of one device, to decide whether compiling pays."""
SECONDS_PER_CALL = 5e-3
"""The overhead of a call of an eager step function."""
MIN_SAVING_TO_COMPILE_S = 600.0


def should_compile(
    config: Config, network: Network, image_shape: ImageShape, num_classes: int, device: torch.device
) -> bool:
    """Whether all eager step functions of the run would take MIN_SAVING_TO_COMPILE_S or more."""
    rule, _ = truncation_rule(config)
    unroll = rule.unroll_length.at(0)
    window = rule.window_length.at(0) if hasattr(rule, "window_length") else unroll
    batch = inner_batch_size(config, num_classes)
    # A gradient is three forward passes; a window step has another gradient and six more.
    per_inner_step = 3 * batch * network.forward_flops(image_shape)
    rate = EAGER_FLOPS_PER_SECOND.get(device.type, EAGER_FLOPS_PER_SECOND["cpu"])
    seconds = (unroll + 3 * window) * (per_inner_step / rate + SECONDS_PER_CALL)
    return seconds * config.outer.steps * config.replicas >= MIN_SAVING_TO_COMPILE_S


SMALL_ACTIVATIONS = 100_000
"""Elements of the largest layer output for one network's batch."""
SMALL_THETA = 100_000
"""Parameters. Below both limits, groups of four were 1.3 to 2.5 times as fast as single replicas on a CPU; above
either, most gained little, and some took twice as long (LOG, 2026-11-25)."""
MAX_GROUP_SIZE = 8
MIN_GROUP_SIZE = 3
"""Of evaluation networks: pairs were 1.3 times as fast as single ones, threes 1.4 to 1.75 (LOG, 2026-11-25)."""
MIN_GROUPS = 2
"""So that two workers can share the groups."""


def _worth_grouping(network: Network, image_shape: ImageShape, batch: int, device: torch.device) -> bool:
    """Whether several networks, each with a batch of that many images, are faster as one computation."""
    activations = batch * network.max_activation_size(image_shape)
    return device.type == "cpu" and activations <= SMALL_ACTIVATIONS and network.num_parameters <= SMALL_THETA


def _even_group_size(count: int, min_groups: int) -> int:
    """The size of `min_groups` equal groups; of more groups if they would exceed MAX_GROUP_SIZE."""
    return -(-count // max(min_groups, -(-count // MAX_GROUP_SIZE)))


def network_group_size(
    config: Config,
    network: Network,
    image_shape: ImageShape,
    num_classes: int,
    device: torch.device,
    count: int,
    *,
    batch: int | None = None,
    min_groups: int = MIN_GROUPS,
) -> int:
    """How many of `count` evaluation networks are trained as one computation.

    Args:
        batch: images of each network in a step; None: those of the inner training.
        min_groups: the groups wanted at least, to be shared by processes; fewer where they would be smaller than
            MIN_GROUP_SIZE.
    """
    images = inner_batch_size(config, num_classes) if batch is None else batch
    if count < MIN_GROUP_SIZE or not _worth_grouping(network, image_shape, images, device):
        return 1
    try:
        check_groupable(network.module)
    except ValueError:
        return 1
    return _even_group_size(count, min(min_groups, count // MIN_GROUP_SIZE))


def replica_group_size(
    config: Config, network: Network, image_shape: ImageShape, num_classes: int, device: torch.device
) -> int:
    """How many replicas form one computation: the size of the groups that are distributed over the workers.

    Independent of the number of workers: in float32 a group rounds differently from its replicas alone, and an
    unroll amplifies that (LOG, 2026-11-25), so D would depend on the cluster.

    Raises: ConfigError if more than one is requested and the network cannot be grouped.
    """
    chosen, replicas = config.compute.replicas_at_once, config.replicas
    try:
        check_groupable(network.module)
    except ValueError as e:
        if chosen != "auto" and chosen > 1:
            raise ConfigError(f"compute.replicas_at_once: {e} (got {chosen}); set it to 1") from None
        return 1
    if chosen != "auto":
        return chosen
    worth = _worth_grouping(network, image_shape, inner_batch_size(config, num_classes), device)
    return _even_group_size(replicas, MIN_GROUPS) if worth and config.engine == "adjoint" else 1
