"""Prepared images in a store that machines share. A machine is a cache of its own here, the store a folder by its URI."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_distill.data import preprocessed
from ray_distill.data.labelled_images import DataError
from ray_distill.data.spec import DataSpec
from ray_distill.data.splits import DevelopmentData, open_development, prepare_development
from tests.helpers.hub_files import encode
from tests.helpers.source_files import class_folders
from tests.helpers.tiny import whole


def pictures(folder: Path) -> None:
    class_folders(folder, 0)
    for seed, path in enumerate(sorted(folder.rglob("*.png"))):
        path.write_bytes(encode(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)))


def machine(tmp_path: Path, name: str, kind: str = "zca") -> DataSpec:
    return DataSpec(
        source=f"folder:{tmp_path / 'set'}",
        preprocessing=kind,
        validation_fraction=0.34,
        cache=tmp_path / name,
        shared=(tmp_path / "store").as_uri(),
    )


def forget(cache: Path) -> None:
    for path in cache.glob("*.arrow"):
        path.unlink()


def same(one: DevelopmentData, train: torch.Tensor) -> bool:
    return torch.equal(whole(one.train)[0], train)


@pytest.mark.parametrize("kind", ["normalise", "zca"])
def test_a_machine_without_the_source_opens_what_another_has_prepared(kind: str, tmp_path: Path) -> None:
    """All prepared files are in the store, whole and under their names; without the store the images cannot be opened."""
    pictures(tmp_path / "set")
    spec = machine(tmp_path, "cache", kind)
    data = prepare_development(spec)
    expected = whole(data.train)[0].clone()
    assert {p.name for p in (tmp_path / "store").iterdir()} == {p.name for p in spec.cache.glob("*.arrow")}
    kept = {p.name: p.read_bytes() for p in (tmp_path / "store").iterdir()}
    assert kept[data.handle.images_path.name] == data.handle.images_path.read_bytes()
    shutil.rmtree(tmp_path / "set")
    forget(spec.cache)
    train, _ = open_development(data.handle, lambda: pytest.fail("whitened images are in the store"))
    assert torch.equal(whole(train)[0], expected)
    assert [p.name for p in spec.cache.glob("*.arrow")] == [data.handle.images_path.name]
    forget(spec.cache)
    alone = replace(data.handle, spec=replace(spec, shared=None))
    with pytest.raises(DataError, match="set does not exist"):
        open_development(alone, lambda: data.preprocessing)


def test_what_another_machine_has_fitted_and_whitened_is_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "set")
    first = prepare_development(machine(tmp_path, "one"))
    monkeypatch.setattr(preprocessed, "fit_preprocessing", lambda *_, **__: pytest.fail("fitted again"))
    monkeypatch.setattr(preprocessed, "ArrowImageWriter", lambda *_: pytest.fail("whitened again"))
    second = prepare_development(machine(tmp_path, "two"))
    assert second.handle.images_path.parent == tmp_path / "two"
    assert same(second, whole(first.train)[0])


def test_what_was_prepared_before_there_was_a_store_is_put_there(tmp_path: Path) -> None:
    pictures(tmp_path / "set")
    spec = machine(tmp_path, "cache")
    prepare_development(replace(spec, shared=None))
    assert not (tmp_path / "store").exists()
    prepare_development(spec)
    assert {p.name for p in (tmp_path / "store").iterdir()} == {p.name for p in spec.cache.glob("*.arrow")}


def test_a_store_that_takes_nothing_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Others will prepare the images themselves; this run has them."""
    pictures(tmp_path / "set")
    (tmp_path / "store").write_text("a file where the folder should be")
    data = prepare_development(machine(tmp_path, "cache", "normalise"))
    assert len(data.train.labels_N) == 4
    assert "to data.cache: " in caplog.text
    assert (tmp_path / "store").read_text() == "a file where the folder should be"


def test_a_store_that_cannot_be_named_is_a_mistake(tmp_path: Path) -> None:
    pictures(tmp_path / "set")
    with pytest.raises(DataError, match="s4://bucket/x is not a usable path or URI"):
        prepare_development(replace(machine(tmp_path, "cache"), shared="s4://bucket/x"))
