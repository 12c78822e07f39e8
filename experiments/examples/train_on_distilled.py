"""Train a network of one's own on a distilled set, in plain torch: python train_on_distilled.py DISTILLED.parquet."""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from ray_distill import DistilledDataset


def main(path: str) -> float:
    """Train on the set's images as they are, test on real ones preprocessed as the set was. Returns: the accuracy."""
    distilled = DistilledDataset.load(path)
    print(distilled)
    torch.manual_seed(0)
    classes = len(distilled.class_names)
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(64), nn.ReLU(), nn.Linear(64, classes))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        # Labels are target probabilities; cross_entropy takes them as they are.
        F.cross_entropy(network(distilled.images_NCHW), distilled.labels_NK).backward()
        optimizer.step()

    digits = load_digits()
    pixels_in_0_1 = torch.tensor(digits.images[1500:, None] / 16, dtype=torch.float32)
    with torch.no_grad():
        predicted = network(distilled.preprocess(pixels_in_0_1)).argmax(dim=1)
    accuracy = float((predicted == torch.tensor(digits.target[1500:])).float().mean())
    print(f"accuracy on {len(predicted)} real digits: {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main(sys.argv[1])
