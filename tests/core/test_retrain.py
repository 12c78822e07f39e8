"""Retraining: scores counted by hand, horizons as points of one training, draws by place, networks at once."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from ray_distill.core.augment import OPERATIONS
from ray_distill.core.distilled import DistilledData, one_hot, random_batches
from ray_distill.core.inner_optimizer import SGD, Adam
from ray_distill.core.networks.group import NetworkGroup
from ray_distill.core.networks.network import NetworkSpec, build_network
from ray_distill.core.retrain import retrain, retrain_group, scores, train_steps
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

    The cross entropy is log(1 + exp(other - own)) with other - own = -1, -1, .4, -9. Beside it one that passes them
    on the other way round, which is right where the first is wrong, with the differences' signs turned.
    """
    network = build_network(NetworkSpec(name="mlp1", width=2), (1, 1, 2), 2)
    eye, zero = torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    theta = torch.stack(
        [torch.cat((eye.flatten(), zero, last.flatten(), zero)) for last in (eye, eye.flip(0))]
    )
    pairs = [[1.0, 2.0], [2.0, 1.0], [0.5, 0.1], [0.0, 9.0]]
    images, labels = torch.tensor(pairs, dtype=torch.float64)[:, None, None], torch.tensor([1, 0, 1, 1])
    for indices in ([0], [1], [0, 1], [1, 1, 0]):
        parts = zip(images.split(batch), labels.split(batch), strict=True)
        measured = scores(NetworkGroup(network, len(indices)), theta[indices], {}, parts)
        assert [s.accuracy for s in measured] == [(0.75, 0.25)[i] for i in indices]
        for index, one in zip(indices, measured, strict=True):
            loss = sum(math.log1p(math.exp((1, -1)[index] * d)) for d in (-1.0, -1.0, 0.4, -9.0)) / 4
            assert one.loss == pytest.approx(loss, rel=1e-12)


def test_training_on_separable_classes_learns_them_and_renamed_classes_are_all_wrong(
    make_case: Callable,
) -> None:
    """Accuracy 1 on the classes as named; with each class called by the next one's name, 0."""
    case = make_case(network="mlp1", width=16, ipc=4, optimizer=Adam(lr=1e-2))
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
        assert [measured] == scores(NetworkGroup(case.problem.network, 1), final.theta_P, {}, [(x, y)])
    assert (
        retrain(case.problem, case.data, lambda: [(x, y)], horizons[:2], seed=7, index=2, outer_step=5)
        == together[:2]
    )
    assert len(set(together)) > 1


@pytest.mark.parametrize("place", [{"seed": 8}, {"index": 1}, {"outer_step": 1}], ids=str)
def test_another_place_is_another_network(make_case: Callable, place: dict[str, int]) -> None:
    case = make_case(network="mlp1", width=8)
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
    case = make_case(network="mlp1", width=16)
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


ALL = tuple(OPERATIONS)
CASES = {
    "convnet-adam": {"network": "convnet2"},
    "convnet-sgd": {"network": "convnet2", "optimizer": SGD(lr=0.05, weight_decay=5e-2)},
    "no-norm": {"network": "convnet2-none"},
    "group-norm": {"network": "convnet1-gn", "width": 8},
    "layer-norm": {"network": "convnet1-ln"},
    "batch-norm-adam": {"network": "convnet2-bn"},
    "batch-norm-sgd": {"network": "convnet2-bn", "optimizer": SGD(lr=0.05), "augmentation_mode": "composed"},
    "resnet": {"network": "resnet18-bn", "width": 2, "image_shape": (2, 16, 16)},
    "mlp-adam": {"network": "mlp2", "width": 8, "augmentation_mode": "composed"},
    "mlp-sgd": {"network": "mlp2", "width": 8, "optimizer": SGD(lr=0.05)},
    "passes": {"network": "convnet1", "images_per_pass": 4},
    "some-classes": {"network": "convnet1", "classes_per_inner_batch": 2},
}


@pytest.mark.parametrize("indices", [[4, 0], [2, 7, 3]], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_networks_trained_at_once_are_those_trained_one_by_one(
    make_case: Callable, name: str, indices: list[int]
) -> None:
    """1e-10 in float64 at each horizon. Batches and operations differ from network to network."""
    case = make_case(**{"ipc": 3, "inner_batch_per_class": 2, "augmentation": ALL, **CASES[name]})
    height, width = case.image_shape[1:]
    x, y = patterns(40, 2.0)
    x = x.repeat(1, 1, height // 8, width // 8)
    what = (case.problem, case.data, lambda: [(x[:33], y[:33]), (x[33:], y[33:])], (1, 4, 11))
    together = retrain_group(*what, seed=7, indices=indices, outer_step=5)
    apart = [retrain(*what, seed=7, index=i, outer_step=5) for i in indices]
    draws = [draw_inner(case.problem, 7, 5, i, 11, case.data) for i in indices]
    first, second = (d.augments for d in draws[:2])
    if case.augmentation_mode == "single":
        assert any(a.operations != b.operations for a, b in zip(first, second, strict=True))
    for ours, alone in zip(together, apart, strict=True):
        assert [s.accuracy for s in ours] == [s.accuracy for s in alone]
        assert [s.loss for s in ours] == pytest.approx([s.loss for s in alone], rel=1e-10)
    assert len({s.loss for one in together for s in one}) == 3 * len(indices)


def test_networks_at_once_take_random_batches_of_their_own(make_case: Callable) -> None:
    """Of a set that is not class-balanced, as the whole training set: those that are drawn of its size, by index."""
    case = make_case(network="convnet1", augmentation=("flip",))
    x, y = patterns(47, 2.0)
    train, test = DistilledData(x[:17], one_hot(y[:17], 3, torch.float64)), [(x[17:], y[17:])]
    together = retrain_group(case.problem, train, lambda: test, (3, 9), seed=1, indices=range(3), batch=5)
    for index, ours in enumerate(together):
        draws = draw_inner(case.problem, 1, 0, index, 9, train, batch=5)
        for steps, measured in zip((3, 9), ours, strict=True):
            final = run_steps(case.problem, train, [draws], initial_state(case.problem, [draws]), steps)
            (alone,) = scores(NetworkGroup(case.problem.network, 1), final.theta_P, {}, test)
            assert measured.loss == pytest.approx(alone.loss, rel=1e-10)
    assert len({one[0].loss for one in together}) == 3


def test_networks_at_once_agree_in_single_precision(make_case: Callable) -> None:
    """1e-5, over a few steps: later ones make more of the first rounding."""
    for network in ("convnet2", "convnet2-bn", "mlp2"):
        case = make_case(network=network, dtype=torch.float32, augmentation=("rotate", "flip"))
        x, y = patterns(40, 2.0)
        what = (case.problem, case.data, lambda x=x, y=y: [(x.float(), y)], (1, 6))
        together = retrain_group(*what, seed=7, indices=range(3))
        for index, ours in enumerate(together):
            for a, b in zip(ours, retrain(*what, seed=7, index=index), strict=True):
                assert a.loss == pytest.approx(b.loss, rel=1e-5)
                assert a.accuracy == b.accuracy


def test_running_statistics_are_kept_for_each_network(make_case: Callable) -> None:
    """Those of networks at once are, one after another, those of each alone; and of no two are they alike."""
    case = make_case(network="convnet2-bn", ipc=3, inner_batch_per_class=2, augmentation=("flip", "rotate"))
    problem, data = case.problem, case.data
    draws = [draw_inner(problem, 7, 0, r, 8, data) for r in range(3)]

    def trained(chosen: list[int]) -> dict[str, torch.Tensor]:
        group, own = NetworkGroup(problem.network, len(chosen)), [draws[r] for r in chosen]
        start = initial_state(problem, own)
        statistics = group.initial_statistics(start.theta_P)
        _, statistics = train_steps(problem, data, group, own, start, statistics, 8)
        return statistics

    together, apart = trained([0, 1, 2]), [trained([r]) for r in range(3)]
    assert len(together) == 6
    for name, values in together.items():
        if name.endswith("num_batches_tracked"):
            assert values == 8
            continue
        of_each = values.unflatten(0, (3, -1))
        for ours, alone in zip(of_each, apart, strict=True):
            torch.testing.assert_close(ours, alone[name], rtol=1e-10, atol=1e-12)
        assert not torch.allclose(of_each[0], of_each[1], rtol=1e-3)


@pytest.mark.parametrize("network", ["convnet2", "convnet2-bn", "mlp2"])
def test_a_network_that_diverged_scores_nan_and_its_neighbours_keep_their_bits(
    make_case: Callable, network: str
) -> None:
    case = make_case(network=network)
    group, thetas = (
        NetworkGroup(case.problem.network, 3),
        [make_case(network=network, replica=r) for r in range(3)],
    )
    theta = torch.stack([c.draws.theta_P for c in thetas])
    statistics, x, y = group.initial_statistics(theta), *patterns(40, 2.0)
    sound = scores(group, theta, statistics, [(x, y)])
    theta[1] = float("nan")
    spoilt = scores(group, theta, statistics, [(x, y)])
    assert (spoilt[0], spoilt[2]) == (sound[0], sound[2])
    assert math.isnan(spoilt[1].loss)


def test_the_test_images_are_fetched_once_a_horizon_however_many_networks_there_are(
    make_case: Callable,
) -> None:
    case, fetched = make_case(network="mlp1", width=8), []

    def test() -> list[tuple[torch.Tensor, torch.Tensor]]:
        fetched.append(1)
        return [patterns(9, 1.0)]

    retrain_group(case.problem, case.data, test, [1, 2], seed=1, indices=range(4))
    assert len(fetched) == 2


def test_networks_that_cannot_be_set_side_by_side_are_trained_one_by_one(make_case: Callable) -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.LocalResponseNorm(3), nn.Flatten(), nn.Linear(144, 3))
    case = make_case(module=module)
    what = (case.problem, case.data, lambda: [patterns(9, 1.0)], [2])
    assert retrain_group(*what, seed=1, indices=[3]) == [retrain(*what, seed=1, index=3)]
    with pytest.raises(ValueError, match="layers of type LocalResponseNorm cannot be grouped"):
        retrain_group(*what, seed=1, indices=[0, 1])
