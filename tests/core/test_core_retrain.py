"""Retraining: scores counted by hand, horizons as points of one training, draws by place."""

import math
from collections.abc import Callable

import pytest
import torch

from ray_distill.core.distilled import DistilledData, one_hot, random_batches
from ray_distill.core.inner_optimizer import Adam
from ray_distill.core.networks import NetworkSpec, build_network
from ray_distill.core.retrain import retrain, score
from ray_distill.core.rng import Stream
from ray_distill.core.unroll import draw_inner, initial_state, run_steps

STREAM = Stream(seed=4, name="batches")


def patterns(count: int, spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of three classes around three random patterns: [count, 2, 8, 8] and their classes."""
    labels = torch.arange(count) % 3
    centres = Stream(seed=5, name="centres").normal(3 * 128, dtype=torch.float64).reshape(3, 2, 8, 8)
    around = (
        Stream(seed=5, name=f"around-{count}")
        .normal(count * 128, dtype=torch.float64)
        .reshape(count, 2, 8, 8)
    )
    return centres[labels] + spread * around, labels


@pytest.mark.parametrize("batch", [1, 3, 4, 100])
def test_a_score_is_the_fraction_right_and_the_mean_cross_entropy(batch: int) -> None:
    """A one-layer network that passes its two inputs on as logits: the larger input wins. 3 of 4 right.

    The cross entropy is log(1 + exp(other - own)) with other - own = -1, -1, .4, -9.
    """
    network = build_network(NetworkSpec(name="mlp1", width=2, norm="none"), (1, 1, 2), 2)
    eye = torch.eye(2, dtype=torch.float64).flatten()
    zero = torch.zeros(2, dtype=torch.float64)
    theta = torch.cat((eye, zero, eye, zero))
    pairs = [[1.0, 2.0], [2.0, 1.0], [0.5, 0.1], [0.0, 9.0]]
    images = torch.tensor(pairs, dtype=torch.float64)[:, None, None]
    measured = score(
        network, theta, zip(images.split(batch), torch.tensor([1, 0, 1, 1]).split(batch), strict=True)
    )
    assert measured.accuracy == 0.75
    loss = sum(math.log1p(math.exp(d)) for d in (-1.0, -1.0, 0.4, -9.0)) / 4
    assert measured.loss == pytest.approx(loss, rel=1e-12)


def test_training_on_separable_classes_learns_them_and_renamed_classes_are_all_wrong(
    make_case: Callable,
) -> None:
    """Accuracy 1 on the classes as named; with each class called by the next one's name, 0."""
    case = make_case(network="mlp1", norm="none", width=16, ipc=4, optimizer=Adam(lr=1e-2))
    x, y = patterns(60, 0.3)
    by_class = torch.arange(12).reshape(4, 3).T.flatten()
    train = DistilledData(x[:12][by_class], one_hot(y[:12][by_class], 3, torch.float64))
    (right,) = retrain(case.problem, train, lambda: [(x[12:], y[12:])], [60], seed=1, index=0)
    (wrong,) = retrain(case.problem, train, lambda: [(x[12:], (y[12:] + 1) % 3)], [60], seed=1, index=0)
    assert (right.accuracy, wrong.accuracy) == (1.0, 0.0)
    assert right.loss < 0.1 < wrong.loss


def test_horizons_are_points_of_one_training(make_case: Callable) -> None:
    """Each score is that of a straight run of so many steps, whatever the other horizons."""
    case = make_case(ipc=3, inner_batch_per_class=2, augmentation=("flip", "rotate"))
    x, y = patterns(90, 2.0)
    horizons = (1, 4, 11)
    together = retrain(case.problem, case.data, lambda: [(x, y)], horizons, seed=7, index=2, outer_step=5)
    for horizon, measured in zip(horizons, together, strict=True):
        draws = draw_inner(case.problem, 7, 5, 2, horizon, case.data)
        start = initial_state(case.problem, [draws])
        final = run_steps(case.problem, case.data, [draws], start, horizon)
        assert measured == score(case.problem.network, final.theta_P[0], [(x, y)])
    assert (
        retrain(case.problem, case.data, lambda: [(x, y)], horizons[:2], seed=7, index=2, outer_step=5)
        == together[:2]
    )
    assert len(set(together)) > 1


@pytest.mark.parametrize("place", [{"seed": 8}, {"index": 1}, {"outer_step": 1}], ids=str)
def test_another_place_is_another_network(make_case: Callable, place: dict[str, int]) -> None:
    case = make_case(network="mlp1", norm="none", width=8)
    x, y = patterns(300, 3.0)
    where = {"seed": 7, "index": 0, "outer_step": 0}
    first = retrain(case.problem, case.data, lambda: [(x, y)], [1, 2, 3], **where)
    assert first == retrain(case.problem, case.data, lambda: [(x, y)], [1, 2, 3], **where)
    assert first != retrain(case.problem, case.data, lambda: [(x, y)], [1, 2, 3], **{**where, **place})


@pytest.mark.parametrize("horizons", [[], [0], [-1, 3], [3, 3], [5, 2]], ids=str)
def test_horizons_must_increase(make_case: Callable, horizons: list[int]) -> None:
    case = make_case()
    with pytest.raises(ValueError, match="horizons must be increasing positive numbers"):
        retrain(case.problem, case.data, lambda: [patterns(3, 1.0)], horizons, seed=1, index=0)


@pytest.mark.parametrize(("num_images", "batch"), [(12, 4), (11, 4), (5, 5)])
def test_random_batches_pass_through_the_set_once_an_epoch(num_images: int, batch: int) -> None:
    """Within an epoch of floor(N / batch) steps no row comes twice; the next epoch has another order."""
    per_epoch = num_images // batch
    rows = random_batches(STREAM, range(4 * per_epoch), num_images, batch)
    assert rows.shape == (4 * per_epoch, batch)
    epochs = rows.unflatten(0, (4, per_epoch)).flatten(1)
    for epoch in epochs.tolist():
        assert len(set(epoch)) == len(epoch)
        assert set(epoch) <= set(range(num_images))
    assert len(epochs.unique(dim=0)) == 4


def test_random_batches_of_a_later_range_are_those_of_the_whole() -> None:
    whole = random_batches(STREAM, range(10), 13, 4)
    assert torch.equal(random_batches(STREAM, range(5, 10), 13, 4), whole[5:])


def test_random_batches_draw_every_row_equally_often() -> None:
    """11 images, 2 batches of 4 an epoch, 300 epochs: each row 218 times, binomial standard deviation 7.7."""
    counts = torch.bincount(random_batches(STREAM, range(600), 11, 4).flatten(), minlength=11)
    assert int((counts - 218).abs().max()) < 39


def test_random_batches_cannot_be_larger_than_the_set() -> None:
    with pytest.raises(ValueError, match="a batch of 6 is larger than the set of 5 images"):
        random_batches(STREAM, range(2), 5, 6)


def test_training_on_random_batches_takes_a_set_that_is_not_class_balanced(make_case: Callable) -> None:
    case = make_case(network="mlp1", norm="none", width=16)
    x, y = patterns(47, 0.3)
    train = DistilledData(x[:17], one_hot(y[:17], 3, torch.float64))
    (measured,) = retrain(case.problem, train, lambda: [(x[17:], y[17:])], [100], seed=1, index=0, batch=5)
    assert measured.accuracy == 1.0


def test_retraining_leaves_its_arguments_and_the_global_generator_alone(make_case: Callable) -> None:
    case = make_case(augmentation=("flip",))
    data, (x, y) = case.data, patterns(9, 1.0)
    copies, generator = [v.clone() for v in (*data, x, y)], torch.get_rng_state()
    retrain(case.problem, data, lambda: [(x, y)], [3], seed=1, index=0)
    assert torch.equal(torch.get_rng_state(), generator)
    for value, copy in zip((*data, x, y), copies, strict=True):
        assert torch.equal(value, copy)
