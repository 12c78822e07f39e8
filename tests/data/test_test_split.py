"""The test split: what it is, and that it shares nothing with the development data."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ray_distill.data.labelled_images import DataError
from ray_distill.data.sources import load_development
from ray_distill.data.spec import DataSpec
from ray_distill.data.test_split import load_test
from tests.helpers.hub_files import encode, write_images

GREY = encode(np.zeros((2, 2), np.uint8))


def test_digits_are_split_without_overlap_or_loss() -> None:
    """Development and test together are scikit-learn's 1,797 images, each once: as multisets of rows."""
    from sklearn.datasets import load_digits

    parts = [load_development(DataSpec(source="digits")), load_test(DataSpec(source="digits"))]
    assert [len(part) for part in parts] == [1438, 359]
    rows = [
        (p.labels_N[i].item(), *p.images_NCHW[i].flatten().tolist()) for p in parts for i in range(len(p))
    ]
    digits = load_digits()
    expected = [(t, *map(int, x)) for t, x in zip(digits.target.tolist(), digits.data.tolist(), strict=True)]
    assert sorted(rows) == sorted(expected)


def test_a_limit_is_not_for_the_test_split(tmp_path: Path) -> None:
    """A small trial is evaluated on all test images."""
    assert len(load_test(DataSpec(source="digits", limit=30, cache=tmp_path))) == 359


def test_a_folder_gives_its_test_files(tmp_path: Path) -> None:
    """The train file holds grey 10, the test file grey 20; garbage in train does not matter to the test."""
    train = write_images(tmp_path / "train.parquet", [encode(np.full((2, 2), 10, np.uint8))], [0])
    write_images(tmp_path / "test-0.parquet", [encode(np.full((2, 2), 20, np.uint8))] * 2, [0, 0])
    test = load_test(DataSpec(source=f"parquet:{train.parent}"))
    assert test.images_NCHW.flatten().tolist() == [20] * 8
    train.write_bytes(b"garbage")
    assert len(load_test(DataSpec(source=f"parquet:{train.parent}"))) == 2


def test_test_data_of_a_file_are_named_separately(tmp_path: Path) -> None:
    """A training file has no test data of its own; another file, or a folder with test files, is given."""
    train = write_images(tmp_path / "mine.parquet", [GREY], [0])
    other = write_images(tmp_path / "test-others.parquet", [GREY] * 3, [0, 0, 0])
    with pytest.raises(DataError, match=r"has training data only; set data\.test_source"):
        load_test(DataSpec(source=f"parquet:{train}"))
    assert len(load_test(DataSpec(source=f"parquet:{train}", test_source=f"parquet:{other}"))) == 3
    assert len(load_test(DataSpec(source=f"parquet:{train}", test_source=f"parquet:{train.parent}"))) == 3


def test_development_data_are_refused_as_test_data(tmp_path: Path) -> None:
    """The same file under two spellings is still the same file."""
    train = write_images(tmp_path / "train.parquet", [GREY], [0])
    same = f"parquet:{train.parent}/../{train.parent.name}/train.parquet"
    for source in (f"parquet:{train}", f"parquet:{train.parent}"):
        with pytest.raises(DataError, match="given as test data and as development data"):
            load_test(DataSpec(source=source, test_source=same))


def test_test_data_that_are_not_there(tmp_path: Path) -> None:
    """A folder without test files, and test sources that cannot be."""
    write_images(tmp_path / "train.parquet", [GREY], [0])
    with pytest.raises(DataError, match=r"has no test\*\.parquet; it contains: train\.parquet"):
        load_test(DataSpec(source=f"parquet:{tmp_path}"))
    with pytest.raises(DataError, match="digits has its own test data"):
        load_test(DataSpec(source="digits", test_source=f"parquet:{tmp_path}"))
    with pytest.raises(DataError, match="must be parquet:PATH"):
        load_test(DataSpec(source=f"parquet:{tmp_path}", test_source="digits"))


def test_test_data_may_miss_a_class(tmp_path: Path) -> None:
    """Accuracy on two of three classes is well defined, unlike a distillation of them."""
    path = write_images(tmp_path / "test.parquet", [GREY, GREY], [0, 2], metadata={"class_names": "a,b,c"})
    test = load_test(DataSpec(source=f"parquet:{path.parent}"))
    assert torch.equal(test.labels_N, torch.tensor([0, 2]))
    assert test.num_classes == 3
