"""Distil data that are arrays in memory, and watch it: python distil_own_data.py FOLDER."""

import sys
from collections.abc import Mapping

from sklearn.datasets import load_digits

import ray_distill as rd

CONFIG = {
    "name": "own-data",
    "replicas": 2,
    "data": {"validation_fraction": 0.2},
    "distilled": {"ipc": 1},
    "network": {"name": "convnet1", "width": 16},
    "inner": {"lr": 0.003},
    "truncation": {"rule": "rat-bptt", "unroll_length": 20, "window_length": 8},
    "outer": {"steps": 40, "lr": 0.03, "batch_size": 128},
    "validation": {"every": 10, "num_networks": 2, "horizon": 20},
    "evaluation": {"networks": ["convnet1", "mlp1"], "seeds": 3, "horizons": [20], "whole_train_epochs": 5},
}


class PrintValidations(rd.Callback):
    """Prints the accuracy on the validation split as it comes."""

    def on_validation(self, outer_step: int, metrics: Mapping[str, float]) -> None:
        """After an outer step with a validation."""
        print(f"outer step {outer_step}: validation accuracy {metrics['validation_accuracy']:.3f}")


def main(folder: str) -> None:
    """Distil 1,500 digits to ten images; the other 297 are the test split."""
    digits = load_digits()
    images, labels = (digits.images * 15.9375).astype("uint8"), digits.target
    run = rd.distill(
        CONFIG,
        out=folder,
        train=(images[:1500], labels[:1500]),
        test=(images[1500:], labels[1500:]),
        callbacks=[PrintValidations()],
        progress=False,
    )
    table = run.evaluation.to_pandas()
    print(table[["set", "network", "mean", "ci", "n"]].to_string(index=False))
    print(f"distilled set and its picture: {run.folder}")


# Ray's and Python's worker processes import this module.
if __name__ == "__main__":
    main(sys.argv[1])
