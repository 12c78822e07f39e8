"""Splits by class, and development data made from them."""

from pathlib import Path

import pytest
import torch

from ray_distill.core.rng import Stream
from ray_distill.data import preprocessed
from ray_distill.data.labelled_images import DataError
from ray_distill.data.preprocessing import Normalisation, Preprocessing, fit_preprocessing
from ray_distill.data.sources import load_development
from ray_distill.data.spec import DataSpec
from ray_distill.data.splits import DevelopmentData, prepare_development
from ray_distill.data.strata import balanced_rows, stratified_split
from tests.helpers.tiny import whole

STREAM = Stream(seed=3, name="test split")
CIFAR10 = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "cifar10"


def prepare_digits(
    preprocessing: str, *, seed: int = 0, fraction: float = 0.1, fitted: Preprocessing | None = None
) -> DevelopmentData:
    spec = DataSpec(
        source="digits",
        preprocessing=preprocessing,
        zca_shrinkage=0.1,
        validation_fraction=fraction,
        seed=seed,
    )
    return prepare_development(spec, fitted)


def test_each_class_gives_its_share() -> None:
    """Of 40, 10 and 3 images a fraction 0.25 is 10, 2.5 (to 3) and 0.75 (to 1); rows ascend and none is lost."""
    labels = torch.tensor([0] * 40 + [1] * 10 + [2] * 3)[Stream(seed=0, name="shuffle").permutation(53)[0]]
    kept, aside = stratified_split(labels, 0.25, STREAM)
    assert torch.bincount(labels[aside]).tolist() == [10, 3, 1]
    assert torch.equal(torch.cat([kept, aside]).sort().values, torch.arange(53))
    assert torch.equal(kept, kept.sort().values)
    assert torch.equal(aside, aside.sort().values)


def test_every_class_is_represented_and_a_class_too_small_is_an_error() -> None:
    """1 % of 5 images is none of them: one is set aside all the same. Of a class with one image, none can be."""
    labels = torch.tensor([0, 1] * 5)
    assert labels[stratified_split(labels, 0.01, STREAM)[1]].sort().values.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"class 2 has 1 image\(s\)"):
        stratified_split(torch.tensor([0, 0, 1, 1, 2]), 0.1, STREAM)
    with pytest.raises(DataError, match=r"class 0 has 2 image\(s\)"):
        stratified_split(torch.tensor([0, 0]), 0.9, STREAM)
    for fraction in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
            stratified_split(labels, fraction, STREAM)


def test_fraction_zero_sets_nothing_aside() -> None:
    """Even a class with one image is then no error."""
    kept, aside = stratified_split(torch.tensor([0, 1, 1]), 0.0, STREAM)
    assert (kept.tolist(), aside.tolist()) == ([0, 1, 2], [])


def test_the_split_is_a_function_of_the_stream() -> None:
    """The same stream gives the same rows; another seed gives others (equal by chance: 1 in C(100, 50))."""
    labels = torch.zeros(100, dtype=torch.int64)
    aside = stratified_split(labels, 0.5, STREAM)[1]
    assert torch.equal(stratified_split(labels, 0.5, STREAM)[1], aside)
    assert not torch.equal(stratified_split(labels, 0.5, Stream(seed=4, name="test split"))[1], aside)


def test_digits_are_prepared() -> None:
    """1,438 images; a tenth of 142, 146, 142, 146, 145, 146, 145, 143, 139, 144, rounded, is
    14 + 15 + 14 + 15 + 15 + 15 + 15 + 14 + 14 + 14 = 145 for validation (14.5 goes up), which leaves 1,293."""
    data = prepare_digits("normalise")
    assert whole(data.train)[0].shape == (1293, 1, 8, 8)
    assert whole(data.validation)[0].shape == (145, 1, 8, 8)
    assert whole(data.train)[0].dtype == whole(data.validation)[0].dtype == torch.float32
    assert (len(data.train.labels_N), len(data.validation.labels_N)) == (1293, 145)
    assert (data.num_classes, data.image_shape) == (10, (1, 8, 8))
    again = prepare_digits("normalise")
    assert torch.equal(whole(again.train)[0], whole(data.train)[0])
    other = prepare_digits("normalise", seed=1)
    assert not torch.equal(whole(other.validation)[0], whole(data.validation)[0])


def test_train_and_validation_together_are_the_development_data() -> None:
    """As multisets of (label, pixels): nothing is lost, nothing is in both, labels stay with their images."""
    data = prepare_digits("none")
    everything = load_development(DataSpec(source="digits"))
    rows = torch.cat([whole(data.train)[0], whole(data.validation)[0]]).flatten(1)
    labels = torch.cat([data.train.labels_N, data.validation.labels_N])
    got = sorted((k, *x) for k, x in zip(labels.tolist(), rows.tolist(), strict=True))
    expected = zip(
        everything.labels_N.tolist(), everything.pixels(torch.arange(1438)).flatten(1).tolist(), strict=True
    )
    assert got == sorted((k, *x) for k, x in expected)


def test_without_a_fraction_validation_is_empty() -> None:
    """All 1,438 images are train, and the empty validation still has the shape of images."""
    data = prepare_digits("zca", fraction=0.0)
    assert len(whole(data.train)[0]) == 1438
    assert whole(data.validation)[0].shape == (0, 1, 8, 8)


def test_who_gives_one_more_is_drawn_too() -> None:
    """Ten classes of three, 15 rows: one of each, and a second of five classes, which by chance are others each time
    (that one class is in none of 20 draws has a chance of 1e-5 in all). Ten rows are one of each; nine are too few."""
    labels = torch.arange(30) // 3
    seen = set[int]()
    for seed in range(20):
        counts = torch.bincount(labels[balanced_rows(labels, 15, Stream(seed=seed, name="limit"))])
        assert sorted(counts.tolist()) == [1] * 5 + [2] * 5
        seen |= set((counts == 2).nonzero().flatten().tolist())
    assert seen == set(range(10))
    assert labels[balanced_rows(labels, 10, STREAM)].tolist() == list(range(10))
    with pytest.raises(DataError, match=r"10 classes \(got 9\)"):
        balanced_rows(labels, 9, STREAM)


@pytest.mark.parametrize(("kind", "count"), [("normalise", 2), ("zca", 3)])
def test_the_files_that_data_take_are_named_once(kind: str, count: int) -> None:
    """Pixels and what was fitted; whitened images are a third file, all else is drawn from the pixels."""
    data = prepare_digits(kind)
    assert len(set(data.files)) == len(data.files) == count
    assert {data.handle.pixels_path, data.handle.images_path} <= set(data.files)
    assert all(path.is_file() for path in data.files)


def deviation_from_train(data: DevelopmentData) -> float:
    """|fitted mean - mean of the training pixels|; the rows are those of the same seed without preprocessing."""
    pixels = whole(prepare_digits("none").train)[0]
    assert isinstance(data.preprocessing, Normalisation)
    return abs(data.preprocessing.mean_C.item() - pixels.double().mean().item())


def test_preprocessing_is_fitted_on_train_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fitted mean is that of the training pixels to float32 rounding. Planted: fitted on train +
    validation, the mean is off by about std / sqrt(64 * 145) = 4e-3 times the validation's share, 4e-4."""
    assert deviation_from_train(prepare_digits("normalise")) < 1e-7
    everything = load_development(DataSpec(source="digits"))

    def fit_on_all(kind: str, _: object, *, zca_shrinkage: float) -> object:
        return fit_preprocessing(kind, [everything.pixels(torch.arange(1438))], zca_shrinkage=zca_shrinkage)

    monkeypatch.setattr(preprocessed, "fit_preprocessing", fit_on_all)
    monkeypatch.setenv("RAY_DISTILL_CACHE", str(tmp_path))
    assert deviation_from_train(prepare_digits("normalise")) > 1e-5


def test_whitening_is_fitted_on_train_and_applied_to_both() -> None:
    """The matrix, and both parts, are those of fitting on the training pixels by hand."""
    data, pixels = prepare_digits("zca"), prepare_digits("none")
    fitted = fit_preprocessing("zca", [whole(pixels.train)[0]], zca_shrinkage=0.1)
    torch.testing.assert_close(data.preprocessing.to_record()[1], fitted.to_record()[1])
    torch.testing.assert_close(whole(data.train)[0], fitted.apply(whole(pixels.train)[0]))
    torch.testing.assert_close(whole(data.validation)[0], fitted.apply(whole(pixels.validation)[0]))


def test_a_fitted_preprocessing_is_applied_as_it_is() -> None:
    """A resumed run brings its own: mean 1/4 and deviation 1/2 turn the pixels x into 2 x - 1/2, exactly."""
    own = Normalisation(mean_C=torch.tensor([0.25]), std_C=torch.tensor([0.5]))
    data, pixels = prepare_digits("none", fitted=own), prepare_digits("none")
    assert data.preprocessing is own
    assert torch.equal(whole(data.train)[0], 2.0 * whole(pixels.train)[0] - 0.5)
    assert torch.equal(whole(data.validation)[0], 2.0 * whole(pixels.validation)[0] - 0.5)


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="the CIFAR-10 copy ../shared/data/cifar10 is not there")
def test_a_few_cifar10_images_are_prepared() -> None:
    """200 of the real images: 16 + 4 of each class, normalised to mean 0 and deviation 1 on train."""
    data = prepare_development(
        DataSpec(source=f"parquet:{CIFAR10}", preprocessing="normalise", validation_fraction=0.2, limit=200)
    )
    assert torch.bincount(data.train.labels_N).tolist() == [16] * 10
    assert torch.bincount(data.validation.labels_N).tolist() == [4] * 10
    for channel in whole(data.train)[0].double().unbind(1):
        assert channel.mean().item() == pytest.approx(0.0, abs=1e-5)
        assert channel.std(correction=0).item() == pytest.approx(1.0, abs=1e-5)
