"""Sets of other methods: the same numbers whatever the file, and nothing guessed."""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ray_distill.artifacts.external_labels import match_class
from ray_distill.artifacts.importer import ExternalSpec, load_set
from ray_distill.builders.experiment import load_development_data
from ray_distill.config.config import ConfigError
from ray_distill.config.load import load_config, parse_config
from ray_distill.data.labelled_images import DataError
from tests.helpers.external_sets import CLASSES, World, make_world, set_of


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def spec(world: World, space: Any = "whitened", **more: Any) -> ExternalSpec:
    return ExternalSpec(config=world.config, space=space, **more)


def flat_first(images: np.ndarray) -> np.ndarray:
    return images.reshape(6, -1)


def flat_last(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 2, 3, 1).reshape(6, -1)


def last(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 2, 3, 1)


def _npz(path: Path, images: np.ndarray, labels: np.ndarray) -> tuple[Path, dict[str, Any]]:
    np.savez(path / "set.npz", images=images, labels=labels)
    return path / "set.npz", {}


def _npz_by_place(path: Path, images: np.ndarray, labels: np.ndarray) -> tuple[Path, dict[str, Any]]:
    np.savez(path / "set.npz", images, labels)
    return path / "set.npz", {}


def _npz_by_key(path: Path, images: np.ndarray, labels: np.ndarray) -> tuple[Path, dict[str, Any]]:
    np.savez(path / "set.npz", images=np.zeros((2, 2)), a=images, b=labels, c=labels)
    return path / "set.npz", {"images": "a", "labels": "b"}


def _npy_pair(path: Path, images: np.ndarray, labels: np.ndarray) -> tuple[Path, dict[str, Any]]:
    np.save(path / "x.npy", images)
    np.save(path / "y.npy", labels)
    return path / "x.npy", {"labels": str(path / "y.npy")}


def _npy_alone(path: Path, images: np.ndarray, _labels: np.ndarray) -> tuple[Path, dict[str, Any]]:
    np.save(path / "x.npy", images)
    return path / "x.npy", {}


def _pt(form: Callable[[torch.Tensor, torch.Tensor], Any]) -> Callable[..., tuple[Path, dict[str, Any]]]:
    def save(path: Path, images: np.ndarray, labels: np.ndarray) -> tuple[Path, dict[str, Any]]:
        x = torch.from_numpy(images.copy()).requires_grad_(images.dtype == np.float32)
        torch.save(form(x, torch.from_numpy(labels)), path / "set.pt")
        return path / "set.pt", {}

    return save


def _h5(path: Path, images: np.ndarray, labels: np.ndarray) -> tuple[Path, dict[str, Any]]:
    with h5py.File(path / "set.h5", "w") as file:
        file["distilled/images"] = images
        file["distilled/labels"] = labels
        file["distilled/class_names"] = list(CLASSES)
        file["lr"] = 0.1
    return path / "set.h5", {}


FILES: dict[str, Any] = {
    "npz": _npz,
    "npz, by place": _npz_by_place,
    "npz, keys given": _npz_by_key,
    "npy pair": _npy_pair,
    "npy, no labels": _npy_alone,
    "pt tensor": _pt(lambda x, y: x),
    "pt dict": _pt(lambda x, y: {"x_syn": x, "y_syn": y, "lr": torch.tensor(0.1), "note": "mine"}),
    "pt tuple": _pt(lambda x, y: (x, y)),
    "pt list of experiments": _pt(lambda x, y: {"data": [[x, y]], "accs": {"ConvNet": [0.5, 0.6]}}),
    "h5": _h5,
}


@pytest.mark.parametrize("file", FILES)
def test_every_kind_of_file_gives_the_same_set(world: World, tmp_path: Path, file: str) -> None:
    """Six whitened images of two per class, with labels in it, beside it, or none: bit for bit those images."""
    path, keys = FILES[file](tmp_path, world.whitened_NCHW.numpy(), world.labels_N.numpy())
    dataset = load_set(path, spec(world, **keys))
    assert torch.equal(dataset.images_NCHW, world.whitened_NCHW)
    assert torch.equal(dataset.labels_NK, torch.eye(3)[world.labels_N])
    assert dataset.class_names == CLASSES
    assert dataset.provenance["imported_from"] == path.name


@pytest.mark.parametrize(
    ("layout", "form"),
    [
        (None, lambda x: x),
        (None, last),
        ("channels-last", last),
        ("channels-first", flat_first),
        ("channels-last", flat_last),
    ],
)
def test_axes_come_into_order(
    world: World, tmp_path: Path, layout: Any, form: Callable[[np.ndarray], np.ndarray]
) -> None:
    """3x4x6 images as [N, C, H, W], [N, H, W, C] and flat in both orders: the same set, and its preprocessing
    whitens a real image to it: up to the rounding of a product, which depends on where the images lie in memory."""
    np.savez(tmp_path / "a.npz", images=form(world.whitened_NCHW.numpy()), labels=world.labels_N.numpy())
    np.savez(tmp_path / "b.npz", images=form(world.pixels_NCHW.numpy()), labels=world.labels_N.numpy())
    for name, space in (("a.npz", "whitened"), ("b.npz", "pixels")):
        dataset = load_set(tmp_path / name, spec(world, space, layout=layout))
        exact = torch.equal(dataset.images_NCHW, world.whitened_NCHW)
        assert exact or space == "pixels", name
        torch.testing.assert_close(dataset.images_NCHW, world.whitened_NCHW, rtol=0, atol=1e-5)
        assert dataset.images_NCHW.is_contiguous()


@pytest.mark.parametrize("form", ["uint8", "0 .. 255", "0 .. 1", "float64", "float16"])
def test_pixels_are_preprocessed_whatever_their_scale(world: World, tmp_path: Path, form: str) -> None:
    """Multiples of 1/255 as bytes, as floats to 255, to 1, in double and (1e-3 off) in half precision."""
    unit = world.pixels_NCHW.numpy()
    images = {
        "uint8": (unit * 255).round().astype(np.uint8),
        "0 .. 255": (unit * 255).round(),
        "0 .. 1": unit,
        "float64": unit.astype(np.float64),
        "float16": unit.astype(np.float16),
    }[form]
    np.savez(tmp_path / "set.npz", images=images, labels=world.labels_N.numpy())
    dataset = load_set(tmp_path / "set.npz", spec(world, "pixels"))
    difference = (dataset.images_NCHW - world.whitened_NCHW).norm() / world.whitened_NCHW.norm()
    assert difference < (5e-3 if form == "float16" else 1e-6)
    assert "pixels 0 .. " in dataset.provenance["read_as"]


LEARNT = torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.3, 0.1], [0, 2, 0], [0, 1, 1], [0.1, 0.8, 0], [0, 0, 1]])
"""The largest target of the first and of the fifth row is not the class that they are made for."""


@pytest.mark.parametrize("labels", ["one-hot", "numbers", "column", "floats", "names", "bytes"])
def test_labels_in_every_form(world: World, tmp_path: Path, labels: str) -> None:
    """Rows of zeros and one, numbers as [N] and [N, 1], whole floats, names: the same one-hot rows."""
    numbers = world.labels_N.numpy()
    given = {
        "one-hot": np.eye(3)[numbers],
        "numbers": numbers.astype(np.uint8),
        "column": numbers[:, None],
        "floats": numbers.astype(np.float32),
        "names": np.array(CLASSES)[numbers],
        "bytes": np.array(CLASSES)[numbers].astype("S"),
    }[labels]
    np.savez(tmp_path / "set.npz", images=world.whitened_NCHW.numpy(), labels=given)
    assert torch.equal(load_set(tmp_path / "set.npz", spec(world)).labels_NK, torch.eye(3)[world.labels_N])


def test_learnt_labels_stay_as_they_are(world: World, tmp_path: Path) -> None:
    """Rows that sum to anything; the class that each image was made for is the largest target's, or as told."""
    path = tmp_path / "set.npz"
    np.savez(path, images=world.whitened_NCHW.numpy(), labels=LEARNT.numpy())
    with pytest.raises(DataError, match=r"got cat 1, dog 4, owl 1.*array `classes`"):
        load_set(path, spec(world))
    np.savez(path, images=world.whitened_NCHW.numpy(), labels=LEARNT.numpy(), classes=world.labels_N.numpy())
    dataset = load_set(path, spec(world))
    assert torch.equal(dataset.labels_NK, LEARNT)
    assert torch.equal(dataset.images_NCHW, world.whitened_NCHW)
    assert "summing to 0.9 .. 2" in dataset.provenance["read_as"]


def test_images_are_sorted_by_class(world: World, tmp_path: Path) -> None:
    """Labels 2 0 1 1 0 2: images 1 4 2 3 0 5, of a class in the order of the file; and the set says so."""
    path = tmp_path / "set.npz"
    np.savez(path, images=world.whitened_NCHW.numpy(), labels=np.array([2, 0, 1, 1, 0, 2]))
    dataset = load_set(path, spec(world))
    assert torch.equal(dataset.images_NCHW, world.whitened_NCHW[[1, 4, 2, 3, 0, 5]])
    assert torch.equal(dataset.labels_NK, torch.eye(3)[world.labels_N])
    assert "sorted by class" in dataset.provenance["read_as"]


def test_the_images_per_class_are_the_files(world: World, tmp_path: Path) -> None:
    """The configuration has 1, the file 2: the set's configuration and protocol say 2, and its hash is theirs."""
    path, _ = _npz(tmp_path, world.whitened_NCHW.numpy(), world.labels_N.numpy())
    dataset = load_set(path, spec(world))
    assert world.config.distilled.ipc == 1
    assert dataset.config["distilled"]["ipc"] == 2
    assert dataset.protocol["batch_per_class"] == 2
    assert parse_config(dataset.config).hash == dataset.config_hash
    values = world.config.to_dict() | {"distilled": {"ipc": 5}}
    values["inner"]["batch_per_class"] = 4
    with pytest.raises(ConfigError, match=r"has 2 image\(s\) per class.*inner.batch_per_class.*got 4"):
        load_set(path, replace(spec(world), config=parse_config(values)))


def test_missing_labels_are_reported(world: World, tmp_path: Path) -> None:
    """Six images of three classes: two of each, with a note. Five are refused."""
    path = tmp_path / "set.npy"
    np.save(path, world.whitened_NCHW.numpy())
    assert "no labels" in load_set(path, spec(world)).provenance["read_as"]
    np.save(path, world.whitened_NCHW[:5].numpy())
    with pytest.raises(DataError, match=r"5 images cannot be split evenly into 3 classes.*--labels"):
        load_set(path, spec(world))


def test_a_cube_that_fits_both_orders_is_refused(tmp_path: Path) -> None:
    """Images of 3x3x3: the shape is that of both orders, and each gives its own set."""
    cube = make_world(tmp_path, shape=(3, 3, 3))
    path, _ = _npz(tmp_path, last(cube.whitened_NCHW.numpy()), cube.labels_N.numpy())
    with pytest.raises(DataError, match=r"either order.*--layout channels-first or --layout channels-last"):
        load_set(path, spec(cube))
    assert torch.equal(load_set(path, spec(cube, layout="channels-last")).images_NCHW, cube.whitened_NCHW)
    assert not torch.equal(
        load_set(path, spec(cube, layout="channels-first")).images_NCHW, cube.whitened_NCHW
    )


@pytest.mark.parametrize(
    ("arrays", "more", "says"),
    [
        ({"images": flat_first}, {}, "either order.*--layout"),
        ({"images": last}, {"layout": "channels-first"}, "--layout channels-first.*are channels-last"),
        ({"images": lambda x: x[:, :2]}, {}, "the source's images are 3x4x6"),
        ({"images": lambda x: x, "x": lambda x: x}, {}, "could be images or x; choose with --images KEY"),
        (
            {"a": lambda x: x, "b": lambda x: x},
            {},
            "have no usual name; choose with --images KEY.*a .float32",
        ),
        ({"a": lambda x: x}, {"images": "c"}, "--images c: .* has no such array; it has a"),
        (
            {"images": lambda x: x, "u": lambda x: x[:, 0, 0, 0]},
            {},
            "labels could be u; choose with --labels KEY, or --labels none",
        ),
        (
            {"images": lambda x: x, "y": lambda x: np.zeros(6), "labels": lambda x: np.zeros(6)},
            {},
            "labels could be y or labels",
        ),
        ({"images": lambda x: x}, {"labels": "nowhere.npy"}, "--labels nowhere.npy: neither an array"),
        ({"images": lambda x: x, "labels": lambda x: np.arange(5)}, {}, "6 images and 5 labels"),
        (
            {"images": lambda x: x, "labels": lambda x: np.arange(6)},
            {},
            "row 3: the label must lie in 0 .. 2, since the source has 3 classes; got 3",
        ),
        (
            {"images": lambda x: x, "labels": lambda x: np.full(6, 0.5)},
            {},
            "class labels must be integers; got 0.5",
        ),
        (
            {"images": lambda x: x, "labels": lambda x: np.ones((6, 4))},
            {},
            r"the shape must be \[N\], or .*; got \[6, 4\]",
        ),
        (
            {"images": lambda x: x, "labels": lambda x: np.eye(3)[[0, 0, 1, 1, 2, 2]] - 1 / 3},
            {},
            "must not be negative; got -0.333",
        ),
        (
            {"images": lambda x: x, "labels": lambda x: np.array([0, 0, 0, 1, 2, 2])},
            {},
            r"the same number of images of each class; got cat 3, dog 1, owl 2",
        ),
        ({"images": lambda x: x * np.nan}, {}, "not finite"),
        ({"images": lambda x: x[:0]}, {}, "empty"),
        ({"images": lambda x: x * 1000}, {}, "mean norm .* of real images .* were not preprocessed with"),
        ({"images": lambda x: x / 1000}, {}, "mean norm .* of real images .* were not preprocessed with"),
        ({"images": np.abs}, {}, "no value of its images is negative.*--space pixels"),
        ({"images": lambda x: x}, {"space": "pixels"}, r"its images have values in -.*--space whitened"),
        ({"images": lambda x: np.abs(x) + 256}, {"space": "pixels"}, "pixels lie in 0 .. 1 or in 0 .. 255"),
        (
            {"images": lambda x: np.abs(x) / np.abs(x).max() * 1.4},
            {"space": "pixels"},
            "too large for pixels in 0 .. 1, too small",
        ),
        ({"images": lambda x: (x > 0).astype(np.uint8)}, {"space": "pixels"}, "integers are read as pixels"),
        (
            {"images": lambda x: x, "class_names": lambda x: np.array(["dog", "cat", "owl"])},
            {},
            "the classes dog, cat, owl; the configuration's source has cat, dog, owl",
        ),
        ({"images": lambda x: x, "space": lambda x: np.array("pixels")}, {}, "declares --space pixels"),
    ],
)
def test_ambiguous_and_contradictory_files_are_refused(
    world: World, tmp_path: Path, arrays: dict[str, Any], more: dict[str, Any], says: str
) -> None:
    """Each with the figures, and the option that settles it if there is one."""
    whitened = world.whitened_NCHW.numpy()
    np.savez(tmp_path / "set.npz", **{name: make(whitened) for name, make in arrays.items()})
    with pytest.raises(DataError, match=re.compile(says, re.DOTALL)):
        load_set(tmp_path / "set.npz", replace(spec(world), **more))


def test_odd_norms_give_a_warning(world: World, tmp_path: Path) -> None:
    """Ten times those of real images, the figures begin with a warning; as they are, without."""
    for factor, warned in ((10, True), (1, False)):
        path, _ = _npz(tmp_path, factor * world.whitened_NCHW.numpy(), world.labels_N.numpy())
        read_as = load_set(path, spec(world)).provenance["read_as"]
        assert ("WARNING: mean norm" in read_as) == warned
        assert "mean norm" in read_as


def test_nothing_is_whitened_where_nothing_is_preprocessed(tmp_path: Path) -> None:
    plain = make_world(tmp_path, "none")
    path, _ = _npz(tmp_path, plain.pixels_NCHW.numpy(), plain.labels_N.numpy())
    with pytest.raises(DataError, match=r"data.preprocessing is none.*--space pixels"):
        load_set(path, spec(plain))
    assert torch.equal(load_set(path, spec(plain, "pixels")).images_NCHW, plain.pixels_NCHW)


def test_everything_possible_is_checked_before_anything_is_fitted(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whitening takes minutes: an open layout, a wrong space, labels and images per class do not wait for it."""

    def fitted(*_: Any) -> Any:
        raise AssertionError("fitted before the error was raised")

    monkeypatch.setattr("ray_distill.artifacts.importer.load_development_data", fitted)
    images, labels = world.whitened_NCHW.numpy(), world.labels_N.numpy()
    for arrays, space in (
        ({"images": flat_first(images), "labels": labels}, "whitened"),
        ({"images": images, "labels": labels}, "pixels"),
        ({"images": np.abs(images), "labels": labels}, "whitened"),
        ({"images": images, "labels": labels + 1}, "whitened"),
        ({"images": images[:5], "labels": labels[:5]}, "whitened"),
    ):
        np.savez(tmp_path / "set.npz", **arrays)
        with pytest.raises(DataError):
            load_set(tmp_path / "set.npz", spec(world, space))
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    with pytest.raises(AssertionError):
        load_set(tmp_path / "set.npz", spec(world))


def test_several_experiments_in_a_file_are_chosen_from(world: World, tmp_path: Path) -> None:
    """Two pairs of images and labels: refused by name; with the images' place their labels are the pair's."""
    path, images, labels = tmp_path / "set.pt", world.whitened_NCHW, world.labels_N
    torch.save({"data": [[images, labels], [-images, labels.flip(0)]]}, path)
    with pytest.raises(DataError, match=r"could be data\.0\.0 or data\.1\.0; choose with --images"):
        load_set(path, spec(world))
    second = load_set(path, spec(world, images="data.1.0"))
    assert torch.equal(second.images_NCHW, -images[[4, 5, 2, 3, 0, 1]])


class Trap:
    """Unpickled by an ordinary loader, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["pt", "npz", "npy"])
def test_a_pickle_is_refused_unopened(world: World, tmp_path: Path, kind: str) -> None:
    """The trap works: the unsafe loader springs it. We do not, and say what to save instead."""
    path, trap = tmp_path / f"set.{kind}", Trap(tmp_path / "sprung")
    objects = np.array([trap], dtype=object)
    if kind == "pt":
        torch.save({"images": world.whitened_NCHW, "extra": trap}, path)
    elif kind == "npz":
        np.savez(path, images=world.whitened_NCHW.numpy(), extra=objects)
    else:
        np.save(path, objects, allow_pickle=True)
    with pytest.raises(DataError, match="contains pickled objects, which are never read; save "):
        load_set(path, spec(world))
    assert not trap.path.exists()
    if kind == "pt":
        torch.load(path, weights_only=False)
        assert trap.path.exists()


def test_unreadable_files(world: World, tmp_path: Path) -> None:
    """Absent, of an unknown kind, damaged, and a pickle or an archive under another's name."""
    np.savez(tmp_path / "a.npz", images=world.whitened_NCHW.numpy())
    (tmp_path / "archive.npy").write_bytes((tmp_path / "a.npz").read_bytes())
    for name in ("text.npz", "text.npy", "text.pt", "text.h5", "text.parquet", "text.mat"):
        (tmp_path / name).write_text("a text")
    (tmp_path / "empty").mkdir()
    for name, says in (
        ("absent.npz", "absent.npz: no such file or folder"),
        ("text.mat", "allowed: .npz, .npy, .pt"),
        ("text.npz", "text.npz"),
        ("text.npy", "is not an .npy file"),
        ("archive.npy", "is not an .npy file"),
        ("text.pt", "text.pt"),
        ("text.h5", "is not an HDF5 file"),
        ("text.parquet", "cannot be read as a Parquet file"),
        ("empty", "has no images"),
    ):
        with pytest.raises(DataError, match=re.escape(says)):
            load_set(tmp_path / name, spec(world))
    with pytest.raises(DataError, match=r"pass --like CONFIG.yaml"):
        load_set(tmp_path / "a.npz")


def test_without_h5py_the_error_says_what_to_install(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = _h5(tmp_path, world.whitened_NCHW.numpy(), world.labels_N.numpy())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"pip install 'ray-distill\[h5\]'"):
        load_set(path, spec(world))


@pytest.mark.parametrize("form", ["class folders", "numbered folders", "names", "numbers"])
def test_folders_of_images(world: World, tmp_path: Path, form: str) -> None:
    """Class folders by name or number, files named by class or number: the same six pictures in their classes."""
    images = (world.pixels_NCHW * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for row, (array, k) in enumerate(zip(images, world.labels_N.tolist(), strict=True)):
        name = {
            "class folders": f"{CLASSES[k]}/{row}.png",
            "numbered folders": f"{k:03d}/{row}.png",
            "names": f"{CLASSES[k].upper()}_{row}.png",
            "numbers": f"{k}-{row}.png",
        }[form]
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    (tmp_path / "set" / "readme.txt").write_text("not an image")
    dataset = load_set(tmp_path / "set", spec(world, "pixels"))
    torch.testing.assert_close(dataset.images_NCHW, world.whitened_NCHW, rtol=0, atol=1e-5)
    assert torch.equal(dataset.labels_NK, torch.eye(3)[world.labels_N])


def test_folders_that_do_not_fit(world: World, tmp_path: Path) -> None:
    """A name of no class; pictures of two sizes."""
    for name, size, says in (
        ("bat_1.png", (6, 4), "must begin with a class"),
        ("dog_1.png", (5, 4), "must have one size"),
    ):
        Image.new("RGB", size, "grey").save(tmp_path / name)
        Image.new("RGB", (6, 4), "grey").save(tmp_path / "cat_0.png")
        with pytest.raises(DataError, match=says):
            load_set(tmp_path, spec(world, "pixels"))
        (tmp_path / name).unlink()


def test_the_class_in_a_name() -> None:
    """The longest class name that the name begins with, then its number; never a part of a word or number."""
    names = ("car", "car wheel", "owl")
    assert match_class("car_1", names, "") == 0
    assert match_class("Car wheel-1", names, "") == 1
    assert match_class("owl", names, "") == 2
    assert match_class("02_car", names, "") == 2
    assert match_class("1", ("7", "1"), "") == 1, "a class is called 1: its name counts, not its number"
    for wrong in ("cars_1", "3_1", "1st", "img_car"):
        with pytest.raises(DataError, match="must begin with a class"):
            match_class(wrong, names, "")


def test_pictures_in_the_hubs_layout(world: World, tmp_path: Path) -> None:
    """A Parquet file that is not ours: its images and labels, and class names that must be the source's."""
    from ray_distill.artifacts.export import export

    dataset = set_of(world)
    export(dataset, "parquet", tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    for names, fits in ((None, True), (list(CLASSES), True), (["a", "b", "c"], False)):
        metadata = None if names is None else {"class_names": ",".join(names)}
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "b.parquet")
        if fits:
            assert torch.equal(
                load_set(tmp_path / "b.parquet", spec(world, "pixels")).labels_NK, dataset.labels_NK
            )
        else:
            with pytest.raises(DataError, match="the classes a, b, c"):
                load_set(tmp_path / "b.parquet", spec(world, "pixels"))


def test_an_artefact_describes_itself(world: World, tmp_path: Path) -> None:
    """Read the same with and without a spec; damaged, it is not read as another method's."""
    dataset = set_of(world)
    dataset.save(tmp_path / "ours.parquet")
    for given in (None, spec(world, "pixels")):
        loaded = load_set(tmp_path / "ours.parquet", given)
        assert torch.equal(loaded.images_NCHW, dataset.images_NCHW)
        assert loaded.provenance == dataset.provenance
    table = pq.read_table(tmp_path / "ours.parquet")
    changed = table.set_column(
        table.schema.get_field_index("label"), table.schema.field("label"), pa.array([0] * 6, pa.int64())
    )
    pq.write_table(changed, tmp_path / "ours.parquet")
    with pytest.raises(ValueError, match="not an intact distilled dataset"):
        load_set(tmp_path / "ours.parquet", spec(world))


def test_another_whitening_than_the_configurations_is_refused(world: World, tmp_path: Path) -> None:
    """An export of ours carries its whitening matrix; one fitted otherwise by a hundredth is another."""
    from ray_distill.artifacts.export import export

    export(set_of(world), "npz", tmp_path / "set.npz")
    assert torch.equal(load_set(tmp_path / "set.npz", spec(world)).images_NCHW, world.whitened_NCHW)
    values = world.config.to_dict()
    values["data"]["zca_shrinkage"] = 0.12
    with pytest.raises(DataError, match="another whiten_DD than the one fitted"):
        load_set(tmp_path / "set.npz", replace(spec(world), config=parse_config(values)))
    values["data"] |= {"preprocessing": "normalise", "zca_shrinkage": None}
    with pytest.raises(DataError, match="declares the preprocessing"):
        load_set(tmp_path / "set.npz", replace(spec(world), config=parse_config(values)))


ROOT = Path(__file__).parents[2]
CIFAR10 = Path(os.environ.get("CIFAR10_PARQUET", ROOT.parent / "shared" / "data" / "cifar10"))


@pytest.mark.slow
@pytest.mark.skipif(
    not CIFAR10.is_dir(), reason=f"no real CIFAR-10 at {CIFAR10}; name its folder by CIFAR10_PARQUET"
)
def test_a_hundred_whitened_images_of_cifar(tmp_path: Path) -> None:
    """Ten real images of each class, whitened, shuffled, flat with the channels first, as (100, 3072): they come
    back in the order of their classes, and their norms are those of real images."""
    config = load_config(
        ROOT / "experiments" / "cifar10_ipc1_cpu.yaml", [f"data.source=parquet:{CIFAR10}", "data.limit=2000"]
    )
    data = load_development_data(config)
    rows_N = torch.cat([(data.train.labels_N == k).nonzero().flatten()[:10] for k in range(10)])
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    whitened = data.train.images(rows_N)
    flat = whitened[shuffled].reshape(100, 3072).numpy()
    np.savez(tmp_path / "set.npz", images=flat, labels=data.train.labels_N[rows_N][shuffled].numpy())
    dataset = load_set(
        tmp_path / "set.npz", ExternalSpec(config=config, space="whitened", layout="channels-first")
    )
    for k in range(10):
        of_class = slice(10 * k, 10 * k + 10)
        order = shuffled[(shuffled >= 10 * k) & (shuffled < 10 * k + 10)]
        assert torch.equal(dataset.images_NCHW[of_class], whitened[order])
    assert dataset.protocol["batch_per_class"] == 10
    assert "WARNING" not in dataset.provenance["read_as"]
