"""Baselines: which images, by hand and by brute force."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from ray_distill.core.distilled import class_labels
from ray_distill.data.labelled_images import DataError
from ray_distill.data.preprocessing import Normalisation
from ray_distill.data.real_data import RealData
from ray_distill.evaluation.baselines import (
    check_budget,
    herding_rows,
    k_means_centres,
    random_real_rows,
    subset_rows,
)


def real(values_ND: Tensor, labels_N: list[int], **other: Any) -> RealData:
    """Images of one row of pixels."""
    fields: dict[str, Any] = {"white": 255, "preprocessing": None, "mapping": None} | other
    return RealData(
        source_NCHW=values_ND[:, None, None, :],
        rows_N=torch.arange(len(values_ND)),
        labels_N=torch.tensor(labels_N),
        num_classes=max(labels_N) + 1,
        **fields,
    )


def random_values(num_images: int, size: int) -> Tensor:
    return torch.randn(num_images, size, generator=torch.Generator().manual_seed(1))


def test_herding_by_hand() -> None:
    """Class 0 has 0, 1, 2, 10, 12, of mean 5. Closest to 5: 2. Then to 2 * 5 - 2 = 8: 10. Then to 15 - 12 = 3: 1,
    since 2 is taken. Then to 20 - 13 = 7: 12. Class 1 lies between: 5, 6, 7, 8, its mean 6.5 as far from 6 as from
    7, the first; then 13 - 6 = 7; then 19.5 - 13 = 6.5, from 5 as from 8; then what is left."""
    values = torch.tensor([0.0, 5.0, 1.0, 6.0, 2.0, 7.0, 10.0, 8.0, 12.0])[:, None]
    data = real(values, [0, 1, 0, 1, 0, 1, 0, 1, 0])
    rows = herding_rows(data, 4)
    assert values[rows, 0].tolist() == [2, 10, 1, 12, 6, 7, 5, 8]


def test_herding_takes_what_brings_the_mean_closest_at_each_step() -> None:
    """Against the definition, evaluated for every unchosen image, in three dimensions."""
    values = random_values(12, 3)
    rows = herding_rows(real(values, [0] * 12), 5)
    mean, taken = values.double().mean(dim=0), list[int]()
    for _ in range(5):
        left = [i for i in range(12) if i not in taken]
        taken.append(min(left, key=lambda i: float((values[[*taken, i]].double().mean(dim=0) - mean).norm())))
    assert rows.tolist() == taken


def test_herding_sees_preprocessed_images() -> None:
    """Two channels, (0, 0), (2, 0), (1, 3), of mean (1, 1). The closest to it are (0, 0) and (2, 0), at a distance of
    sqrt(2), against 2 for (1, 3). Where the preprocessing divides the second channel by 100, (1, 3) is."""
    pixels = torch.tensor([[0, 0], [2, 0], [1, 3]], dtype=torch.uint8)[:, :, None, None]
    shared = {"rows_N": torch.arange(3), "labels_N": torch.zeros(3, dtype=torch.int64), "num_classes": 1}
    plain = {"source_NCHW": pixels, "white": 1, "mapping": None}
    scaled = Normalisation(mean_C=torch.zeros(2), std_C=torch.tensor([1.0, 100.0]))
    as_is = Normalisation(mean_C=torch.zeros(2), std_C=torch.ones(2))
    assert herding_rows(RealData(**shared, **plain, preprocessing=as_is), 1).tolist() == [0]
    assert herding_rows(RealData(**shared, **plain, preprocessing=scaled), 1).tolist() == [2]


def test_rows_are_those_of_the_data_and_not_of_the_file() -> None:
    """Data that are a part of what is stored, in another order."""
    values = random_values(10, 3)
    part = torch.tensor([7, 3, 9, 1, 4])
    whole = real(values, [0] * 10)
    data = RealData(
        source_NCHW=whole.source_NCHW,
        rows_N=part,
        labels_N=torch.zeros(5, dtype=torch.int64),
        num_classes=1,
        white=255,
        preprocessing=None,
        mapping=None,
    )
    copied = real(values[part], [0] * 5)
    assert torch.equal(herding_rows(data, 3), herding_rows(copied, 3))
    assert torch.equal(k_means_centres(data, 2, 1).images_NCHW, k_means_centres(copied, 2, 1).images_NCHW)


def test_images_come_in_chunks_of_their_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seven images two at a time the same are chosen as of all at once."""
    data = real(random_values(14, 3), [0, 1] * 7)
    expected = herding_rows(data, 5)
    monkeypatch.setattr("ray_distill.evaluation.baselines.CHUNK_IMAGES", 2)
    assert torch.equal(herding_rows(data, 5), expected)


def test_one_centre_is_the_class_mean() -> None:
    values = random_values(9, 4)
    centres = k_means_centres(real(values, [0, 1, 2] * 3), 1, seed=1)
    expected = torch.stack([values[k::3].mean(dim=0) for k in range(3)])
    torch.testing.assert_close(centres.images_NCHW[:, 0, 0], expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(centres.labels_NK, torch.eye(3))


def test_centres_of_well_separated_clusters_are_their_means() -> None:
    """Two classes of three clusters each, 100 apart, of 4 points within 1: whatever the start, k-means finds them."""
    places = torch.tensor([0.0, 100.0, 200.0, 1000.0, 1100.0, 1200.0])
    values = (places[:, None] + torch.tensor([-1.0, -0.5, 0.5, 1.0])).flatten()[:, None]
    data = real(values, [0] * 12 + [1] * 12)
    for seed in range(5):
        centres = k_means_centres(data, 3, seed)
        for k in range(2):
            found = centres.images_NCHW[3 * k : 3 * k + 3].flatten().sort().values
            torch.testing.assert_close(found, places[3 * k : 3 * k + 3], rtol=1e-6, atol=1e-4)
    assert centres.labels_NK.argmax(dim=1).tolist() == class_labels(2, 3, torch.device("cpu")).tolist()


def test_centres_keep_the_shape_and_the_dtype(bench: Callable[..., Any]) -> None:
    """Digits in float64. The same seed gives the same centres; the images stay as they were."""
    train = bench().train
    before = train.images(torch.arange(5))
    centres = k_means_centres(train, 2, seed=1)
    assert centres.images_NCHW.shape == (20, *train.image_shape)
    assert centres.dtype == centres.labels_NK.dtype == torch.float64
    assert torch.equal(centres.images_NCHW, k_means_centres(train, 2, seed=1).images_NCHW)
    assert not torch.equal(centres.images_NCHW, k_means_centres(train, 2, seed=2).images_NCHW)
    assert torch.equal(train.images(torch.arange(5)), before)


def test_real_rows_are_of_their_class_and_differ_by_index(bench: Callable[..., Any]) -> None:
    train = bench().train
    for rows in (herding_rows(train, 3), random_real_rows(train, 3, seed=1, index=0)):
        assert train.labels_N[rows].tolist() == [k for k in range(10) for _ in range(3)]
        assert len(set(rows.tolist())) == 30
    first = random_real_rows(train, 3, seed=1, index=0)
    assert torch.equal(first, random_real_rows(train, 3, seed=1, index=0))
    assert not torch.equal(first, random_real_rows(train, 3, seed=1, index=1))
    assert not torch.equal(first, random_real_rows(train, 3, seed=2, index=0))


def test_subsets_of_one_index_are_nested() -> None:
    """3 classes of 5 images: sizes 1, 2, 5 contain one another, all classes alike; 5 is the whole set."""
    sizes = {size: subset_rows(3, 5, size, seed=1, index=0) for size in (1, 2, 5)}
    for size, rows in sizes.items():
        assert (rows // 5).tolist() == [k for k in range(3) for _ in range(size)]
    assert set(sizes[1].tolist()) < set(sizes[2].tolist())
    assert sorted(sizes[5].tolist()) == list(range(15))
    assert not torch.equal(sizes[2], subset_rows(3, 5, 2, seed=1, index=1))


def test_every_subset_is_equally_likely() -> None:
    """Two images of one class of 3, in either order: 6 outcomes in 1,200 draws, 200 each, with a standard deviation
    of 12.9."""
    draws = [tuple(subset_rows(1, 3, 2, seed=1, index=i).tolist()) for i in range(1200)]
    for outcome in permutations(range(3), 2):
        assert draws.count(outcome) == pytest.approx(200, abs=52)


def test_a_class_too_small_is_told() -> None:
    data = real(random_values(5, 2), [0, 0, 0, 1, 1])
    check_budget(data, 2)
    with pytest.raises(DataError, match=r"class 1 has 2 training images, too few .* 3 images of"):
        check_budget(data, 3)
