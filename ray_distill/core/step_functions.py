"""The arithmetic of one inner step, as pure functions of tensors: the gradient and the second-order product.

Both work on passes: the batch is cut into equal parts whose contributions are added up. The inner loss is
a sum over images, so this is exact; it keeps a pass's maps in the cache of a CPU, where a batch of 100 takes
half the time, and bounds the memory of large real batches. The functions themselves take labels that are
already divided by the batch size, and sum; so a part that is filled up with rows of zero labels gives the right
sum too, and one shape is enough for everything that is compiled.

A network with batch norm joins the images of a batch: its loss is no such sum. It takes every batch whole, and
is compiled for each size of batch.

The second-order product comes in two forms with the same value: "reverse" differentiates the scalar
<lam, grad_theta l> once more; "forward" takes the tangent of grad_{(theta, D)} l along lam in theta.

Axes: R replicas, which are computed at once and do not meet: the derivative of the sum of their losses is,
replica by replica, that of its own.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ray_distill.core.distilled import DistilledData
from ray_distill.core.networks import ImageShape, Network
from ray_distill.core.side_by_side import NetworkGroup

PRODUCTS = ("reverse", "forward")

Losses = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(theta_RP, images_RBCHW, scaled labels_RBK) -> loss_R; no replica's loss depends on another's arguments."""
GradientOfSum = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(theta_RP, images, scaled labels) -> (grad_RP, loss_R)."""
ProductOfSum = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(theta_RP, images, scaled labels, lam_RP) -> (Hessian product [R, P], d images, d scaled labels)."""


class Batches(NamedTuple):
    """A batch for each of R replicas, all of one size."""

    images_RBCHW: Tensor
    labels_RBK: Tensor

    @classmethod
    def stack(cls, batches: Sequence[DistilledData]) -> "Batches":
        """One batch for each replica, in order."""
        return cls(*(stacked(parts) for parts in zip(*batches, strict=True)))

    def each(self) -> list[DistilledData]:
        """The batches, replica by replica."""
        return [DistilledData(*batch) for batch in zip(*self, strict=True)]


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one shape along a new first axis; without a copy if it is one."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))


def cross_entropy(network: Network, theta_P: Tensor, batch: DistilledData) -> Tensor:
    """Mean over the batch of -sum_k labels_BK log softmax(logits)_BK; labels are target probabilities."""
    return F.cross_entropy(network(theta_P, batch.images_NCHW), batch.labels_NK)


def gradient_by_tape(loss: Losses) -> GradientOfSum:
    """The gradient by autograd's tape: the quickest way without a compiler."""

    def gradient(theta_RP: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            theta_RP = theta_RP.detach().requires_grad_()
            loss_R = loss(theta_RP, images, labels)
            (grad_RP,) = torch.autograd.grad(loss_R.sum(), theta_RP)
        return grad_RP, loss_R.detach()

    return gradient


def product_by_tape(loss: Losses) -> ProductOfSum:
    """Reverse over reverse by autograd's tape."""

    def product(
        theta_RP: Tensor, images: Tensor, labels: Tensor, lam_RP: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            theta_RP, images, labels = (x.detach().requires_grad_() for x in (theta_RP, images, labels))
            value = loss(theta_RP, images, labels).sum()
            (grad_RP,) = torch.autograd.grad(value, theta_RP, create_graph=True)
            hessian_RP, d_images, d_labels = torch.autograd.grad(grad_RP, (theta_RP, images, labels), lam_RP)
        return hessian_RP, d_images, d_labels

    return product


def gradient_as_function(loss: Losses) -> GradientOfSum:
    """The gradient as a function that torch.compile takes whole."""

    def gradient(theta_RP: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        def total(theta_RP: Tensor) -> tuple[Tensor, Tensor]:
            loss_R = loss(theta_RP, images, labels)
            return loss_R.sum(), loss_R

        result: tuple[Tensor, Tensor] = torch.func.grad(total, has_aux=True)(theta_RP)
        return result

    return gradient


def reverse_product_as_function(loss: Losses) -> ProductOfSum:
    """Reverse over reverse, as a function that torch.compile takes whole."""

    def total(theta_RP: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return loss(theta_RP, images, labels).sum()

    def product(
        theta_RP: Tensor, images: Tensor, labels: Tensor, lam_RP: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        def slope(theta_RP: Tensor, images: Tensor, labels: Tensor) -> Tensor:
            grad_RP: Tensor = torch.func.grad(total)(theta_RP, images, labels)
            return grad_RP.flatten() @ lam_RP.flatten()

        result: tuple[Tensor, Tensor, Tensor] = torch.func.grad(slope, argnums=(0, 1, 2))(
            theta_RP, images, labels
        )
        return result

    return product


def forward_product_as_function(loss: Losses) -> ProductOfSum:
    """Forward over reverse: the derivative of grad_{(theta, D)} l at theta along lam."""
    # torch compiles its own forward-mode rules with its own deprecated torch.jit.script at this import.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module("torch._decomp.decompositions_for_jvp")

    def total(theta_RP: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return loss(theta_RP, images, labels).sum()

    def product(
        theta_RP: Tensor, images: Tensor, labels: Tensor, lam_RP: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        def gradients(theta_RP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            grads: tuple[Tensor, Tensor, Tensor] = torch.func.grad(total, argnums=(0, 1, 2))(
                theta_RP, images, labels
            )
            return grads

        tangents: tuple[Tensor, Tensor, Tensor] = torch.func.jvp(gradients, (theta_RP,), (lam_RP,))[1]
        return tangents

    return product


_MAP_BYTES = {"cpu": 6 * 2**20, "cuda": 512 * 2**20}
"""How large the largest map of a pass should be: what a CPU's caches hold; on a GPU, enough to fill it."""


def images_per_pass(
    network: Network,
    image_shape: ImageShape,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    replicas: int = 1,
) -> int | None:
    """A good size of the passes over batches of `batch` images: equal parts, of maps that the cache holds.

    None, which is the whole batch, for a network that joins images.

    Args:
        replicas: how many are computed at once, each on so many images.
    """
    if network.joins_images:
        return None
    return cached_size(network, image_shape, batch, dtype, device, replicas)


def cached_size(
    network: Network,
    image_shape: ImageShape,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    replicas: int = 1,
) -> int:
    """The size of equal parts of a batch whose largest maps the cache holds."""
    bytes_per_image = replicas * network.largest_map(image_shape) * dtype.itemsize
    return equal_part(batch, max(1, _MAP_BYTES.get(device.type, batch * bytes_per_image) // bytes_per_image))


def equal_part(batch: int, most: int) -> int:
    """The size of equal parts of a batch, at most `most`: a divisor of it if there is a near one."""
    divisor = max(d for d in range(1, min(batch, most) + 1) if batch % d == 0)
    return divisor if 2 * divisor >= min(batch, most) else -(-batch // -(-batch // most))


def _parts(batches: Batches, size: int, fill: bool) -> Iterator[tuple[Batches, int]]:
    """The batches in parts of `size`, the last one filled up with zeros if asked; and how many rows are real."""
    for part in zip(*(x.split(size, dim=1) for x in batches), strict=True):
        rows = part[0].shape[1]
        if not fill:
            yield Batches(*part), rows
            continue
        filled = (torch.cat([x, x.new_zeros(len(x), size - rows, *x.shape[2:])], dim=1) for x in part)
        # What is compiled is compiled for strides too.
        yield Batches(*(x.contiguous() for x in (part if rows == size else filled))), rows


def _keep_results(graphed: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
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
        if images_per_pass is not None and network.joins_images:
            raise ValueError("batch norm joins the images of a batch: it cannot be computed in passes")
        self.network = network
        self.product_form = product_form
        self.images_per_pass = images_per_pass
        self.compiled = compiled
        self.cuda_graphs = cuda_graphs
        self.autocast = autocast
        self._of_group: dict[int, tuple[GradientOfSum, ProductOfSum]] = {}

    def _functions(self, replicas: int) -> tuple[GradientOfSum, ProductOfSum]:
        """The gradient and the product of a pass of so many replicas."""
        if replicas not in self._of_group:
            self._of_group[replicas] = self._build(self._losses(replicas))
        return self._of_group[replicas]

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
        return (_keep_results(gradient), _keep_results(product)) if self.cuda_graphs else (gradient, product)

    def compile_now(
        self, theta_P: Tensor, batch: DistilledData, replicas_at_once: Sequence[int] = (1,)
    ) -> str:
        """Call both functions once, so that they are compiled; if that fails, go on without a compiler.

        Args:
            theta_P, batch: of the shapes to come, for one replica.
            replicas_at_once: the sizes of groups to come.

        Returns: why it failed, or an empty string.
        """
        try:
            for size in replicas_at_once:
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
        size = most if self.compiled else equal_part(count, most)
        return _parts(scaled, size, fill=self.compiled)

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
        return hessian_RP[0], mixed.each()[0]
