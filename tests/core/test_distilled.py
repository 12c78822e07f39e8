"""The distilled dataset: its start, its rows, its inner batches."""

import pytest
import torch

from ray_distill.core.distilled import (
    NOISE,
    class_balanced_rows,
    class_labels,
    inner_batches,
    noise,
    one_hot,
    unit_noise,
)
from ray_distill.core.rng import Stream

STREAM = Stream(seed=11, name="test")
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unit_noise_has_norm_one_and_the_direction_of_noise(dtype: torch.dtype) -> None:
    plain = noise(STREAM, 5, (3, 4, 6), dtype)
    unit = unit_noise(STREAM, 5, (3, 4, 6), dtype)
    assert unit.shape == (5, 3, 4, 6)
    assert unit.dtype == dtype
    norms = unit.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(5, dtype=dtype), rtol=1e-6, atol=0)
    cosine = (plain * unit).flatten(1).sum(dim=1) / plain.flatten(1).norm(dim=1)
    torch.testing.assert_close(cosine, torch.ones(5, dtype=dtype), rtol=1e-6, atol=0)


def test_noise_differs_from_image_to_image() -> None:
    assert len(noise(STREAM, 6, (1, 2, 2), torch.float64).flatten(1).unique(dim=0)) == 6


def test_noise_by_name() -> None:
    assert NOISE["unit-noise"] is unit_noise
    assert NOISE["noise"] is noise


def test_images_of_a_class_lie_together() -> None:
    """Image i of class k is row k * ipc + i."""
    labels = class_labels(3, 2, CPU)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert one_hot(labels, 3, torch.float64).argmax(dim=1).tolist() == labels.tolist()
    assert one_hot(labels, 3, torch.float64).sum(dim=1).tolist() == [1.0] * 6


@pytest.mark.parametrize(("ipc", "per_class"), [(3, 1), (3, 2), (5, 4)])
def test_inner_batches_are_class_balanced_and_without_replacement(ipc: int, per_class: int) -> None:
    rows = inner_batches(STREAM, range(50), 4, ipc, per_class)
    assert rows.shape == (50, 4 * per_class)
    for row in rows.tolist():
        assert len(set(row)) == len(row)
        assert sorted(r // ipc for r in row) == [k for k in range(4) for _ in range(per_class)]


@pytest.mark.parametrize("per_class", [3, 4])
def test_a_batch_as_large_as_the_set_is_the_set_in_order(per_class: int) -> None:
    rows = inner_batches(STREAM, range(5), 4, 3, per_class)
    assert torch.equal(rows, torch.arange(12).expand(5, 12))


def test_every_image_is_drawn_equally_often_and_classes_apart() -> None:
    """600 steps of 2 out of 5: each row 240 times, binomial standard deviation sqrt(600 .4 .6) = 12.

    The picks of two classes agree as often as chance says: 1/10 of 600 = 60, standard deviation 7.3.
    """
    rows = inner_batches(STREAM, range(600), 3, 5, 2)
    counts = torch.bincount(rows.flatten(), minlength=15)
    assert int((counts - 240).abs().max()) < 60
    within = rows.unflatten(1, (3, 2)).remainder(5).sort(dim=2).values
    agree = int((within[:, 0] == within[:, 1]).all(dim=1).sum())
    assert abs(agree - 60) < 37


@pytest.mark.parametrize("classes", [None, 2])
def test_inner_batches_of_a_later_range_are_those_of_the_whole(classes: int | None) -> None:
    whole = inner_batches(STREAM, range(9), 3, 4, 2, classes)
    assert torch.equal(inner_batches(STREAM, range(5, 9), 3, 4, 2, classes), whole[5:])
    assert len(whole.unique(dim=0)) == 9


@pytest.mark.parametrize("classes", [None, 3])
def test_batches_of_all_classes_are_those_of_the_words_of_the_stream_itself(classes: int | None) -> None:
    """Image i of class k is picked if its word, number k * ipc + i of the step, is one of the class's b smallest."""
    rows, words = inner_batches(STREAM, range(20), 3, 5, 2, classes), STREAM.words(15, range(20)).tolist()
    for row, drawn in zip(rows.tolist(), words, strict=True):
        by_class = [sorted(range(5 * k, 5 * k + 5), key=drawn.__getitem__)[:2] for k in range(3)]
        assert row == [r for picked in by_class for r in picked]


@pytest.mark.parametrize("per_class", [1, 2, 3, 5])
@pytest.mark.parametrize("classes", [1, 2, 4])
def test_a_batch_of_some_classes_has_so_many_rows_of_each_and_none_twice(
    per_class: int, classes: int
) -> None:
    """Rows lie class by class in rising order; all three of a class where three or more are asked for."""
    rows = inner_batches(STREAM, range(50), 4, 3, per_class, classes)
    each = min(per_class, 3)
    assert rows.shape == (50, classes * each)
    for row in rows.tolist():
        assert len(set(row)) == len(row)
        found = [r // 3 for r in row]
        assert found == sorted(found)
        assert [found.count(k) for k in dict.fromkeys(found)] == [each] * classes
    if per_class >= 3:
        assert torch.equal(rows, rows.sort(dim=1).values)


def test_every_subset_of_classes_is_equally_likely_and_images_are_apart_from_them() -> None:
    """4500 steps of 2 out of 4 classes, 1 out of 3 images: 6 subsets x 9 pairs of images, 54 cells.

    Chi-square with 53 degrees of freedom: mean 53, standard deviation sqrt(106) = 10.3; five of these above
    the mean is 104.
    """
    rows = inner_batches(STREAM, range(4500), 4, 3, 1, 2)
    counts = torch.bincount(rows[:, 0] * 12 + rows[:, 1], minlength=144)
    cells = counts[counts > 0].double()
    assert len(cells) == 54
    assert float(((cells - 4500 / 54) ** 2 / (4500 / 54)).sum()) < 104


def test_the_classes_do_not_depend_on_how_many_images_are_taken() -> None:
    """They have words of their own."""
    one, two, whole = (
        inner_batches(STREAM, range(30), 6, 4, b, 3).unflatten(1, (3, -1)) // 4 for b in (1, 2, 4)
    )
    assert torch.equal(one[:, :, 0], two[:, :, 1])
    assert torch.equal(one[:, :, 0], whole[:, :, 3])


def test_a_batch_cannot_have_more_classes_than_the_set() -> None:
    with pytest.raises(ValueError, match="a batch of 4 classes is larger than the set of 3 classes"):
        inner_batches(STREAM, range(2), 3, 5, 2, 4)


def test_class_balanced_rows_pick_each_class_in_turn_without_replacement() -> None:
    labels = Stream(seed=0, name="labels").words(60)[0] % 3
    rows = class_balanced_rows(STREAM, labels, 3, 4)
    assert labels[rows].tolist() == class_labels(3, 4, CPU).tolist()
    assert len(rows.unique()) == 12
    assert not torch.equal(rows, class_balanced_rows(STREAM.at(outer_step=1), labels, 3, 4))


def test_class_balanced_rows_say_which_class_is_too_small() -> None:
    with pytest.raises(ValueError, match="class 1 has 2 real images, fewer than ipc 3"):
        class_balanced_rows(STREAM, torch.tensor([0, 0, 0, 1, 1]), 2, 3)
