"""The artefact: what is saved is loaded bit for bit, or not at all."""

import errno
import json
import random
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import ray_distill
from ray_distill.artifacts.dataset import DistilledDataset, provenance
from ray_distill.artifacts.parquet import ArtifactError
from ray_distill.data.preprocessing import KINDS, fit_preprocessing


def random_images(num_images: int, seed: int) -> Tensor:
    return torch.rand(num_images, 3, 2, 2, generator=torch.Generator().manual_seed(seed))


def make_dataset(kind: str = "zca", **changes: Any) -> DistilledDataset:
    """Seven images of three classes; seven does not divide the bytes of the whitening matrix."""
    fields: dict[str, Any] = {
        "images_NCHW": random_images(7, seed=0) - 0.5,
        "labels_NK": torch.rand(7, 3, generator=torch.Generator().manual_seed(1)),
        "class_names": ("cat", "dog", "owl"),
        "preprocessing": fit_preprocessing(kind, [random_images(50, seed=2)], zca_shrinkage=0.1),
        "protocol": {
            "network": "convnet3",
            "optimizer": {"name": "adam", "lr": 1e-3},
            "horizons": [300, 600],
        },
        "config": {"outer_lr": 0.1 + 0.2, "learn_labels": True},
        "config_hash": "5f0c",
        "provenance": {"seed": 3, "outer_steps": 100},
    }
    return DistilledDataset(**{**fields, **changes})


def same(one: DistilledDataset, other: DistilledDataset) -> bool:
    """Equal bit for bit, in what the datasets hold and in what their preprocessing does."""
    plain = ("class_names", "protocol", "config", "config_hash", "provenance")
    real = random_images(5, seed=4)
    return (
        torch.equal(one.images_NCHW, other.images_NCHW)
        and torch.equal(one.labels_NK, other.labels_NK)
        and all(getattr(one, name) == getattr(other, name) for name in plain)
        and one.preprocessing.describe() == other.preprocessing.describe()
        and torch.equal(one.preprocess(real), other.preprocess(real))
        and torch.equal(one.to_pixels(), other.to_pixels())
    )


def rewrite(path: Path, *, header: dict[str, Any] | None = None, **columns: Any) -> None:
    """Write the file again with fields of its header or whole columns replaced; the digest stays."""
    table = pq.read_table(path)
    changed = {**json.loads(table.schema.metadata[b"ray_distill"]), **(header or {})}
    for name, values in columns.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(index), values)
    table = table.replace_schema_metadata({"ray_distill": json.dumps(changed)})
    pq.write_table(table, path, compression="none", use_dictionary=False)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_exact(tmp_path: Path, kind: str) -> None:
    """Tensors, text, and the results of preprocess and to_pixels are the same bits after loading."""
    dataset = make_dataset(kind)
    dataset.save(tmp_path / "set.parquet")
    assert same(DistilledDataset.load(tmp_path / "set.parquet"), dataset)
    assert [p.name for p in tmp_path.iterdir()] == ["set.parquet"], "no temporary file is left"


def test_it_is_a_torch_dataset() -> None:
    """Item i is (image, label probabilities), iteration ends, and a DataLoader stacks them."""
    dataset = make_dataset()
    image, label = dataset[2]
    assert torch.equal(image, dataset.images_NCHW[2])
    assert torch.equal(label, dataset.labels_NK[2])
    images, labels = next(iter(DataLoader(dataset, batch_size=7)))
    assert torch.equal(images, dataset.images_NCHW)
    assert torch.equal(labels, dataset.labels_NK)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_columns_are_readable_without_us(tmp_path: Path) -> None:
    """pyarrow alone reads images and labels; the chunks of the whitening matrix join to its 12 * 12 floats."""
    dataset = make_dataset()
    dataset.save(tmp_path / "set.parquet")
    table = pq.read_table(tmp_path / "set.parquet", columns=["image", "label"])
    images = table.column("image").combine_chunks().to_numpy_ndarray()
    assert torch.equal(torch.from_numpy(images.copy()), dataset.images_NCHW)
    assert table.column("label").to_pylist() == dataset.labels_NK.argmax(dim=1).tolist()
    chunks = pq.read_table(tmp_path / "set.parquet", columns=["preprocessing_chunk"]).column(0).to_pylist()
    assert len(b"".join(chunks)) == 4 * 12 * 12
    # 576 bytes in 7 pieces: six of 83 and the rest, 78.
    assert [len(chunk) for chunk in chunks] == [83] * 6 + [78]


def test_saving_replaces_the_file_or_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second save replaces the first; one that dies while writing leaves the old file and nothing else."""
    path = tmp_path / "set.parquet"
    make_dataset("none").save(path)
    newer = make_dataset("normalise")
    newer.save(path)
    assert same(DistilledDataset.load(path), newer)

    def full_disk(_table: object, file: Any, **_: object) -> None:
        file.write(b"PAR1 half of it")
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(OSError, match=r"no space left on device: '.*/set\.parquet'"):
        make_dataset("zca").save(path)
    assert same(DistilledDataset.load(path), newer)
    assert [p.name for p in tmp_path.iterdir()] == ["set.parquet"]


def test_the_description_answers_how_to_use_it() -> None:
    """One screen with the preprocessing, the protocol and where it came from; the repr is one line."""
    dataset = make_dataset()
    text = str(dataset)
    for part in (
        "7 images of 3x2x2",
        "cat, dog, owl",
        "zca",
        "preprocess(pixels",
        "to_pixels()",
        "network: convnet3",
    ):
        assert part in text
    for part in ("outer_steps: 100", "config hash: 5f0c"):
        assert part in text
    assert len(text.splitlines()) <= 24
    assert repr(dataset) == (
        "<DistilledDataset 7x3x2x2, 3 classes, preprocessing zca; print() it to see how to use it>"
    )


def test_provenance_names_versions_and_time() -> None:
    """The facts given and the versions that run, as plain data that a dataset accepts."""
    facts = provenance(seed=1, outer_steps=20)
    assert (facts["seed"], facts["outer_steps"], facts["torch"]) == (1, 20, torch.__version__)
    assert set(facts) == {"seed", "outer_steps", "ray_distill", "torch", "python", "created"}
    assert make_dataset(provenance=facts).provenance == facts


def test_nothing_asks_for_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster it may be a job's working folder alone."""

    def installed(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", installed)
    assert provenance()["ray_distill"] == ray_distill.__version__


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images_NCHW": torch.zeros(7, 3, 2, 2, dtype=torch.float64)},
            "images_NCHW must be float32 .* got torch.float64",
        ),
        ({"images_NCHW": torch.zeros(7, 12)}, "must be float32 with 4 axes"),
        ({"images_NCHW": torch.zeros(0, 3, 2, 2)}, "not empty"),
        (
            {"images_NCHW": torch.full((7, 3, 2, 2), torch.nan)},
            "images_NCHW has values that are not finite",
        ),
        ({"labels_NK": torch.full((7, 3), torch.inf)}, "labels_NK has values that are not finite"),
        ({"labels_NK": torch.zeros(6, 3)}, "7 images, 6 rows"),
        ({"class_names": ("cat", "dog")}, "3 label probabilities, 2 class names"),
        ({"images_NCHW": torch.zeros(7, 3, 2, 3)}, "the preprocessing does not fit"),
        ({"protocol": {"lr": float("nan")}}, "protocol is not plain data"),
        ({"config": {"shape": (3, 2)}}, "config is not plain data: .* lists for tuples"),
        ({"config": {"device": torch.device("cpu")}}, "config is not plain data"),
        ({"provenance": {1: "x"}}, "provenance is not plain data"),
    ],
)
def test_invalid_values(changes: dict[str, Any], message: str) -> None:
    """What could not be saved and loaded is refused at construction."""
    with pytest.raises(ArtifactError, match=message):
        make_dataset(**changes)


def test_truncated_files(tmp_path: Path) -> None:
    """Cut at 40 places from empty to one byte short."""
    path = tmp_path / "set.parquet"
    make_dataset().save(path)
    whole = path.read_bytes()
    for length in [0, 1, 4, 8, *range(12, len(whole) - 1, len(whole) // 35), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match=r"set\.parquet is not an intact distilled dataset: \S"):
            DistilledDataset.load(path)


def test_mutated_files(tmp_path: Path) -> None:
    """200 files with one byte changed: an ArtifactError, or (a byte without meaning to us) the same dataset.
    About a sixth of the bytes are of the second kind: the writer's name, paddings, offsets that go unread."""
    path = tmp_path / "set.parquet"
    dataset = make_dataset()
    dataset.save(path)
    whole = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(200):
        place = draw.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ draw.randrange(1, 256)]) + whole[place + 1 :])
        try:
            assert same(DistilledDataset.load(path), dataset)
        except ArtifactError:
            refused += 1
    assert 100 < refused < 200


def test_the_digest_detects_a_change_that_parquet_accepts(tmp_path: Path) -> None:
    """One image value, one label, one chunk, one entry of the protocol: each rewritten as a valid file."""
    path = tmp_path / "set.parquet"
    dataset = make_dataset()
    other = make_dataset(images_NCHW=dataset.images_NCHW.clone().index_fill_(0, torch.tensor([3]), 0.5))
    other.save(path)
    other_image = pq.read_table(path).column("image")
    dataset.save(path)
    table = pq.read_table(path)
    chunks = table.column("preprocessing_chunk").to_pylist()
    chunks[0] = bytes(83)
    changes: tuple[dict[str, Any], ...] = (
        {"image": other_image},
        {"preprocessing_chunk": pa.array(chunks, pa.binary())},
        {"header": {"protocol": {"network": "convnet4"}}},
        {"header": {"class_names": ["dog", "cat", "owl"]}},
    )
    for change in changes:
        dataset.save(path)
        rewrite(path, **change)
        with pytest.raises(ArtifactError, match="do not match their digest"):
            DistilledDataset.load(path)
    dataset.save(path)
    rewrite(path, label=pa.array([0] * 7, pa.int64()))
    with pytest.raises(ArtifactError, match="`label` is not the most probable class"):
        DistilledDataset.load(path)
    dataset.save(path)
    rewrite(path)
    assert same(DistilledDataset.load(path), dataset), "rewriting as such is no change"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"format": 2}, "it has format version 2; this version of ray_distill reads 1"),
        ({"format": None}, "it has format version None"),
        ({"num_images": 10**15}, "it declares more data than it contains"),
        ({"image_shape": [3, 10**9, 10**9]}, "it declares more data than it contains"),
        (
            {"preprocessing_tensors": [["whiten_DD", [10**7, 10**7]]]},
            "it declares more data than it contains",
        ),
        ({"image_shape": [3, 2, 1]}, "its columns do not match its metadata"),
        ({"num_images": 6}, "it has 7 rows, but its metadata declares 6"),
        ({"num_images": True}, "not a positive integer"),
        ({"image_shape": [3, -2, -2]}, "not a positive integer"),
        ({"image_shape": 12}, "is not a shape of 3 axes"),
        ({"class_names": 3}, "its class names and hash must be strings"),
        ({"class_names": "abc"}, "its class names and hash must be strings"),
        ({"class_names": ["cat", "dog", 3]}, "its class names and hash must be strings"),
        ({"config_hash": 5}, "its class names and hash must be strings"),
    ],
)
def test_invalid_headers(tmp_path: Path, header: dict[str, Any], message: str) -> None:
    """Another version, sizes beyond the file's, invalid shapes: refused before anything is read."""
    path = tmp_path / "set.parquet"
    make_dataset().save(path)
    rewrite(path, header=header)
    with pytest.raises(ArtifactError, match=message):
        DistilledDataset.load(path)


def test_foreign_files(tmp_path: Path) -> None:
    """Absent, a folder, not Parquet, Parquet of others, and ours with metadata that is not JSON or lacks a key."""
    path = tmp_path / "set.parquet"
    with pytest.raises(ArtifactError, match="is not a file"):
        DistilledDataset.load(path)
    with pytest.raises(ArtifactError, match="is not a file"):
        DistilledDataset.load(tmp_path)
    path.write_text("a text")
    with pytest.raises(ArtifactError, match="is not an intact distilled dataset"):
        DistilledDataset.load(path)
    foreign = pa.table({"image": [1.0], "label": [0]})
    for metadata, message in (
        (None, "its metadata has no `ray_distill`"),
        ({"ray_distill": "{"}, "is not an intact distilled dataset"),
        ({"ray_distill": "[1]"}, "format version None"),
        ({"ray_distill": '{"format": 1, "num_images": 1}'}, "its metadata lacks image_shape, class_names"),
    ):
        pq.write_table(foreign.replace_schema_metadata(metadata), path)
        with pytest.raises(ArtifactError, match=message):
            DistilledDataset.load(path)


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    """The missing folder is named."""
    with pytest.raises(ArtifactError, match=r"absent/set\.parquet cannot be written"):
        make_dataset().save(tmp_path / "absent" / "set.parquet")
