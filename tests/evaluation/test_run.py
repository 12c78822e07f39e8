"""The result object of an evaluation, and its Python entry."""

from pathlib import Path
from typing import get_type_hints

import pytest

from ray_distill.config.config import ConfigError
from ray_distill.config.evaluation import EvaluationConfig
from ray_distill.evaluation.overrides import EvaluationOptions
from ray_distill.evaluation.results import Failure, Record, Retraining
from ray_distill.evaluation.run import Evaluation, evaluate_sets


def retraining(index: int = 0, network: str = "convnet3", subject: str = "mine") -> Retraining:
    return Retraining(subject, "distilled", "own", 10, network, index)


def evaluation(folder: Path | None = None) -> Evaluation:
    """Three retrainings of one network after 50 and 100 steps; the only one of another network failed."""
    records = [
        Record(retraining(i), 0.01, steps, accuracy, 1.0)
        for i, accuracy in enumerate((0.6, 0.7, 0.8))
        for steps in (50, 100)
    ]
    failures = [Failure(retraining(network="<mlp>"), "out of memory")]
    return Evaluation(
        records, failures, [], lrs={}, pool_stats=None, folder=folder, tracker=None, warnings=[]
    )


def test_a_data_frame_has_a_row_for_each_row_of_the_table() -> None:
    """Mean 0.7, std 0.1 and t(0.975, 2) = 4.30265, so that the half interval is 0.248414; no numbers where all failed."""
    frame = evaluation().to_pandas()
    assert list(frame.columns) == [
        *("set", "kind", "num_images", "network", "treatment", "horizon", "mean", "std", "n", "ci"),
        *("num_failed", "reason"),
    ]
    done = frame[frame["network"] == "convnet3"]
    assert list(done["horizon"]) == [50, 100]
    assert list(done["mean"]) == pytest.approx([0.7, 0.7])
    assert list(done["std"]) == pytest.approx([0.1, 0.1])
    assert list(done["ci"]) == pytest.approx([0.248414] * 2, abs=1e-6)
    assert list(done["n"]) == [3, 3]
    failed = frame[frame["network"] == "<mlp>"]
    assert list(failed["n"]) == [0, 0]
    assert failed[["mean", "std", "ci"]].isna().all(axis=None)
    assert list(failed["reason"]) == ["out of memory"] * 2


def test_the_columns_have_their_types_without_any_results() -> None:
    """So that frames of several evaluations can be joined."""
    frame = Evaluation([], [], [], {}, None, None, None).to_pandas()
    assert len(frame) == 0
    assert {str(frame[name].dtype) for name in ("mean", "std", "ci")} == {"float64"}
    assert str(frame["horizon"].dtype) == "Int64"


def test_a_notebook_shows_the_last_horizon() -> None:
    html = evaluation()._repr_html_()
    assert "<td>70.0 ± 10.0% (n=3)</td>" in html
    assert "<th>&lt;mlp&gt;</th>" in html
    assert "<td>failed</td>" in html


def test_the_files_are_those_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "table.md").touch()
    assert evaluation(tmp_path).files == {"table.md": tmp_path / "table.md"}
    assert evaluation().files == {}


def test_the_options_are_the_keys_of_the_configuration() -> None:
    assert get_type_hints(EvaluationOptions).keys() == EvaluationConfig.model_fields.keys()


def test_no_sets_are_an_error() -> None:
    with pytest.raises(ConfigError, match="no sets; pass at least one"):
        evaluate_sets({})
