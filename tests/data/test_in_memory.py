"""Data given in Python: every form gives the same pixels, and what is ambiguous or lossy is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from ray_distill.data.in_memory import store_in_memory
from ray_distill.data.labelled_images import DataError
from ray_distill.data.sources import load_development
from ray_distill.data.spec import DataSpec
from ray_distill.data.test_split import load_test

PIXELS_NHWC = np.random.default_rng(0).integers(0, 256, (6, 7, 5, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


class Pictures(Dataset[Any]):
    """As torchvision's datasets: PIL images, numbers, and the names of the classes."""

    classes = ("cat", "dog", "owl")

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(PIXELS_NHWC[index]), int(LABELS[index])


def spec_of(source: str, folder: Path) -> DataSpec:
    return DataSpec(source=source, cache=folder / "cache")


TENSOR = torch.from_numpy(PIXELS_NHWC).permute(0, 3, 1, 2)
FORMS: dict[str, Callable[[], Any]] = {
    "NumPy": lambda: (PIXELS_NHWC, LABELS),
    "NumPy floats": lambda: (PIXELS_NHWC / 255, LABELS.astype(np.int16)),
    "tensors": lambda: (TENSOR, torch.from_numpy(LABELS)),
    "float tensors": lambda: (TENSOR.float() / 255, torch.from_numpy(LABELS)),
    "tensor dataset": lambda: TensorDataset(TENSOR.float() / 255, torch.from_numpy(LABELS)),
    "pictures": Pictures,
    "lists": lambda: ([Image.fromarray(image) for image in PIXELS_NHWC], LABELS.tolist()),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pixels(form: str, tmp_path: Path) -> None:
    source = store_in_memory(FORMS[form](), None, tmp_path)
    images = load_development(spec_of(source, tmp_path))
    assert torch.equal(images.images_NCHW, TENSOR)
    assert images.labels_N.tolist() == LABELS.tolist()
    assert images.class_names == (Pictures.classes if form == "pictures" else ("0", "1", "2"))


def test_the_same_data_are_the_same_source(tmp_path: Path) -> None:
    """A digest names the file; another pixel, label or test image is another file."""
    first = store_in_memory((PIXELS_NHWC, LABELS), None, tmp_path)
    assert store_in_memory((TENSOR, LABELS), None, tmp_path) == first
    other = PIXELS_NHWC.copy()
    other[0, 0, 0, 0] ^= 1
    others = {
        store_in_memory((other, LABELS), None, tmp_path),
        store_in_memory((PIXELS_NHWC, LABELS[::-1]), None, tmp_path),
        store_in_memory((PIXELS_NHWC, LABELS), (PIXELS_NHWC[:3], LABELS[:3]), tmp_path),
    }
    assert len(others | {first}) == 4
    assert len(list(tmp_path.glob("*.npz"))) == 4


def test_the_test_split_is_apart(tmp_path: Path) -> None:
    source = store_in_memory((PIXELS_NHWC[:3], LABELS[:3]), (PIXELS_NHWC[3:], LABELS[3:]), tmp_path)
    spec = spec_of(source, tmp_path)
    assert torch.equal(load_development(spec).images_NCHW, TENSOR[:3])
    assert torch.equal(load_test(spec).images_NCHW, TENSOR[3:])


def test_labels_that_are_names(tmp_path: Path) -> None:
    """Classes in alphabetical order, those that only the test split has included."""
    names = np.array(["owl", "cat", "owl"])
    source = store_in_memory(
        (PIXELS_NHWC[:3], names), (PIXELS_NHWC[3:], np.array(["cat", "owl", "cat"])), tmp_path
    )
    images = load_development(spec_of(source, tmp_path))
    assert images.class_names == ("cat", "owl")
    assert images.labels_N.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("train", "match"),
    [
        (PIXELS_NHWC, r"pair \(images, labels\)|\(image, label\)"),
        ((PIXELS_NHWC, LABELS[:5]), "6 images, but 5 labels"),
        (
            (PIXELS_NHWC.transpose(0, 3, 1, 2), LABELS),
            r"must be \[N, H, W, C\]: use images.transpose\(0, 2, 3, 1\)",
        ),
        ((TENSOR.permute(0, 2, 3, 1), LABELS), r"must be \[N, C, H, W\]: use images.permute\(0, 3, 1, 2\)"),
        ((PIXELS_NHWC / 255 - 0.5, LABELS), "leave out the normalisation"),
        ((PIXELS_NHWC / 255 * np.nan, LABELS), r"must be pixels in \[0, 1\]"),
        ((PIXELS_NHWC / 300, LABELS), "no multiples of 1/255"),
        ((PIXELS_NHWC.astype(np.int64), LABELS), "they must be uint8, or floats"),
        ((PIXELS_NHWC[0, 0], LABELS), r"must be \[N, H, W\]"),
        ((PIXELS_NHWC, LABELS + 0.5), "labels must be integers or strings"),
        ((PIXELS_NHWC, np.eye(6)), "labels must be integers or strings"),
        ([], r"\(images, labels\)|empty"),
        (3, "got int"),
    ],
)
def test_what_is_refused(train: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=match):
        store_in_memory(train, None, tmp_path)
    assert not list(tmp_path.iterdir())


def test_images_of_different_shapes_are_refused(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (4, 4)), Image.new("RGB", (5, 4))]
    with pytest.raises(DataError, match="different shapes"):
        store_in_memory((pictures, [0, 1]), None, tmp_path)
    with pytest.raises(DataError, match="must be alike"):
        store_in_memory((PIXELS_NHWC, LABELS), (PIXELS_NHWC[:, :3], LABELS), tmp_path)
