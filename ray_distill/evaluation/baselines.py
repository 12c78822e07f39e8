"""Baselines of a distilled set: as many real images, selected in several ways, and subsets of the set itself.

| | images of each class |
|---|---|
| random real | drawn without replacement, for each retraining |
| herding | those whose mean approximates the class mean, selected one by one (Welling, "Herding dynamical weights to learn", ICML 2009, in the greedy form of coreset comparisons) |
| k-means | the centres of a clustering of the class, as in Wang et al., "Dataset distillation", 2018 |
| subset | drawn from the distilled set without replacement, for each retraining |

Real images are selected from the preprocessed training images, in that space. The baseline of k-means are the centres, not
the real images nearest to them: that is the field's, and the stronger one, since means are less noisy than images.

Herding and k-means each take one pass over the training images, with one class in memory at a time: herding in
float64, 123 MB for a class of CIFAR-10 (5,000 x 3,072), k-means in float32, half of that.

Axes, beside those of the package: D numbers of an image.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ray_distill.core.distilled import DistilledData, class_balanced_rows, class_labels, one_hot
from ray_distill.core.rng import Stream
from ray_distill.data.labelled_images import CHUNK_IMAGES, DataError
from ray_distill.data.real_data import RealData


def check_budget(data: RealData, ipc: int) -> None:
    """Raises: DataError if a class has fewer training images than ipc."""
    counts_K = torch.bincount(data.labels_N.cpu(), minlength=data.num_classes)
    k = int(counts_K.argmin())
    if counts_K[k] < ipc:
        raise DataError(
            f"class {k} has {int(counts_K[k])} training images, too few for a baseline with the set's {ipc} images of "
            "each class; remove random_real, herding and k_means from evaluation.baselines, or use more data"
        )


def random_real_rows(data: RealData, ipc: int, seed: int, index: int) -> Tensor:
    """Rows of ipc random images of each class, for one retraining: int64 [K * ipc]."""
    stream = Stream(seed=seed, name="random-real", replica=index)
    return class_balanced_rows(stream, data.labels_N.cpu(), data.num_classes, ipc)


def subset_rows(num_classes: int, ipc: int, size: int, seed: int, index: int) -> Tensor:
    """Rows of `size` random images of each class of a distilled set with ipc of each: int64 [K * size].

    Those of a larger size contain those of a smaller one of the same index, so that sizes differ by what was added.
    """
    stream = Stream(seed=seed, name="subset", replica=index)
    return class_balanced_rows(stream, class_labels(num_classes, ipc, stream.device), num_classes, size)


def herding_rows(data: RealData, ipc: int) -> Tensor:
    """Rows of ipc images of each class, in the order of selection: int64 [K * ipc].

    After t images with the sum s the next is the remaining image x that brings the mean (s + x) / (t + 1) closest to
    the mean of the class: the one closest to (t + 1) * mean - s. The first on a tie.
    """
    chosen = []
    for rows_n, images_nD in _classes(data, torch.float64):
        mean_D, squares_n = images_nD.mean(dim=0), images_nD.square().sum(dim=1)
        sum_D, taken = torch.zeros_like(mean_D), list[int]()
        for t in range(ipc):
            target_D = (t + 1) * mean_D - sum_D
            # The squared distance to the target, but for the target's own square.
            distance_n = squares_n - 2.0 * (images_nD @ target_D)
            distance_n[taken] = torch.inf
            taken.append(int(distance_n.argmin()))
            sum_D += images_nD[taken[-1]]
        chosen.append(rows_n[taken])
    return torch.cat(chosen)


def k_means_centres(data: RealData, ipc: int, seed: int) -> DistilledData:
    """The centres of ipc clusters of each class: [K * ipc, C, H, W], with the class for a label.

    scikit-learn's k-means from one k-means++ start, on one thread: with several, the rounding of sums is not deterministic.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    centres = []
    starts = Stream(seed=seed, name="k-means").words(data.num_classes)[0].tolist()
    for start, (_, images_nD) in zip(starts, _classes(data, torch.float32), strict=True):
        clustering = KMeans(ipc, n_init=1, random_state=start, copy_x=False)
        with threadpool_limits(1):
            clustering.fit(images_nD.numpy())
        centres.append(torch.from_numpy(clustering.cluster_centers_))
    images_NCHW = torch.cat(centres).to(data.dtype).view(-1, *data.image_shape)
    labels_N = class_labels(data.num_classes, ipc, images_NCHW.device)
    return DistilledData(images_NCHW, one_hot(labels_N, data.num_classes, data.dtype))


def _classes(data: RealData, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each class the rows, and the images on the CPU, [n, D]."""
    for k in range(data.num_classes):
        rows_n = (data.labels_N.cpu() == k).nonzero()[:, 0]
        images_nD = torch.empty(len(rows_n), torch.Size(data.image_shape).numel(), dtype=dtype)
        for out, rows in zip(images_nD.split(CHUNK_IMAGES), rows_n.split(CHUNK_IMAGES), strict=True):
            out.copy_(data.images(rows).flatten(1))
        yield rows_n, images_nD
