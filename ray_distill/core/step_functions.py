"""The derivatives of one inner step: the gradient and the second-order product of a network's cross entropy.

The loss sums over images, with labels divided by the batch size, so that a batch can be split into microbatches. Both
derivatives are functions of tensors (`derivatives`), compiled or not. With batch norm they are compiled for each batch
size.

Axes: R independent replicas, computed together.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ray_distill.core.derivatives import (
    GradientOfSum,
    Losses,
    ProductOfSum,
    forward_product_as_function,
    gradient_as_function,
    gradient_by_tape,
    product_by_tape,
    reverse_product_as_function,
)
from ray_distill.core.distilled import DistilledData
from ray_distill.core.microbatches import Batches, even_split, split_batches
from ray_distill.core.networks.group import NetworkGroup
from ray_distill.core.networks.network import Network

PRODUCTS = ("reverse", "forward")


def _clone_outputs(graphed: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
    """Copies the outputs of a CUDA graph, which its next replay overwrites."""

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        torch.compiler.cudagraph_mark_step_begin()
        return tuple(x.clone() for x in graphed(*tensors))

    return call


class StepFunctions:
    """The gradient and the second-order product of a network's cross entropy on a batch.

    `gradients` and `products` compute R replicas together, `gradient` and `product` a single one. The options of the
    constructor change how they are computed, and the values by rounding only.
    """

    def __init__(
        self,
        network: Network,
        *,
        product_form: str = "reverse",
        images_per_pass: int | None = None,
        compiled: bool = False,
        cuda_graphs: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        """Choose how the derivatives are computed.

        Args:
            network: the network to differentiate.
            product_form: "reverse" or "forward".
            images_per_pass: the microbatch size: at most that many images of each replica (compiled: exactly that
                many, padded); None: the whole batch.
            compiled: use torch.compile; the first call for each number of replicas is slow.
            cuda_graphs: capture compiled functions as CUDA graphs; no effect on other devices.
            autocast: dtype of convolutions and matrix products, if it is not that of the data.

        Raises: ValueError for an unknown product form; for "forward" with autocast, whose casts forward-mode
            differentiation in torch 2.14 does not support; for microbatches with batch norm.
        """
        if product_form not in PRODUCTS:
            raise ValueError(f"unknown product {product_form!r}; known: {', '.join(PRODUCTS)}")
        if product_form == "forward" and autocast is not None:
            raise ValueError("the product 'forward' does not support autocast; use 'reverse'")
        if images_per_pass is not None and network.has_batch_norm:
            raise ValueError("a network with batch norm needs whole batches: images_per_pass must be None")
        self.network = network
        self.product_form = product_form
        self.images_per_pass = images_per_pass
        self.compiled = compiled
        self.cuda_graphs = cuda_graphs
        self.autocast = autocast
        self._by_group_size: dict[int, tuple[GradientOfSum, ProductOfSum]] = {}

    def _functions(self, replicas: int) -> tuple[GradientOfSum, ProductOfSum]:
        """The gradient and the product for that many replicas."""
        if replicas not in self._by_group_size:
            self._by_group_size[replicas] = self._build(self._losses(replicas))
        return self._by_group_size[replicas]

    def _build(self, losses: Losses) -> tuple[GradientOfSum, ProductOfSum]:
        gradient, product = gradient_by_tape(losses), product_by_tape(losses)
        if self.product_form == "forward":
            product = forward_product_as_function(losses)
        elif self.compiled:
            product = reverse_product_as_function(losses)
        if not self.compiled:
            return gradient, product
        mode = "reduce-overhead" if self.cuda_graphs else None
        gradient = torch.compile(gradient_as_function(losses), fullgraph=True, dynamic=False, mode=mode)
        product = torch.compile(product, fullgraph=True, dynamic=False, mode=mode)
        return (
            (_clone_outputs(gradient), _clone_outputs(product)) if self.cuda_graphs else (gradient, product)
        )

    def try_compile(self, theta_P: Tensor, batch: DistilledData, group_sizes: Sequence[int] = (1,)) -> str:
        """Compile both functions by calling them; if that fails, fall back to eager ones.

        Args:
            theta_P, batch: one replica's, with the shapes to compile for.
            group_sizes: the numbers of replicas to compile for.

        Returns: the reason of the failure, or an empty string.
        """
        try:
            for size in group_sizes:
                theta_RP, batches = theta_P.repeat(size, 1), Batches.stack([batch] * size)
                self.gradients(theta_RP, batches)
                self.products(theta_RP, batches, theta_RP)
        except Exception as e:  # compilers raise anything; our own errors will recur without it
            eager = StepFunctions(self.network, images_per_pass=self.images_per_pass, autocast=self.autocast)
            self.__dict__.update(eager.__dict__)
            return f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else 'no reason given'}"
        return ""

    def _losses(self, replicas: int) -> Losses:
        """For each replica, -sum_bk labels_bk log softmax(logits)_bk."""
        group, autocast = NetworkGroup(self.network, replicas), self.autocast

        def losses(theta_RP: Tensor, images: Tensor, labels: Tensor) -> Tensor:
            if autocast is None:
                logits_RBK = group(theta_RP, images)
            else:
                with torch.autocast(images.device.type, autocast):
                    logits_RBK = group(theta_RP, images)
                logits_RBK = logits_RBK.to(labels.dtype)
            return -(labels * F.log_softmax(logits_RBK, dim=2)).sum(dim=(1, 2))

        return losses

    def _split(self, batches: Batches) -> Iterator[tuple[Batches, int]]:
        """The microbatches, with labels divided by the batch size, and their numbers of real rows."""
        count = batches.images_RBCHW.shape[1]
        scaled = Batches(batches.images_RBCHW.detach(), batches.labels_RBK.detach() / count)
        most = self.images_per_pass or count
        size = most if self.compiled else even_split(count, most)
        return split_batches(scaled, size, fill=self.compiled)

    def gradients(self, theta_RP: Tensor, batches: Batches) -> tuple[Tensor, Tensor]:
        """grad_theta of the mean cross entropy at constant batch, and the loss: [R, P] and [R], detached."""
        theta_RP = theta_RP.detach()
        gradient, _ = self._functions(len(theta_RP))
        total: tuple[Tensor, Tensor] | None = None
        for part, _ in self._split(batches):
            grad_RP, loss_R = gradient(theta_RP, *part)
            total = (grad_RP, loss_R) if total is None else (total[0] + grad_RP, total[1] + loss_R)
        assert total is not None, "an empty batch"
        return total

    def products(self, theta_RP: Tensor, batches: Batches, lam_RP: Tensor) -> tuple[Tensor, Batches]:
        """grad_{theta, batch} of <lam, grad_theta l(theta, batch)>, lam constant, l the mean cross entropy.

        Returns: the Hessian-vector products [R, P], and the mixed products with the batches' shapes.
        """
        theta_RP = theta_RP.detach()
        _, product = self._functions(len(theta_RP))
        hessian_RP, images, labels = torch.zeros_like(theta_RP), [], []
        for part, rows in self._split(batches):
            hessian, d_images, d_labels = product(theta_RP, *part, lam_RP)
            hessian_RP += hessian
            images.append(d_images[:, :rows])
            labels.append(d_labels[:, :rows])
        count = batches.images_RBCHW.shape[1]
        return hessian_RP, Batches(torch.cat(images, dim=1), torch.cat(labels, dim=1) / count)

    def gradient(self, theta_P: Tensor, batch: DistilledData) -> tuple[Tensor, Tensor]:
        """`gradients` for one replica: [P] and 0-d."""
        grad_RP, loss_R = self.gradients(theta_P[None], Batches.stack([batch]))
        return grad_RP[0], loss_R[0]

    def product(self, theta_P: Tensor, batch: DistilledData, lam_P: Tensor) -> tuple[Tensor, DistilledData]:
        """`products` for one replica: [P], and the shapes of the batch."""
        hessian_RP, mixed = self.products(theta_P[None], Batches.stack([batch]), lam_P[None])
        return hessian_RP[0], mixed.unstack()[0]
