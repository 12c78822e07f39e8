"""The gradient and the second-order product of a loss, as functions of tensors.

Each comes in two variants with the same values: through autograd's tape, fastest without a compiler, or through
torch.func, which torch.compile can compile as one graph. The second-order product has two forms, again with the same
value: "reverse" differentiates the scalar <lam, grad_theta l> once more; "forward" takes the tangent of
grad_{(theta, D)} l along lam in theta.

Axes: R independent replicas, computed together: the derivative of the sum of their losses is, for each replica, that
of its own loss.
"""

import importlib
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Losses = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(theta_RP, images_RBCHW, scaled labels_RBK) -> loss_R. A replica's loss depends on its own arguments only."""
GradientOfSum = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(theta_RP, images, scaled labels) -> (grad_RP, loss_R)."""
ProductOfSum = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(theta_RP, images, scaled labels, lam_RP) -> (Hessian product [R, P], d images, d scaled labels)."""


def gradient_by_tape(loss: Losses) -> GradientOfSum:
    """The gradient through autograd's tape."""

    def gradient(theta_RP: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            theta_RP = theta_RP.detach().requires_grad_()
            loss_R = loss(theta_RP, images, labels)
            (grad_RP,) = torch.autograd.grad(loss_R.sum(), theta_RP)
        return grad_RP, loss_R.detach()

    return gradient


def product_by_tape(loss: Losses) -> ProductOfSum:
    """Reverse over reverse through autograd's tape."""

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
    """The gradient through torch.func."""

    def gradient(theta_RP: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        def total(theta_RP: Tensor) -> tuple[Tensor, Tensor]:
            loss_R = loss(theta_RP, images, labels)
            return loss_R.sum(), loss_R

        result: tuple[Tensor, Tensor] = torch.func.grad(total, has_aux=True)(theta_RP)
        return result

    return gradient


def reverse_product_as_function(loss: Losses) -> ProductOfSum:
    """Reverse over reverse through torch.func."""

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
    # This import uses torch.jit.script, which torch itself deprecates.
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
