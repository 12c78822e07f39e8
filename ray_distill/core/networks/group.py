"""Several networks of one architecture as one: their channels side by side.

R networks, each with its own parameters and its own images, are one network with R times the channels:
convolutions and group norms take R times the groups, linear layers and layer norms become R of them, batch
norms have statistics for each channel anyway, and what works on each channel by itself stays as it is. Nothing
joins channels of different networks, so neither does a NaN.

Any chain of such layers will do. A module with a forward of its own must say that it keeps the channels apart
outside of its layers (`keeps_channels_apart`), as a sum of two branches does: one that concatenates channels
would mix the networks without an error.

Axes, beside those of the package: R replicas; F the features of one network.
"""

import copy
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_distill.core.networks.network import Network

RunningStatistics = dict[str, Tensor]
"""Mean and unbiased variance of each batch norm, [R * C], and its number of batches, one for all networks, which take
their steps together; empty for networks without."""

CHANNELWISE = (
    *(nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Softplus, nn.Identity),
    *(nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d, nn.Flatten),
)
"""Layers that treat each channel alone; flattening keeps the order of the channels."""


class GroupedLinear(nn.Module):
    """R linear layers: [N, R * F] -> [N, R * outputs], with the rows of their parameters one after another."""

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
    """R layer norms over maps: [N, R * C, H, W] -> the same, with the rows of their parameters one after another."""

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
    """R copies of one layer, side by side. Raises: ValueError for a layer that is not known to allow it."""
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
                f"replicas at once: no way is known to set {type(layer).__name__} layers side by side; "
                "compute the replicas one by one"
            )


def check_groupable(module: nn.Module) -> None:
    """Raises: ValueError if the module cannot be set side by side with others of its kind."""
    with torch.device("meta"):
        for layer in module.modules():
            if not any(True for _ in layer.children()):
                _replicated(layer, 2)
            elif type(layer) is not nn.Sequential and not getattr(layer, "keeps_channels_apart", False):
                raise ValueError(
                    f"replicas at once: {type(layer).__name__} does not say that it keeps channels apart; "
                    "compute the replicas one by one"
                )


def group_module(module: nn.Module, replicas: int) -> nn.Module:
    """R networks like `module` as one: images [N, R * C, H, W] -> logits [N, R * K], on the meta device.

    Its parameters have the names of the module's, and R times the rows, those of one network after another.
    Raises: ValueError if the module joins channels, or might.
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
    """R networks as one function: `group(theta_RP, images_RNCHW) -> logits_RNK`, and as they are judged.

    On a CPU this pays for small networks, whose time goes into starting operations: eager step functions are
    1.4 to 3.7 times as fast as one by one, a metagradient up to 1.8 times. A network that keeps a core busy
    alone gains nothing, or loses a little. Not measured on a GPU (LOG, 2026-11-24).
    """

    def __init__(self, network: Network, replicas: int) -> None:
        """Raises: ValueError if the network cannot be set side by side with others of its kind."""
        self.network, self.replicas = network, replicas
        self.module = self._grouped(network.module)
        self.sizes = network.sizes
        self.shapes = {name: (replicas * shape[0], *shape[1:]) for name, shape in network.shapes.items()}

    def _grouped(self, module: nn.Module) -> nn.Module:
        # One network is itself: the same operations, hence the same bits.
        return module if self.replicas == 1 else group_module(module, self.replicas)

    @cached_property
    def _tracking_module(self) -> nn.Module:
        return self._grouped(self.network.tracking_module)

    @cached_property
    def _eval_module(self) -> nn.Module:
        return self._grouped(self.network.eval_module)

    def _parameters(self, theta_RP: Tensor) -> dict[str, Tensor]:
        """Of the wide module, by name."""
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
        """Before the first batch: means 0 and variances 1, of the type and on the device of `like`."""
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
        """The running statistics after one more training batch of each network, by each norm's own momentum."""
        if not statistics:
            return statistics
        after = {name: value.clone() for name, value in statistics.items()}
        # The module writes what it has seen into the buffers that it is given.
        self._logits(self._tracking_module, {**self._parameters(theta_RP), **after}, images_RNCHW)
        return after

    def eval_logits(self, theta_RP: Tensor, statistics: RunningStatistics, images_NCHW: Tensor) -> Tensor:
        """Logits [R, N, K] of the same images in test mode: by the running statistics, each image by itself."""
        images_RNCHW = images_NCHW.expand(self.replicas, *images_NCHW.shape)
        return self._logits(self._eval_module, {**self._parameters(theta_RP), **statistics}, images_RNCHW)
