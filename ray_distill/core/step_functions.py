"""The arithmetic of one inner step: the gradient and the second-order product of a network's cross entropy.

What is differentiated takes labels that are already divided by the batch size, and sums; so a batch can be cut into
passes (`passes`), and each of the two is one function of tensors (`derivatives`), compiled or not. A network that
joins the images of a batch is compiled for each size of batch.

Axes: R replicas, which are computed at once and do not meet.
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
    """The next replay of a CUDA graph overwrites what this one returned: copy it out."""

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        torch.compiler.cudagraph_mark_step_begin()
        return tuple(x.clone() for x in graphed(*tensors))

    return call


class StepFunctions:
    """The gradient and the second-order product of a network's cross entropy, batch by batch.

    `gradients` and `products` are those of R replicas as one computation; `gradient` and `product` are the
    same for one. How they are computed is settled here; their values are the same up to rounding.
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
        """Settle how a pass is computed.

        Args:
            network: the network whose loss it is.
            product_form: "reverse" or "forward".
            images_per_pass: the most images of each replica in one pass (compiled: exactly that many); None:
                the whole batch.
            compiled: through torch.compile; the first call of each function takes its time, for each number
                of replicas at once.
            cuda_graphs: compiled functions are captured as CUDA graphs too; without effect on other devices.
            autocast: computing type of convolutions and matrix products, where it is not that of the data.

        Raises: ValueError for an unknown form of the product, and for "forward" under autocast, whose casts
            forward-mode differentiation in torch 2.14 does not see; for passes of a network that joins images.
        """
        if product_form not in PRODUCTS:
            raise ValueError(f"unknown product {product_form!r}; known: {', '.join(PRODUCTS)}")
        if product_form == "forward" and autocast is not None:
            raise ValueError("the product 'forward' does not go with autocast; use 'reverse'")
        if images_per_pass is not None and network.has_batch_norm:
            raise ValueError("batch norm joins the images of a batch: it cannot be computed in passes")
        self.network = network
        self.product_form = product_form
        self.images_per_pass = images_per_pass
        self.compiled = compiled
        self.cuda_graphs = cuda_graphs
        self.autocast = autocast
        self._by_group_size: dict[int, tuple[GradientOfSum, ProductOfSum]] = {}

    def _functions(self, replicas: int) -> tuple[GradientOfSum, ProductOfSum]:
        """The gradient and the product of a pass of so many replicas."""
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
        """Call both functions once, so that they are compiled; if that fails, go on without a compiler.

        Args:
            theta_P, batch: of the shapes to come, for one replica.
            group_sizes: the sizes of groups to come.

        Returns: why it failed, or an empty string.
        """
        try:
            for size in group_sizes:
                theta_RP, batches = theta_P.repeat(size, 1), Batches.stack([batch] * size)
                self.gradients(theta_RP, batches)
                self.products(theta_RP, batches, theta_RP)
        except Exception as e:  # whatever a compiler may raise; a fault of ours comes again without it
            reverse = StepFunctions(
                self.network, images_per_pass=self.images_per_pass, autocast=self.autocast
            )
            self.__dict__.update(reverse.__dict__)
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
        """The batches' passes, labels divided by their size."""
        count = batches.images_RBCHW.shape[1]
        scaled = Batches(batches.images_RBCHW.detach(), batches.labels_RBK.detach() / count)
        most = self.images_per_pass or count
        size = most if self.compiled else even_split(count, most)
        return split_batches(scaled, size, fill=self.compiled)

    def gradients(self, theta_RP: Tensor, batches: Batches) -> tuple[Tensor, Tensor]:
        """grad_theta of the mean cross entropy at constant batch, and the loss: [R, P] and [R], off the tape."""
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
        """`gradients` of one replica: [P] and 0-d."""
        grad_RP, loss_R = self.gradients(theta_P[None], Batches.stack([batch]))
        return grad_RP[0], loss_R[0]

    def product(self, theta_P: Tensor, batch: DistilledData, lam_P: Tensor) -> tuple[Tensor, DistilledData]:
        """`products` of one replica: [P], and the shapes of the batch."""
        hessian_RP, mixed = self.products(theta_P[None], Batches.stack([batch]), lam_P[None])
        return hessian_RP[0], mixed.unstack()[0]
