"""The numbers that describe an outer step's metagradients, against what they are defined as."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from ray_distill.core import diagnostics
from ray_distill.core.rng import Stream


def metagradients(replicas: int, size: int = 30) -> Tensor:
    """Random rows with something in common."""
    noise = Stream(seed=4, name="g").normal(size, range(replicas), dtype=torch.float64)
    return noise + torch.linspace(-1, 1, size, dtype=torch.float64)


def described(grads_RD: Tensor, profile: Tensor | None = None) -> dict[str, float]:
    return diagnostics.summarize(grads_RD.mean(dim=0), grads_RD.square().sum(dim=1), profile)


def test_a_variance_is_never_below_zero() -> None:
    """Of two equal replicas, whose mean's norm came out too large by a rounding."""
    assert diagnostics.variance(1.0 + 1e-12, torch.ones(2, dtype=torch.float64)) == 0.0


def test_variance_is_that_of_the_replicas() -> None:
    """torch's unbiased variance over replicas, summed over the entries."""
    grads = metagradients(5)
    values = described(grads)
    assert values["metagradient_variance"] == pytest.approx(float(grads.var(dim=0).sum()), rel=1e-12)
    assert values["replica_norm_mean"] == pytest.approx(float(grads.norm(dim=1).mean()), rel=1e-12)


def test_cosine_is_the_mean_over_pairs_for_equal_norms() -> None:
    grads = metagradients(4)
    grads = 3.0 * grads / grads.norm(dim=1, keepdim=True)
    pairs = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in combinations(grads, 2)]
    assert described(grads)["replica_cosine"] == pytest.approx(sum(pairs) / len(pairs), rel=1e-10)


@pytest.mark.parametrize(
    ("rows", "cosine"),
    [([[1.0, 2.0], [1.0, 2.0]], 1.0), ([[1.0, 0.0], [0.0, 2.0]], 0.0), ([[0.0, 0.0], [0.0, 0.0]], 0.0)],
)
def test_cosine_of_equal_and_of_orthogonal_and_of_no_metagradients(
    rows: list[list[float]], cosine: float
) -> None:
    values = described(torch.tensor(rows, dtype=torch.float64))
    assert values["replica_cosine"] == pytest.approx(cosine, abs=1e-12)


def test_one_replica_has_no_variance() -> None:
    assert set(described(metagradients(1))) == {"replica_norm_mean"}


def test_positions_are_means_over_tenths_of_the_window() -> None:
    """20 steps: pairs; 5 steps: each stands for two tenths."""
    norms = torch.arange(20, dtype=torch.float64)
    assert diagnostics.position_profile(norms).tolist() == [0.5 + 2 * i for i in range(10)]
    assert diagnostics.position_profile(norms[:5]).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    values = described(metagradients(2), diagnostics.position_profile(norms))
    assert values["window_position_norm/03"] == 6.5
