"""What a run says of itself at its end."""

from typing import Any

from ray_distill.evaluation.results import ResultRow
from ray_distill.pipeline import summary
from tests.helpers.tiny import tiny_config


def row(mean: float, kind: Any = "distilled", treatment: Any = "own", network: str = "convnet1") -> ResultRow:
    return ResultRow(
        subject=kind,
        kind=kind,
        treatment=treatment,
        num_images=10,
        network=network,
        inner_steps=100,
        n=3,
        mean=mean,
        std=0.01,
        half_width=0.02,
        num_failed=0,
        reason=None,
    )


def test_a_summary_has_the_accuracies_under_the_sets_own_protocol() -> None:
    """Neither those of the robustness scores' treatments nor of subsets stand for the set, wherever they come."""
    rows = [
        row(0.1, treatment="no_augmentation"),
        row(0.8),
        row(0.2, treatment="hard_labels"),
        row(0.3, "subset"),
        row(0.6, "random_real", network="mlp1"),
        row(0.5, "random_real"),
        row(0.4, "random_real", "augmentation"),
    ]
    found = summary(tiny_config(), rows, wall_s=1.0)
    assert found["networks"] == {"convnet1": {"mean": 0.8, "std": 0.01, "n": 3}}
    assert list(found["baselines"]) == ["random_real"]
    real = found["baselines"]["random_real"]
    assert (real["network"], real["mean"]) == ("convnet1", 0.5)
    assert {name: of["mean"] for name, of in real["networks"].items()} == {"mlp1": 0.6, "convnet1": 0.5}
