"""Several networks of one architecture computed as one, with their channels concatenated.

R networks, each with its own parameters and images, form one network with R times the channels: convolutions and
group norms get R times the groups, linear layers and layer norms become R of them, batch norms have statistics per
channel anyway, and channelwise layers are unchanged. Channels of different networks never mix, so neither do NaNs.

Any sequence of such layers can be grouped. A module with its own `forward` must declare that it does not mix channels
outside its layers (`keeps_channels_apart = True`), as with the sum of two branches: concatenating channels would mix
the networks silently.

Axes, besides those of the package: R replicas; F features of one network.
"""

import copy
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_distill.core.networks.network import Network

RunningStatistics = dict[str, Tensor]
"""Mean and unbiased variance of each batch norm, [R * C], and its number of batches, common to all networks; empty for
networks without batch norm."""

CHANNELWISE = (
    *(nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Softplus, nn.Identity),
    *(nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d, nn.Flatten),
)
"""Layers that process each channel separately; flattening keeps the order of the channels."""


class GroupedLinear(nn.Module):
    """R linear layers: [N, R * F] -> [N, R * outputs], with their parameters concatenated along the rows."""

    bias: nn.Parameter | None

    def __init__(self, layer: nn.Linear, replicas: int) -> None:
        super().__init__()
        self.replicas = replicas
        self.weight = nn.Parameter(layer.weight.new_empty(replicas * layer.out_features, layer.in_features))
        biased = len(list(layer.parameters())) == 2
        self.bias = nn.Parameter(layer.bias.new_empty(len(self.weight))) if biased else None

    def forward(self, features: Tensor) -> Tensor:
        """One matrix product for each replica."""
        features_RNF = features.unflatten(1, (self.replicas, -1)).transpose(0, 1)
        weight_RFO = self.weight.unflatten(0, (self.replicas, -1)).transpose(1, 2)
        if self.bias is None:
            outputs_RNO = torch.bmm(features_RNF, weight_RFO)
        else:
            bias_R1O = self.bias.view(self.replicas, 1, -1)
            outputs_RNO = torch.baddbmm(bias_R1O, features_RNF, weight_RFO)
        outputs: Tensor = outputs_RNO.transpose(0, 1).flatten(1)
        return outputs


class GroupedLayerNorm(nn.Module):
    """R layer norms over maps: [N, R * C, H, W] -> the same, with their parameters concatenated along the rows."""

    def __init__(self, layer: nn.LayerNorm, replicas: int) -> None:
        super().__init__()
        self.replicas, self.shape, self.eps = replicas, layer.normalized_shape, layer.eps
        channels, *size = layer.normalized_shape
        self.weight = nn.Parameter(torch.empty(replicas * channels, *size))
        self.bias = nn.Parameter(torch.empty(replicas * channels, *size))

    def forward(self, maps: Tensor) -> Tensor:
        """One mean and variance for each image of each replica."""
        maps_NRCHW = maps.unflatten(1, (self.replicas, -1))
        normed = F.layer_norm(maps_NRCHW, self.shape, eps=self.eps).flatten(1, 2)
        return normed * self.weight + self.bias


def _replicated(layer: nn.Module, replicas: int) -> nn.Module:
    """R copies of a layer as one layer. Raises: ValueError for a type of layer that cannot be grouped."""
    match layer:
        case nn.Conv2d():
            return nn.Conv2d(
                replicas * layer.in_channels,
                replicas * layer.out_channels,
                layer.kernel_size,  # type: ignore[arg-type]
                stride=layer.stride,  # type: ignore[arg-type]
                padding=layer.padding,  # type: ignore[arg-type]
                dilation=layer.dilation,  # type: ignore[arg-type]
                groups=replicas * layer.groups,
                bias=layer.bias is not None,
                padding_mode=layer.padding_mode,
            )
        case nn.GroupNorm():
            groups, channels = replicas * layer.num_groups, replicas * layer.num_channels
            return nn.GroupNorm(groups, channels, layer.eps, layer.affine)
        case nn.BatchNorm2d():
            channels, own = replicas * layer.num_features, {"track_running_stats": layer.track_running_stats}
            return nn.BatchNorm2d(channels, layer.eps, layer.momentum, layer.affine, **own)
        case nn.LayerNorm() if len(layer.normalized_shape) == 3 and layer.elementwise_affine:
            return GroupedLayerNorm(layer, replicas)
        case nn.Linear():
            return GroupedLinear(layer, replicas)
        case _ if isinstance(layer, CHANNELWISE):
            return layer
        case _:
            raise ValueError(
                f"layers of type {type(layer).__name__} cannot be grouped; compute the replicas one by one"
            )


def check_groupable(module: nn.Module) -> None:
    """Raises: ValueError if networks like this module cannot be computed as a group."""
    with torch.device("meta"):
        for layer in module.modules():
            if not any(True for _ in layer.children()):
                _replicated(layer, 2)
            elif type(layer) is not nn.Sequential and not getattr(layer, "keeps_channels_apart", False):
                raise ValueError(
                    f"{type(layer).__name__} cannot be grouped, since it does not declare keeps_channels_apart; "
                    "compute the replicas one by one"
                )


def group_module(module: nn.Module, replicas: int) -> nn.Module:
    """R networks like `module` as one: images [N, R * C, H, W] -> logits [N, R * K], on the meta device.

    Its parameters have the module's names and R times the rows, network by network.
    Raises: ValueError if the module mixes channels, or might.
    """
    check_groupable(module)
    module = copy.deepcopy(module)
    with torch.device("meta"):
        for name, layer in list(module.named_modules()):
            if not any(True for _ in layer.children()):
                owner, _, attribute = name.rpartition(".")
                setattr(module.get_submodule(owner), attribute, _replicated(layer, replicas))
    return module.train(module.training)


class NetworkGroup:
    """R networks as one function: `group(theta_RP, images_RNCHW) -> logits_RNK`, and in eval mode.

    On a CPU this pays for small networks, whose time is dominated by operator overhead: eager step functions are 1.4
    to 3.7 times as fast as for single networks, a metagradient up to 1.8 times. A network that keeps a core busy gains
    nothing, or loses a little. Not measured on a GPU (LOG, 2026-11-24).
    """

    def __init__(self, network: Network, replicas: int) -> None:
        """Raises: ValueError if the network cannot be grouped and there are several replicas."""
        self.network, self.replicas = network, replicas
        self.module = self._grouped(network.module)
        self.sizes = network.sizes
        self.shapes = {name: (replicas * shape[0], *shape[1:]) for name, shape in network.shapes.items()}

    def _grouped(self, module: nn.Module) -> nn.Module:
        # A single network stays as it is: the same operations, hence the same bits.
        return module if self.replicas == 1 else group_module(module, self.replicas)

    @cached_property
    def _tracking_module(self) -> nn.Module:
        return self._grouped(self.network.tracking_module)

    @cached_property
    def _eval_module(self) -> nn.Module:
        return self._grouped(self.network.eval_module)

    def _parameters(self, theta_RP: Tensor) -> dict[str, Tensor]:
        """The parameters of the grouped module by name."""
        parts = theta_RP.split(self.sizes, dim=1)
        return {
            name: part.reshape(shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }

    def _logits(self, module: nn.Module, values: dict[str, Tensor], images_RNCHW: Tensor) -> Tensor:
        images = images_RNCHW.transpose(0, 1).flatten(1, 2)
        logits: Tensor = torch.func.functional_call(module, values, (images,))
        logits_RNK: Tensor = logits.unflatten(1, (self.replicas, -1)).transpose(0, 1)
        return logits_RNK

    def __call__(self, theta_RP: Tensor, images_RNCHW: Tensor) -> Tensor:
        """Logits [R, N, K]; differentiable any number of times in both arguments."""
        return self._logits(self.module, self._parameters(theta_RP), images_RNCHW)

    def initial_statistics(self, like: Tensor) -> RunningStatistics:
        """Before the first batch: means 0 and variances 1, with the dtype and device of `like`."""
        return {
            name: torch.full(
                buffer.shape,
                1 if name.endswith("running_var") else 0,
                dtype=like.dtype if buffer.is_floating_point() else buffer.dtype,
                device=like.device,
            )
            for name, buffer in self._tracking_module.named_buffers()
        }

    @torch.no_grad()
    def updated_statistics(
        self, statistics: RunningStatistics, theta_RP: Tensor, images_RNCHW: Tensor
    ) -> RunningStatistics:
        """The running statistics after one more training batch of each network, with each norm's momentum."""
        if not statistics:
            return statistics
        after = {name: value.clone() for name, value in statistics.items()}
        # The module updates the buffers that it is given in place.
        self._logits(self._tracking_module, {**self._parameters(theta_RP), **after}, images_RNCHW)
        return after

    def eval_logits(self, theta_RP: Tensor, statistics: RunningStatistics, images_NCHW: Tensor) -> Tensor:
        """Logits [R, N, K] of the same images for all networks in eval mode, with the running statistics."""
        images_RNCHW = images_NCHW.expand(self.replicas, *images_NCHW.shape)
        return self._logits(self._eval_module, {**self._parameters(theta_RP), **statistics}, images_RNCHW)
