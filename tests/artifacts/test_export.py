"""Export: reading it back gives the same set, or what is lost is reported; nothing is overwritten."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from ray_distill.artifacts.dataset import DistilledDataset
from ray_distill.artifacts.export import export
from ray_distill.artifacts.importer import ExternalSpec, load_set
from ray_distill.cli.main import app
from ray_distill.errors import UserError
from tests.helpers.external_sets import CLASSES, World, make_world, set_of

runner = CliRunner()

LEARNT = torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.3, 0.1], [0, 2, 0], [0, 1, 1], [0.1, 0.8, 0], [0, 0, 1]])
"""The largest target of the first and of the fifth row is not the class that they are made for."""


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    return {kind: make_world(tmp_path_factory.mktemp(kind), kind) for kind in ("none", "normalise", "zca")}


def again(world: World, path: Path, space: Any) -> DistilledDataset:
    return load_set(path, ExternalSpec(config=world.config, space=space))


@pytest.mark.parametrize("kind", ["none", "normalise", "zca"])
@pytest.mark.parametrize("form", ["npz", "pt"])
def test_arrays_are_read_back_bit_for_bit(
    worlds: dict[str, World], tmp_path: Path, form: Any, kind: str
) -> None:
    """Preprocessed values exported and imported again, with learnt labels that favour other classes."""
    dataset = set_of(worlds[kind], labels_NK=LEARNT)
    path = tmp_path / f"set.{form}"
    space = "pixels" if kind == "none" else "whitened"
    export(dataset, form, path, space)
    back = again(worlds[kind], path, space)
    assert torch.equal(back.images_NCHW, dataset.images_NCHW)
    assert torch.equal(back.labels_NK, LEARNT)
    assert back.class_names == CLASSES
    assert back.protocol == dataset.protocol | {"batch_per_class": 2}
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "no temporary file is left"


@pytest.mark.parametrize("form", ["png", "parquet"])
def test_pictures_are_read_back_up_to_rounding(worlds: dict[str, World], tmp_path: Path, form: Any) -> None:
    """Normalised images that are pixels: each is at most half a grey level off, over the smallest std."""
    world = worlds["normalise"]
    # Off the grid of grey levels by a third of a level.
    moved = world.preprocessing.apply(world.pixels_NCHW * 0.9 + 0.0013)
    path = tmp_path / ("set" if form == "png" else "set.parquet")
    summary = export(set_of(world, images_NCHW=moved), form, path).summary
    back = again(world, path, "pixels")
    off = (back.images_NCHW - moved) * world.preprocessing.to_record()[1]["std_C"][:, None, None]
    assert 1e-4 < float(off.abs().max()) <= 0.5 / 255 + 1e-6
    assert torch.equal(back.labels_NK, torch.eye(3)[world.labels_N])
    assert any("clipped: 0.00% of the values, in 0 of 6 images" in line for line in summary)
    assert not any("learnt labels" in line for line in summary)


def test_what_pictures_lose_is_reported(worlds: dict[str, World], tmp_path: Path) -> None:
    """One of 3 * 4 * 6 * 6 values at 1.5 and one at -0.5, in two images: 0.46% clipped; the labels are left out."""
    world = worlds["none"]
    images = world.pixels_NCHW.clone()
    images[0, 0, 0, 0], images[3, 1, 2, 3] = 1.5, -0.5
    summary = "\n".join(
        export(set_of(world, images_NCHW=images, labels_NK=LEARNT), "png", tmp_path / "set").summary
    )
    assert "clipped: 0.46% of the values, in 2 of 6 images; they ranged from -0.5 to 1.5" in summary
    assert "not stored: the learnt labels" in summary
    zca = "\n".join(export(set_of(worlds["zca"]), "npz", tmp_path / "a.npz", "pixels").summary)
    assert "To train on the set, export npz or pt" in zca


def test_pixels_of_whitened_images_keep_their_shape(worlds: dict[str, World], tmp_path: Path) -> None:
    """Real images, whitened and exported as pixels without clipping, are whitened to the same again: what comes
    back with the pixels, brightness and contrast, is what whitening takes."""
    world = worlds["zca"]
    export(set_of(world), "npz", tmp_path / "a.npz", "pixels")
    exact = (
        world.preprocessing.unclamped_pixels(world.whitened_NCHW)
        - world.preprocessing.to_pixels(world.whitened_NCHW)
    ) == 0
    kept = exact.flatten(1).all(dim=1)
    assert kept.any()
    back = again(world, tmp_path / "a.npz", "pixels")
    assert float((back.images_NCHW - world.whitened_NCHW)[kept].abs().max()) < 1e-3


def test_real_images_need_only_what_is_in_the_arrays(worlds: dict[str, World], tmp_path: Path) -> None:
    """NumPy alone whitens real images as the set's preprocessing does: minus mean, unit norm, times the matrix."""
    world = worlds["zca"]
    export(set_of(world), "npz", tmp_path / "set.npz")
    with np.load(tmp_path / "set.npz", allow_pickle=False) as arrays:
        assert str(arrays["space"]) == "whitened"
        assert json.loads(str(arrays["preprocessing"]))["kind"] == "zca"
        assert json.loads(str(arrays["protocol"]))["optimizer"]["name"] == "adam"
        assert arrays["classes"].tolist() == [0, 0, 1, 1, 2, 2]
        flat = world.pixels_NCHW.numpy().reshape(6, -1)
        flat = flat - flat.mean(axis=1, keepdims=True)
        flat /= np.linalg.norm(flat, axis=1, keepdims=True)
        whitened = flat @ arrays["preprocessing_whiten_DD"]
    assert np.abs(whitened - world.whitened_NCHW.numpy().reshape(6, -1)).max() < 1e-4


@pytest.mark.parametrize("form", ["npz", "pt", "png", "parquet"])
def test_the_printed_code_loads_it(worlds: dict[str, World], tmp_path: Path, form: Any) -> None:
    """The Python that is printed runs, and finds six of everything."""
    path = tmp_path / {"png": "set"}.get(form, f"set.{form}")
    code = export(set_of(worlds["zca"]), form, path).code
    assert len(code) == 2
    names: dict[str, Any] = {}
    exec("\n".join(code), names)
    match form:
        case "npz":
            assert names["arrays"]["images"].shape == (6, 3, 4, 6)
        case "pt":
            assert names["contents"]["images"].shape == (6, 3, 4, 6)
        case "png":
            assert names["pictures"].classes == list(CLASSES)
            assert [k for _, k in names["pictures"].samples] == [0, 0, 1, 1, 2, 2]
        case "parquet":
            assert names["table"].column("label").to_pylist() == [0, 0, 1, 1, 2, 2]


def test_hubs_find_the_features_of_the_columns(worlds: dict[str, World], tmp_path: Path) -> None:
    """The metadata by which viewers know an image from a struct and a class from a number; PNGs that open."""
    export(set_of(worlds["zca"]), "parquet", tmp_path / "set.parquet")
    table = pq.read_table(tmp_path / "set.parquet")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features == {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(CLASSES)}}
    import io

    first = table.column("image").to_pylist()[0]
    with Image.open(io.BytesIO(first["bytes"])) as picture:
        assert picture.size == (6, 4)
        assert picture.mode == "RGB"
    assert first["path"] == "cat-0.png"


def test_grey_images_and_odd_class_names(tmp_path: Path) -> None:
    """One channel stays one; names that no folder can have give numbered folders, read back as such."""
    grey = make_world(tmp_path, "none", (1, 5, 4))
    export(set_of(grey), "png", tmp_path / "grey")
    with Image.open(tmp_path / "grey" / "cat" / "0.png") as picture:
        assert picture.mode == "L"
    assert torch.equal(again(grey, tmp_path / "grey", "pixels").images_NCHW, grey.pixels_NCHW)
    export(set_of(grey, class_names=("a/b", "..", "Cat")), "png", tmp_path / "numbered")
    assert sorted(p.name for p in (tmp_path / "numbered").iterdir()) == ["0", "1", "2"]
    assert torch.equal(again(grey, tmp_path / "numbered", "pixels").images_NCHW, grey.pixels_NCHW)


@pytest.mark.parametrize(
    "odd",
    [("cat ", "dog"), ("cat", "Cat"), (".cat", "dog")],
    ids=["a space at its end", "case alone", "hidden"],
)
def test_names_that_are_not_valid_folder_names_give_indices(tmp_path: Path, odd: tuple[str, ...]) -> None:
    """Eleven of each: numbers of classes and images are filled up with zeros, so that names sort as numbers do."""
    names = (*odd, *(f"class {i}" for i in range(9)))
    grey = make_world(tmp_path, "none", (1, 2, 2))
    dataset = set_of(
        grey, images_NCHW=torch.rand(11, 1, 2, 2), labels_NK=torch.eye(11), class_names=names, protocol={}
    )
    code = export(dataset, "png", tmp_path / "set").code
    found = sorted(str(p.relative_to(tmp_path / "set")) for p in (tmp_path / "set").rglob("*.png"))
    assert found == [f"{k:02}/{k:02}.png" for k in range(11)]
    assert code[-1].endswith("00, 01, 02, 03, 04, 05, 06, 07, 08, 09, ..")


def test_a_full_disk_leaves_nothing(
    worlds: dict[str, World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third picture cannot be written: no folder, and no temporary one."""
    write, written = Path.write_bytes, list[Path]()

    def full(self: Path, data: bytes) -> int:
        written.append(self)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        export(set_of(worlds["none"]), "png", tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_pixels_come_without_preprocessing(worlds: dict[str, World], tmp_path: Path) -> None:
    """With its matrix beside them, pixels would be taken for whitened values."""
    for space in ("pixels", "whitened"):
        export(set_of(worlds["zca"]), "npz", tmp_path / f"{space}.npz", space)
        with np.load(tmp_path / f"{space}.npz", allow_pickle=False) as arrays:
            assert ("preprocessing_whiten_DD" in arrays.files) == (space == "whitened")


@pytest.mark.parametrize(
    ("form", "name", "space", "says"),
    [
        ("npz", "taken.npz", None, "exists; nothing was written"),
        ("png", "taken.npz", None, "exists; nothing was written"),
        ("pt", "set.npz", None, "a pt file must end in .pt"),
        ("pt", "no/set.pt", None, "there is no folder"),
        ("png", "set", "whitened", "png stores pictures"),
        ("parquet", "set.parquet", "whitened", "parquet stores pictures"),
    ],
)
def test_what_cannot_be_written(
    worlds: dict[str, World], tmp_path: Path, form: Any, name: str, space: Any, says: str
) -> None:
    (tmp_path / "taken.npz").write_text("precious")
    with pytest.raises(UserError, match=re.escape(says)):
        export(set_of(worlds["zca"]), form, tmp_path / name, space)
    assert [p.name for p in tmp_path.iterdir()] == ["taken.npz"]
    assert (tmp_path / "taken.npz").read_text() == "precious"


def test_images_that_cannot_be_pictures(tmp_path: Path) -> None:
    """Five channels: no PNG, and arrays."""
    five = make_world(tmp_path, "none", (5, 3, 4))
    with pytest.raises(UserError, match="1 or 3 channels, the set has 5"):
        export(set_of(five), "png", tmp_path / "set")
    export(set_of(five), "npz", tmp_path / "set.npz")


@pytest.fixture
def folder(worlds: dict[str, World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of each kind beside the configuration that goes with it; the current folder."""
    world = worlds["zca"]
    (tmp_path / "like.yaml").write_text(yaml.safe_dump(world.config.to_dict()))
    flat = world.whitened_NCHW.reshape(6, -1).numpy()
    np.savez(tmp_path / "flat.npz", images=flat, labels=world.labels_N.numpy())
    np.savez(tmp_path / "object.npz", images=flat, extra=np.array([{}], dtype=object))
    torch.save({"images": world.whitened_NCHW, "extra": Path}, tmp_path / "object.pt")
    set_of(world).save(tmp_path / "ours.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_import_then_export_on_the_command_line(worlds: dict[str, World], folder: Path) -> None:
    """A flat file becomes a set that says what it is; exported, it says how it is loaded."""
    arguments = ["--like", "like.yaml", "--space", "whitened", "--layout", "channels-first"]
    result = runner.invoke(app, ["import", "flat.npz", *arguments, "--out", "set.parquet"])
    assert result.exit_code == 0, result.output
    for part in (
        "6 images of 3x4x6",
        "cat, dog, owl",
        "channels-first",
        "mean norm",
        "written to set.parquet",
    ):
        assert part in result.stdout, part
    dataset = DistilledDataset.load(folder / "set.parquet")
    assert torch.equal(dataset.images_NCHW, worlds["zca"].whitened_NCHW)
    result = runner.invoke(app, ["export", "set.parquet", "--to", "png", "--out", "pictures"])
    assert result.exit_code == 0, result.output
    for part in ("pictures: 6 images", "clipped: ", "ImageFolder("):
        assert part in result.stdout, part
    assert len(list((folder / "pictures").glob("*/*.png"))) == 6


STATED = ["--like", "like.yaml", "--space", "whitened"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["import", "flat.npz", *STATED, "--out", "set.parquet"], "--layout channels-first or"),
        (["import", "flat.npz", *STATED, "--out", "set.npz"], "must end in .parquet"),
        (["import", "flat.npz", *STATED, "--out", "no/set.parquet"], "folder no does not exist"),
        (["import", "flat.npz", *STATED, "--out", "ours.parquet"], "exists; nothing was written"),
        (["import", "flat.npz", "--out", "set.parquet"], "pass --like CONFIG.yaml"),
        (["import", "flat.npz", "--space", "pixels", "--out", "set.parquet"], "no effect without --like"),
        (["import", "flat.npz", "--like", "like.yaml", "--out", "set.parquet"], "needs --space"),
        (["import", "flat.npz", "--like", "no.yaml", "--space", "pixels", "--out", "a.parquet"], "no.yaml"),
        (["import", "no.npz", *STATED, "--out", "set.parquet"], "no.npz: no such file or folder"),
        (["import", "ours.parquet", *STATED, "--out", "set.parquet"], "already in this format"),
        (["import", "object.npz", *STATED, "--out", "set.parquet"], "pickled objects, which are never read"),
        (["import", "object.pt", *STATED, "--out", "set.parquet"], "pickled objects, which are never read"),
        (["import", "flat.npz", *STATED, "--set", "data.limit=0", "--out", "a.parquet"], "data.limit"),
        (["import", "flat.npz", "--set", "data.limit=9", "--out", "a.parquet"], "no effect without --like"),
        (["export", "no.parquet", "--to", "npz", "--out", "a.npz"], "no.parquet"),
        (["export", "flat.npz", "--to", "npz", "--out", "a.npz"], "not an intact distilled dataset"),
        (["export", "ours.parquet", "--to", "npz", "--out", "flat.npz"], "exists; nothing was written"),
        (["export", "ours.parquet", "--to", "png", "--out", "like.yaml"], "exists; nothing was written"),
        (["export", "ours.parquet", "--to", "pt", "--out", "a.npz"], "must end in .pt"),
        (["export", "ours.parquet", "--to", "png", "--space", "whitened", "--out", "a"], "stores pictures"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(
    folder: Path, arguments: list[str], says: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
