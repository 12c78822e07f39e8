"""The gradient and the second-order product: definitions, forms, passes, compiled."""

from collections.abc import Callable

import pytest
import torch
import torch._inductor.config
from torch import Tensor
from torch.nn import functional as F

from ray_distill.core.distilled import DistilledData
from ray_distill.core.microbatches import even_split, microbatch_size
from ray_distill.core.networks.network import Network, NetworkSpec, build_network
from ray_distill.core.rng import Stream
from ray_distill.core.step_functions import PRODUCTS, StepFunctions


def cross_entropy(network: Network, theta: Tensor, batch: DistilledData) -> Tensor:
    return F.cross_entropy(network(theta, batch.images_NCHW), batch.labels_NK)


def test_the_loss_is_the_mean_over_images_of_the_weighted_log_probabilities(make_case: Callable) -> None:
    """-(1/B) sum_b sum_k y_bk log p_bk, for any rows; with one-hot rows, torch's loss of indices."""
    case = make_case()
    network, theta, batch = case.problem.network, case.draws.theta_P, case.data
    gradient = case.problem.functions.gradient
    log_p = torch.log(torch.softmax(network(theta, batch.images_NCHW), dim=1))
    expected = -sum(float(batch.labels_NK[b] @ log_p[b]) for b in range(6)) / 6
    assert float(gradient(theta, batch)[1]) == pytest.approx(expected, rel=1e-12)
    classes = torch.arange(3).repeat_interleave(2)
    hard = batch._replace(labels_NK=F.one_hot(classes, 3).double())
    by_index = F.cross_entropy(network(theta, batch.images_NCHW), classes)
    assert float(gradient(theta, hard)[1]) == pytest.approx(float(by_index), rel=1e-12)


def test_inner_gradient_is_the_directional_derivative_of_the_loss(
    make_case: Callable, smooth_module: Callable
) -> None:
    """Central difference with h = 1e-5 on a smooth network: error about h^2 = 1e-10."""
    case = make_case(module=smooth_module())
    network, theta = case.problem.network, case.draws.theta_P
    grad, loss = case.problem.functions.gradient(theta, case.data)
    assert float(loss) == pytest.approx(float(cross_entropy(network, theta, case.data)), rel=1e-14)
    assert not grad.requires_grad
    direction = torch.linspace(-1, 1, len(theta), dtype=torch.float64)
    h = 1e-5
    up, down = (float(cross_entropy(network, theta + sign * h * direction, case.data)) for sign in (1, -1))
    assert float(grad @ direction) == pytest.approx((up - down) / (2 * h), rel=1e-8)


@pytest.mark.parametrize("form", PRODUCTS)
def test_product_is_the_full_hessian_times_a_vector(
    make_case: Callable, smooth_module: Callable, relative_difference: Callable, form: str
) -> None:
    """Against central differences of the inner gradient: H lam = d/de grad l(theta + e lam), h = 1e-5.

    The mixed product is the gradient with respect to the batch of the slope d/de l(theta + e lam, batch).
    """
    case = make_case(module=smooth_module(), product_form=form)
    network, theta, batch = case.problem.network, case.draws.theta_P, case.data
    lam = Stream(seed=1, name="lam").normal(len(theta), dtype=torch.float64)[0]
    hessian, mixed = case.problem.functions.product(theta, batch, lam)
    h = 1e-5
    up, down = (case.problem.functions.gradient(theta + s * h * lam, batch)[0] for s in (1, -1))
    assert relative_difference(hessian, (up - down) / (2 * h)) < 1e-7

    def batch_gradients(at: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in batch]
        return torch.autograd.grad(cross_entropy(network, at, DistilledData(*leaves)), leaves)

    for ours, a, b in zip(
        mixed, batch_gradients(theta + h * lam), batch_gradients(theta - h * lam), strict=True
    ):
        assert relative_difference(ours, (a - b) / (2 * h)) < 1e-7


def lam_for(theta: Tensor) -> Tensor:
    return Stream(seed=1, name="lam").normal(len(theta), dtype=theta.dtype)[0]


@pytest.mark.parametrize("images_per_pass", [1, 2, 4, 5, 9])
@pytest.mark.parametrize("form", PRODUCTS)
def test_passes_add_up_to_the_whole_batch(
    make_case: Callable, relative_difference: Callable, form: str, images_per_pass: int
) -> None:
    """9 images: parts of 1; of 3 (the divisor nearest 4), 5 and 4; the whole."""
    whole = make_case(ipc=3)
    theta, batch = whole.draws.theta_P, whole.data
    parts = StepFunctions(whole.problem.network, product_form=form, images_per_pass=images_per_pass)
    grad, loss = parts.gradient(theta, batch)
    reference, value = whole.problem.functions.gradient(theta, batch)
    assert float(loss) == pytest.approx(float(value), rel=1e-13)
    assert relative_difference(grad, reference) < 1e-13
    hessian, mixed = parts.product(theta, batch, lam_for(theta))
    expected, expected_mixed = whole.problem.functions.product(theta, batch, lam_for(theta))
    for ours, right in zip((hessian, *mixed), (expected, *expected_mixed), strict=True):
        assert relative_difference(ours, right) < 1e-11


@pytest.mark.parametrize(
    ("batch", "most", "size"),
    [(100, 12, 10), (100, 100, 100), (100, 1000, 100), (97, 12, 11), (7, 3, 3), (512, 10, 8), (1, 4, 1)],
)
def test_parts_are_nearly_equal(batch: int, most: int, size: int) -> None:
    """A divisor of the batch of at least half the most; 97 is prime: nine parts of 11 (the last of 9)."""
    assert even_split(batch, most) == size


def test_replicas_share_the_cache() -> None:
    """Maps of 128 x 32 x 32 float32 are 512 KB an image: 12 fill the 6 MB of one replica, 3 those of each of four. The
    divisors of 100 below them are 10 and 2."""
    network = build_network(NetworkSpec(name="convnet3", width=128), (3, 32, 32), 10)
    cpu = torch.device("cpu")
    assert microbatch_size(network, (3, 32, 32), 100, torch.float32, cpu) == 10
    assert microbatch_size(network, (3, 32, 32), 100, torch.float32, cpu, replicas=4) == 2


def test_an_unknown_form_is_refused(make_case: Callable) -> None:
    with pytest.raises(ValueError, match="unknown product 'sideways'; known: reverse, forward"):
        make_case(product_form="sideways").problem  # noqa: B018


@pytest.mark.slow  # the compiler takes 10 s and more for each
@pytest.mark.parametrize("form", PRODUCTS)
def test_compiled_is_eager(make_case: Callable, relative_difference: Callable, form: str) -> None:
    """float32, 1e-5; 7 images in passes of 4, so that one is filled up with rows that must not count."""
    torch._dynamo.reset()
    case = make_case(network="convnet2", num_classes=7, ipc=1, dtype=torch.float32)
    theta, batch = case.draws.theta_P, case.data
    compiled = StepFunctions(case.problem.network, product_form=form, images_per_pass=4, compiled=True)
    eager = case.problem.functions
    grad, loss = compiled.gradient(theta, batch)
    reference, value = eager.gradient(theta, batch)
    assert float(loss) == pytest.approx(float(value), rel=1e-6)
    assert relative_difference(grad, reference) < 1e-5
    lam = lam_for(theta)
    hessian, mixed = compiled.product(theta, batch, lam)
    expected, expected_mixed = eager.product(theta, batch, lam)
    for ours, right in zip((hessian, *mixed), (expected, *expected_mixed), strict=True):
        assert ours.shape == right.shape
        assert relative_difference(ours, right) < 1e-5


def test_autocast_is_near_and_keeps_the_type_of_the_data(
    make_case: Callable, relative_difference: Callable
) -> None:
    """bfloat16 has 8 bits: the gradient is off by some 2^-8, and not by nothing, which would mean no autocast."""
    case = make_case(network="convnet2", dtype=torch.float32)
    theta, batch = case.draws.theta_P, case.data
    halved = StepFunctions(case.problem.network, autocast=torch.bfloat16)
    grad, _ = halved.gradient(theta, batch)
    assert grad.dtype == torch.float32
    assert 1e-5 < relative_difference(grad, case.problem.functions.gradient(theta, batch)[0]) < 0.1
    lam = lam_for(theta)
    hessian, _ = halved.product(theta, batch, lam)
    assert hessian.dtype == torch.float32
    assert 1e-5 < relative_difference(hessian, case.problem.functions.product(theta, batch, lam)[0]) < 0.2
    with pytest.raises(ValueError, match="'forward' does not support autocast"):
        StepFunctions(case.problem.network, product_form="forward", autocast=torch.bfloat16)


def test_without_a_compiler_the_functions_go_on_and_say_why(make_case: Callable) -> None:
    """No C++ compiler is found under the name that torch looks for: the numbers are those without one."""
    torch._dynamo.reset()
    case = make_case(network="mlp1", ipc=2, dtype=torch.float32)
    theta, batch = case.draws.theta_P, case.data
    functions = StepFunctions(case.problem.network, images_per_pass=3, compiled=True, product_form="forward")
    config = torch._inductor.config
    with config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}):
        why = functions.try_compile(theta, batch)
    assert "no-such-compiler" in why or "compiler" in why.lower()
    assert not functions.compiled
    eager = StepFunctions(case.problem.network, images_per_pass=3)
    assert torch.equal(functions.gradient(theta, batch)[0], eager.gradient(theta, batch)[0])
    lam = lam_for(theta)
    assert torch.equal(functions.product(theta, batch, lam)[0], eager.product(theta, batch, lam)[0])


@pytest.mark.slow
def test_with_a_compiler_there_is_nothing_to_say(make_case: Callable) -> None:
    torch._dynamo.reset()
    case = make_case(network="mlp1", ipc=2, dtype=torch.float32)
    functions = StepFunctions(case.problem.network, images_per_pass=3, compiled=True)
    assert functions.try_compile(case.draws.theta_P, case.data) == ""
    assert functions.compiled
