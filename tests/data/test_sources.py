"""Development data: what is read, in which order, and what each kind of unusable data is told."""

import ast
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ray_distill.data.labelled_images import DataError
from ray_distill.data.sources import load_development
from ray_distill.data.spec import DataSpec
from tests.helpers.hub_files import encode, plain_images, write_images

PACKAGE = Path(__file__).resolve().parents[2] / "ray_distill"
CIFAR10 = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "cifar10"


def test_digits_are_the_published_ones_less_a_fifth() -> None:
    """1,797 digits; a fifth of each class (178, 182, 177, 183, 181, 182, 181, 179, 174, 180), rounded, is test:
    36, 36, 35, 37, 36, 36, 36, 36, 35, 36 = 359, which leaves 1,438. 16 grey levels above 0."""
    digits = load_development(DataSpec(source="digits"))
    assert digits.images_NCHW.shape == (1438, 1, 8, 8)
    assert torch.bincount(digits.labels_N).tolist() == [142, 146, 142, 146, 145, 146, 145, 143, 139, 144]
    assert digits.images_NCHW.dtype == torch.uint8
    assert digits.labels_N.dtype == torch.int64
    assert digits.class_names == tuple("0123456789")
    pixels = digits.pixels(torch.arange(1438))
    assert (pixels.min().item(), pixels.max().item()) == (0.0, 1.0)


def test_a_folder_gives_its_train_files_in_order_of_name(tmp_path: Path) -> None:
    """Two train files and a test file that is garbage: row i holds 10 i + channel, and test is never opened."""
    encoded = plain_images()
    write_images(tmp_path / "train-00001-of-00002.parquet", encoded[6:], [0, 1, 0, 1])
    path = write_images(tmp_path / "train-00000-of-00002.parquet", encoded[:6], [0, 1, 0, 1, 0, 1])
    (path.parent / "test-00000-of-00001.parquet").write_bytes(b"garbage")
    seen: list[tuple[str, int, int]] = []
    images = load_development(DataSpec(source=f"parquet:{path.parent}"), lambda *said: seen.append(said))
    assert images.images_NCHW[:, :, 0, 0].tolist() == [[10 * i, 10 * i + 1, 10 * i + 2] for i in range(10)]
    assert images.image_shape == (3, 3, 5)
    assert images.labels_N.tolist() == [0, 1] * 5
    assert images.class_names == ("0", "1")
    assert images.pixels(torch.tensor([3]))[0, 2].unique().tolist() == [pytest.approx(32 / 255)]
    assert seen == [("decoding", 6, 10), ("decoding", 10, 10)]


def test_one_file_and_a_pattern_are_training_data(tmp_path: Path) -> None:
    """A file alone gives its rows; a pattern gives those of all its matches; `img` is read as `image`."""
    first = write_images(tmp_path / "part-1.parquet", plain_images()[:4], [0, 1, 0, 1], column="img")
    write_images(tmp_path / "part-2.parquet", plain_images()[4:], [0, 1] * 3)
    assert len(load_development(DataSpec(source=f"parquet:{first}"))) == 4
    assert len(load_development(DataSpec(source=f"parquet:{first.parent}/part-*.parquet"))) == 10


def test_order_survives_batches_and_threads(tmp_path: Path) -> None:
    """3,000 one-pixel images, more than two batches of rows: image i holds i mod 251."""
    encoded = [encode(np.full((1, 1), i % 251, np.uint8)) for i in range(3000)]
    path = write_images(tmp_path / "train.parquet", encoded, [i % 3 for i in range(3000)], row_group_size=700)
    images = load_development(DataSpec(source=f"parquet:{path}"))
    assert images.images_NCHW.flatten().tolist() == [i % 251 for i in range(3000)]


def test_greyscale_stays_one_channel_and_is_spread_beside_colour(tmp_path: Path) -> None:
    """Two grey images give [2, 1, 2, 2]; followed by a red one all have three channels, the grey ones equal."""
    grey = [encode(np.full((2, 2), level, np.uint8)) for level in (40, 90)]
    red = encode(np.array([[[255, 0, 0]] * 2] * 2, np.uint8))
    alone = load_development(
        DataSpec(source=f"parquet:{write_images(tmp_path / 'grey.parquet', grey, [0, 1])}")
    )
    assert alone.images_NCHW[:, :, 0, 0].tolist() == [[40], [90]]
    mixed = load_development(
        DataSpec(source=f"parquet:{write_images(tmp_path / 'mixed.parquet', [*grey, red], [0, 1, 0])}")
    )
    assert mixed.images_NCHW[:, :, 0, 0].tolist() == [[40, 40, 40], [90, 90, 90], [255, 0, 0]]


def test_jpeg_is_decoded(tmp_path: Path) -> None:
    """A uniform grey 8x8 block survives JPEG to within 2 levels: its one coefficient is quantised finely."""
    path = write_images(tmp_path / "train.parquet", [encode(np.full((8, 8, 3), 128, np.uint8), "JPEG")], [0])
    difference = load_development(DataSpec(source=f"parquet:{path}")).images_NCHW.int() - 128
    assert difference.abs().max().item() <= 2


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"class_names": "cat,dog,owl"}, ("cat", "dog", "owl")),
        (
            {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["a", "b", "c"]}}}})},
            ("a", "b", "c"),
        ),
        (
            {"huggingface": json.dumps({"info": {"features": {"label": {"dtype": "int64"}}}})},
            ("0", "1", "2"),
        ),
        (None, ("0", "1", "2")),
    ],
)
def test_class_names(tmp_path: Path, metadata: dict[str, str] | None, expected: tuple[str, ...]) -> None:
    """Both kinds of metadata are read; without names the classes are numbered."""
    black = encode(np.zeros((2, 2), np.uint8))
    path = write_images(tmp_path / "train.parquet", [black] * 3, [0, 1, 2], metadata=metadata)
    assert load_development(DataSpec(source=f"parquet:{path}")).class_names == expected


def test_a_limit_is_balanced_nested_and_decodes_nothing_else(tmp_path: Path) -> None:
    """60 images of class 0 and 20 of class 1. A limit of 10 keeps 5 + 5; 50 keeps 30 + 20, the 10 among them.
    With all other images broken, the limit of 10 still loads: they are never decoded."""
    labels = [0 if i % 4 else 1 for i in range(80)]
    encoded: list[bytes | None] = [encode(np.full((1, 1), i, np.uint8)) for i in range(80)]
    path = write_images(tmp_path / "train.parquet", encoded, labels, row_group_size=16)
    few = load_development(DataSpec(source=f"parquet:{path}", limit=10))
    many = load_development(DataSpec(source=f"parquet:{path}", limit=50))
    few_rows = few.images_NCHW.flatten().tolist()
    assert torch.bincount(few.labels_N).tolist() == [5, 5]
    assert few.labels_N.tolist() == [labels[row] for row in few_rows]
    assert torch.bincount(many.labels_N).tolist() == [30, 20]
    assert set(few_rows) < set(many.images_NCHW.flatten().tolist())
    assert few_rows == sorted(few_rows)
    broken = [b if i in few_rows else b"broken" for i, b in enumerate(encoded)]
    path = write_images(tmp_path / "train.parquet", broken, labels, row_group_size=16)
    assert (
        load_development(DataSpec(source=f"parquet:{path}", limit=10)).images_NCHW.flatten().tolist()
        == few_rows
    )
    with pytest.raises(DataError, match="decoded"):
        load_development(DataSpec(source=f"parquet:{path}", limit=50))


def test_a_limit_counts_rows_through_all_files(tmp_path: Path) -> None:
    """Image i of 20 holds i and has class i mod 2; 12 lie in one file, 8 in the next. Split or whole, a limit of
    10 keeps the same images, each with its label, and some of them are in the second file."""
    encoded = [encode(np.full((1, 1), i, np.uint8)) for i in range(20)]
    labels = [i % 2 for i in range(20)]
    whole = load_development(
        DataSpec(source=f"parquet:{write_images(tmp_path / 'whole.parquet', encoded, labels)}", limit=10)
    )
    write_images(tmp_path / "train-0.parquet", encoded[:12], labels[:12])
    write_images(tmp_path / "train-1.parquet", encoded[12:], labels[12:])
    kept = load_development(DataSpec(source=f"parquet:{tmp_path}", limit=10))
    rows = kept.images_NCHW.flatten()
    assert torch.equal(kept.labels_N, rows.long() % 2)
    assert rows.max().item() >= 12
    assert torch.equal(rows, whole.images_NCHW.flatten())


def test_a_limit_of_digits_is_balanced() -> None:
    """30 of ten classes: 3 of each; more than there are: all."""
    assert torch.bincount(load_development(DataSpec(source="digits", limit=30)).labels_N).tolist() == [3] * 10
    assert len(load_development(DataSpec(source="digits", limit=5000))) == 1438
    with pytest.raises(
        DataError, match=r"data\.limit: must be at least one image for each of the 10 classes \(got 9\)"
    ):
        load_development(DataSpec(source="digits", limit=9))
    with pytest.raises(DataError, match=r"limit must be at least 1, .*got 0"):
        load_development(DataSpec(source="digits", limit=0))


GREY = encode(np.zeros((2, 2), np.uint8))


@pytest.mark.parametrize(
    ("encoded", "labels", "metadata", "message"),
    [
        ([GREY, GREY[:40]], [0, 1], None, r"train\.parquet, row 1: the image cannot be decoded"),
        ([GREY, b"no image"], [0, 1], None, r"row 1: the image cannot be decoded"),
        ([GREY, None], [0, 1], None, r"row 1: the image is empty"),
        ([GREY, encode(np.zeros((2, 3), np.uint8))], [0, 1], None, r"row 1: the image is 2x3 .*, .* 2x2"),
        ([encode(np.zeros((2, 2), np.uint16))], [0], None, r"row 0: the image has mode I;16"),
        (
            [GREY, GREY],
            [0, -1],
            None,
            r"row 1: label -1 is out of range; with 1 classes labels must be in 0 \.\. 0",
        ),
        ([GREY, GREY], [0, 2], {"class_names": "a,b"}, r"row 1: label 2 is out of range; .* 0 \.\. 1"),
        ([GREY, GREY], [0, 2], None, r"no images of class\(es\) 1"),
        ([GREY, GREY], [0, 1], {"class_names": "a,b,c"}, r"no images of class\(es\) c"),
        ([GREY, GREY], [0, None], None, r"1 row\(s\) have no label"),
        ([], [], None, r"there are no images"),
        ([GREY], [0], {"huggingface": "{}"}, r"`huggingface` metadata do not describe"),
        ([GREY], [0], {"huggingface": "{"}, r"`huggingface` metadata do not describe"),
    ],
)
def test_unusable_rows_are_named(
    tmp_path: Path,
    encoded: list[bytes | None],
    labels: list[int | None],
    metadata: dict[str, str] | None,
    message: str,
) -> None:
    """Each fault is a DataError that says which file and row, and what is allowed."""
    path = write_images(tmp_path / "train.parquet", encoded, labels, metadata=metadata)
    with pytest.raises(DataError, match=message):
        load_development(DataSpec(source=f"parquet:{path}"))


def test_unusable_files_are_named(tmp_path: Path) -> None:
    """Columns that are missing or of a wrong type, and a file that is not Parquet."""
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"picture": [b""], "label": [0]}), path)
    with pytest.raises(DataError, match=r"must have the columns `image` .*; got picture, label"):
        load_development(DataSpec(source=f"parquet:{tmp_path}"))
    pq.write_table(pa.table({"image": [b""], "label": [0]}), path)
    with pytest.raises(DataError, match=r"column `image` must be struct.*, got binary"):
        load_development(DataSpec(source=f"parquet:{tmp_path}"))
    pq.write_table(pa.table({"image": [{"bytes": b""}], "label": ["cat"]}), path)
    with pytest.raises(DataError, match="column `label` must be int64, got string"):
        load_development(DataSpec(source=f"parquet:{tmp_path}"))
    path.write_bytes(b"garbage")
    with pytest.raises(DataError, match=r"train\.parquet cannot be read as a Parquet file"):
        load_development(DataSpec(source=f"parquet:{tmp_path}"))


def test_files_that_disagree_on_the_classes(tmp_path: Path) -> None:
    """Labels of two files mean the same only if their class names do."""
    write_images(tmp_path / "train-0.parquet", [GREY], [0], metadata={"class_names": "cat"})
    path = write_images(tmp_path / "train-1.parquet", [GREY], [0], metadata={"class_names": "dog"})
    with pytest.raises(DataError, match="have different class names"):
        load_development(DataSpec(source=f"parquet:{path.parent}"))


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    """Unknown names, missing paths, folders without training files."""
    for source in ("kmnist", "mnist:x", "parquet:", "parquet", "csv:x"):
        with pytest.raises(
            DataError, match=r"unknown source of data .*; must be one of digits, mnist, .*parquet:PATH"
        ):
            load_development(DataSpec(source=source))
    with pytest.raises(DataError, match="absent does not exist, and no file matches"):
        load_development(DataSpec(source=f"parquet:{tmp_path / 'absent'}"))
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(DataError, match=r"has no train\*\.parquet; it contains: readme\.txt"):
        load_development(DataSpec(source=f"parquet:{tmp_path}"))


def test_test_files_are_refused_as_development_data(tmp_path: Path) -> None:
    """Neither by name nor by a pattern that takes them in does a file `test*` become training data."""
    write_images(tmp_path / "train.parquet", [GREY], [0])
    path = write_images(tmp_path / "test.parquet", [GREY], [0])
    for source in (f"parquet:{path}", f"parquet:{path.parent}/*.parquet"):
        with pytest.raises(DataError, match="test data by its name"):
            load_development(DataSpec(source=source))


def test_importing_the_package_loads_no_reader() -> None:
    """PIL, pyarrow and scikit-learn are imported inside the functions that need them, never at a module's top."""
    modules = [*(PACKAGE / "data").rglob("*.py"), PACKAGE / "artifacts" / "dataset.py"]
    assert len(modules) >= 8
    for module in modules:
        for node in ast.parse(module.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names]
                roots = {str(name).partition(".")[0] for name in names}
                assert not roots & {"PIL", "pyarrow", "sklearn", "torchvision"}, (
                    f"{module.name} imports {roots}"
                )


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="the CIFAR-10 copy ../shared/data/cifar10 is not there")
def test_cifar10_loads() -> None:
    """500 of the real images: 50 of each named class, with the brightness of natural pictures."""
    images = load_development(DataSpec(source=f"parquet:{CIFAR10}", limit=500))
    assert images.images_NCHW.shape == (500, 3, 32, 32)
    assert torch.bincount(images.labels_N).tolist() == [50] * 10
    assert images.class_names[:3] == ("airplane", "automobile", "bird")
    assert images.pixels(torch.arange(500)).mean().item() == pytest.approx(0.47, abs=0.03)
