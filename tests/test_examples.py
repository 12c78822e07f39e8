"""The examples run as their README says, and show what they say."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from tests.helpers.evaluated_sets import dataset_of
from tests.helpers.tiny import tiny_config

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "experiments" / "examples"


def run(name: str, *arguments: str) -> str:
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_readme_names_every_example() -> None:
    guide = (EXAMPLES / "README.md").read_text()
    assert set(re.findall(r"\]\((\w+\.py)\)", guide)) == {path.name for path in EXAMPLES.glob("*.py")}
    assert len(list(EXAMPLES.glob("*.py"))) == 4


def test_a_truncation_rule_of_ones_own() -> None:
    """Thirty outer steps of it learn digits far above chance, 0.1."""
    lines = run("own_truncation_rule.py").splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"outer step {step}" for step in (10, 20, 30)]
    assert float(lines[-1].rpartition(" ")[2]) > 0.3


def test_a_network_of_ones_own_on_a_distilled_set(tmp_path: Path) -> None:
    """Trained in plain torch on the mean image of each class, it recognises digits far above chance, 0.1."""
    digits = load_digits()
    means = torch.stack([torch.tensor(digits.images[digits.target == k] / 16).mean(0) for k in range(10)])
    like = dataset_of(tiny_config())
    replace(like, images_NCHW=like.preprocess(means[:, None].float())).save(tmp_path / "distilled.parquet")
    printed = run("train_on_distilled.py", str(tmp_path / "distilled.parquet"))
    assert "Distilled dataset: 10 images" in printed
    assert float(printed.rpartition(" ")[2]) > 0.5


@pytest.mark.slow
def test_data_of_ones_own(tmp_path: Path) -> None:
    printed = run("distil_own_data.py", str(tmp_path / "run"))
    validations = re.findall(r"outer step (\d+): validation accuracy (0\.\d+)", printed)
    assert [step for step, _ in validations] == ["10", "20", "30", "40"]
    assert (tmp_path / "run" / "distilled.parquet").exists()
    assert "whole_train" in printed


@pytest.mark.slow
def test_the_set_of_another_method(tmp_path: Path) -> None:
    printed = run("evaluate_another_set.py", str(tmp_path))
    (row,) = (line.split() for line in printed.splitlines() if "class means" in line)
    assert row[-1] == "3"
    assert float(row[-3]) > 0.2
    assert (tmp_path / "evaluation").is_dir()
