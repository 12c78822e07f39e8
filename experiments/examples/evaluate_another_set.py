"""Evaluate a set that another method saved, beside baselines: python evaluate_another_set.py FOLDER."""

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import ray_distill as rd

LIKE = {
    "name": "theirs",
    "data": {"source": "digits", "validation_fraction": 0.2},
    "distilled": {"ipc": 1},
    "network": {"name": "convnet1", "width": 16},
    "inner": {"lr": 0.003},
    "truncation": {"rule": "rat-bptt", "unroll_length": 20, "window_length": 8},
    "outer": {"steps": 40, "lr": 0.03},
    "validation": {"every": 10, "num_networks": 2, "horizon": 20},
    "evaluation": {"networks": ["convnet1"], "seeds": 3, "horizons": [20], "whole_train_epochs": 5},
}
"""What their file does not say: the real data, the preprocessing, and how networks are trained on the images."""


def main(folder: str) -> None:
    """The mean image of each class stands for the other method's result."""
    digits = load_digits()
    means = np.stack([digits.images[digits.target == k].mean(axis=0) / 16 for k in range(10)])
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    np.savez(path / "theirs.npz", images=means[:, None].astype(np.float32), labels=np.arange(10))

    theirs = rd.load_external_set(
        path / "theirs.npz",
        like=LIKE,
        space="pixels",
        layout="channels-first",
        images="images",
        labels="labels",
    )
    evaluation = rd.evaluate({"class means": theirs}, out=path / "evaluation", progress=False)
    table = evaluation.to_pandas()
    print(table[["set", "network", "mean", "ci", "n"]].to_string(index=False))


if __name__ == "__main__":
    main(sys.argv[1])
