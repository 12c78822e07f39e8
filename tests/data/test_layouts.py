"""Every source: what its development data and its test data are, in the layout that its archive unpacks to."""

import ast
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_distill.config import data
from ray_distill.data import sources, test_split
from ray_distill.data.downloads import Download
from ray_distill.data.formats import cifar
from ray_distill.data.formats import mnist as formats_mnist
from ray_distill.data.labelled_images import DataError, LabelledImages
from ray_distill.data.sources import load_development
from ray_distill.data.spec import DataSpec
from ray_distill.data.test_split import check_test, load_test
from tests.helpers import source_files
from tests.helpers.hub_files import encode, write_images
from tests.helpers.source_files import BIRDS, SOURCES, WNIDS, class_folders, picture

PACKAGE = Path(__file__).resolve().parents[2] / "ray_distill"


def made(name: str, root: Path, **values: object) -> DataSpec:
    """The spec of a small source of that name, which is made in the folder."""
    make, source, size = SOURCES[name]
    make(root)
    return DataSpec(source=source.format(root=root), root=str(root), image_size=size, **values)  # type: ignore[arg-type]


def values(images: LabelledImages) -> list[int]:
    """The first value of each image."""
    firsts: list[int] = images.images_NCHW[:, 0, 0, 0].tolist()
    return firsts


EXPECTED = {
    "mnist": ((20, 1, 28, 28), 10, 10),
    "fashion-mnist": ((20, 1, 28, 28), 10, 10),
    "cifar10": ((20, 3, 32, 32), 10, 10),
    "cifar100": ((100, 3, 32, 32), 100, 30),
    "tiny-imagenet": ((12, 3, 64, 64), 3, 6),
    "cub200": ((6, 3, 32, 32), 2, 4),
    "imagenet": ((9, 3, 64, 64), 3, 9),
    "folder": ((6, 3, 4, 4), 2, 6),
    "parquet": ((6, 1, 4, 4), 2, 6),
    "npz": ((6, 1, 5, 4), 2, 4),
    "torch": ((6, 5, 4, 4), 2, 4),
}


@pytest.mark.parametrize("name", SOURCES)
def test_development_and_test_data_are_apart(name: str, tmp_path: Path) -> None:
    """Development images hold less than 100, test images 100 or more; both have the archive's counts."""
    spec = made(name, tmp_path / "data")
    shape, num_classes, num_test = EXPECTED[name]
    development = load_development(spec)
    assert development.images_NCHW.shape == shape
    assert development.images_NCHW.dtype == torch.uint8
    assert development.images_NCHW.max() < 100
    assert development.num_classes == num_classes
    check_test(spec)
    test = load_test(spec)
    assert len(test) == num_test
    assert test.images_NCHW.min() >= 100
    assert test.images_NCHW.shape[1:] == shape[1:]
    assert test.class_names == development.class_names


TEST_FILES = {
    "mnist": "MNIST/raw/t10k*",
    "fashion-mnist": "FashionMNIST/raw/t10k*",
    "cifar10": "cifar-10-batches-bin/test*",
    "cifar100": "cifar-100-binary/test*",
    "tiny-imagenet": "tiny-imagenet-200/val/*.txt",
    "cub200": "CUB_200_2011/images/*/*_000[34].jpg",
    "imagenet": "imagenet/val/*/*",
    "folder": "test/*/*",
    "parquet": "test*",
}


@pytest.mark.parametrize("name", TEST_FILES)
def test_a_distillation_needs_no_test_file(name: str, tmp_path: Path) -> None:
    """With every test file garbage, or none there, the development data are what they were."""
    spec = made(name, tmp_path / "data")
    before = load_development(spec)
    found = list((tmp_path / "data").glob(TEST_FILES[name]))
    assert found
    for path in found:
        path.write_bytes(b"garbage")
    other = DataSpec(source=spec.source, root=spec.root, image_size=spec.image_size, cache=tmp_path / "other")
    assert load_development(other).digest == before.digest
    for path in found:
        if name != "cub200":  # its development and test images lie side by side, named in one list
            path.unlink()
    third = DataSpec(source=spec.source, root=spec.root, image_size=spec.image_size, cache=tmp_path / "third")
    assert load_development(third).digest == before.digest


def test_names_of_test_data_are_written_in_test_split_alone() -> None:
    """No module that a distillation can import names a test file, folder, mark or key (`in_memory` writes what the user gives)."""
    words = ("t10k", "test_batch", "test.bin", "val_annotations", "x_test", "test_images", 'mark="0"')
    for module in (PACKAGE / "data").rglob("*.py"):
        code = ast.unparse(_without_docstrings(ast.parse(module.read_text()))).replace("'", '"')
        found = [word for word in words if word in code]
        assert bool(found) == (module.name in ("test_split.py", "in_memory.py")), (module.name, found)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [s for s in node.body if not isinstance(getattr(s, "value", None), ast.Constant)] or [
                ast.Pass()
            ]
    return tree


def test_labels_and_order_of_the_named_sources(tmp_path: Path) -> None:
    """Image i of MNIST and CIFAR-10 holds i and is of class i mod 10; CIFAR-100's label is the fine one; the classes
    of Tiny-ImageNet are sorted, and the annotations name those of its val images."""
    mnist = load_development(made("mnist", tmp_path / "m"))
    assert values(mnist) == list(range(20))
    assert mnist.labels_N.tolist() == [i % 10 for i in range(20)]
    cifar10 = load_development(made("cifar10", tmp_path / "c"))
    assert cifar10.images_NCHW[:, :, 5, 7].tolist() == [[i, i + 1, i + 2] for i in range(20)]
    assert cifar10.class_names[:2] == ("airplane", "automobile")
    cifar100 = load_development(made("cifar100", tmp_path / "h"))
    assert cifar100.labels_N.tolist() == list(range(100))
    assert cifar100.class_names[99] == "fine99"
    spec = made("tiny-imagenet", tmp_path / "t")
    tiny, test = load_development(spec), load_test(spec)
    assert tiny.class_names == tuple(sorted(WNIDS))
    assert values(tiny) == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
    assert (values(test), test.labels_N.tolist()) == (list(range(100, 106)), [1, 2, 0, 1, 2, 0])
    birds = load_development(made("cub200", tmp_path / "b"))
    assert birds.class_names == BIRDS
    assert (values(birds), birds.labels_N.tolist()) == ([0, 1, 2, 10, 11, 12], [0, 0, 0, 1, 1, 1])


def test_the_names_in_the_configuration_are_the_sources() -> None:
    """What the configuration admits, without importing torch, is what can be read, for both splits."""
    assert {*data.NAMED_SIZES, *data.PATH_KINDS} == set(sources.READERS) == set(test_split._READERS)
    assert data.PATH_KINDS == sources.PATH_KINDS


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_without_a_net_the_message_says_which_file_to_put_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One DataError with the file, the folder and the reason; nothing is left there but a lock."""
    away = Download(("file:///nowhere/at/all.gz",), "0" * 32)
    monkeypatch.setattr(formats_mnist, "_download", lambda *_: away)
    monkeypatch.setattr(cifar, "_SITE", "file:///nowhere")
    spec = DataSpec(source=name, root=str(tmp_path))
    file, folder = {
        "mnist": ("train-images-idx3-ubyte.gz", "MNIST/raw"),
        "fashion-mnist": ("train-images-idx3-ubyte.gz", "FashionMNIST/raw"),
        "cifar10": ("cifar-10-binary.tar.gz", ""),
        "cifar100": ("cifar-100-binary.tar.gz", ""),
    }[name]
    with pytest.raises(DataError, match="could not be downloaded") as caught:
        load_development(spec)
    assert f"Download {file} on another machine, put it into" in str(caught.value)
    assert str((tmp_path / folder).resolve()) in str(caught.value)
    assert "nowhere" in str(caught.value)
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [f".{file}.lock"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tiny-imagenet", "tiny-imagenet-200.zip"),
        ("cub200", "CUB_200_2011.tgz"),
        ("imagenet", "train/WNID"),
    ],
)
def test_archives_that_are_not_downloaded_are_named(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says) as caught:
        load_development(DataSpec(source=name, root=str(tmp_path), image_size=32))
    assert str(tmp_path) in str(caught.value)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def served() -> Iterator[Callable[[Path], str]]:
    """(folder) -> the address that it can be had from."""
    servers = []

    def serve(folder: Path) -> str:
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder)))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_an_archive_is_downloaded_checked_and_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: Callable[[Path], str]
) -> None:
    """From a server on loopback. With another MD5 than the publisher's it is refused, and nothing of it is left."""
    source_files.cifar10(tmp_path / "site")
    archive = source_files.packed(tmp_path / "site", "cifar-10-binary.tar.gz")
    monkeypatch.setattr(cifar, "_SITE", served(archive.parent))
    spec = DataSpec(source="cifar10", root=str(tmp_path / "root"))
    with pytest.raises(DataError, match=r"(?s)could not be downloaded.*corrupted"):
        load_development(spec)
    assert not (tmp_path / "root" / "cifar-10-batches-bin").exists()
    layout = cifar.LAYOUTS["cifar10"]
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar.LAYOUTS, "cifar10", layout._replace(md5=md5))
    assert len(load_development(spec)) == 20
    assert len(load_test(spec)) == 10
    assert sorted(p.name for p in (tmp_path / "root").iterdir() if not p.name.startswith(".")) == [
        "cifar-10-batches-bin"
    ]


@pytest.mark.parametrize("cut", ["idx", "header", "gz", "cifar", "label"])
def test_files_that_were_cut_or_changed_are_named(cut: str, tmp_path: Path) -> None:
    """A DataError with the file's name, not a traceback from a reader."""
    if cut in ("cifar", "label"):
        spec, name = made("cifar10", tmp_path), "cifar-10-batches-bin/data_batch_3.bin"
    elif cut == "gz":
        spec, name = made("mnist", tmp_path), "MNIST/raw/train-images-idx3-ubyte.gz"
    else:
        spec, name = made("fashion-mnist", tmp_path), "FashionMNIST/raw/train-labels-idx1-ubyte"
    path = tmp_path / name
    content = path.read_bytes()
    changed = {"header": b"\1" + content[1:], "label": b"\xff" + content[1:]}
    path.write_bytes(changed.get(cut, content[: len(content) - 7]))
    with pytest.raises(
        DataError, match="batch_1.*row 8: label 255 is out of range" if cut == "label" else path.name
    ):
        load_development(spec)


def test_class_folders_alone_with_a_test_source(tmp_path: Path) -> None:
    """A folder of classes is development data; another is named for testing, and may miss a class."""
    class_folders(tmp_path / "mine", 0, ("ant", "bee", "cow"))
    class_folders(tmp_path / "theirs", 100, ("ant", "cow"))
    spec = DataSpec(source=f"folder:{tmp_path / 'mine'}")
    assert load_development(spec).class_names == ("ant", "bee", "cow")
    for look in (load_test, check_test):
        with pytest.raises(DataError, match="no folder test or val"):
            look(spec)
    test = load_test(DataSpec(source=spec.source, test_source=f"folder:{tmp_path / 'theirs'}"))
    assert test.labels_N.tolist() == [0, 0, 0, 2, 2, 2]
    with pytest.raises(DataError, match="as test data and as development data"):
        load_test(DataSpec(source=spec.source, test_source=spec.source))
    class_folders(tmp_path / "strange", 100, ("ant", "yak"))
    with pytest.raises(DataError, match="images of yak, which are not classes of the development data"):
        load_test(DataSpec(source=spec.source, test_source=f"folder:{tmp_path / 'strange'}"))


def test_folders_of_test_data_are_refused_as_development_data(tmp_path: Path) -> None:
    """Neither a folder that holds one nor one that is called so; with `train` beside it, `val` serves as test."""
    class_folders(tmp_path / "a" / "val", 100)
    for folder in ("a", "a/val"):
        with pytest.raises(DataError, match="val is test data by its name"):
            load_development(DataSpec(source=f"folder:{tmp_path / folder}"))
    class_folders(tmp_path / "a" / "train", 0)
    spec = DataSpec(source=f"folder:{tmp_path / 'a'}")
    assert load_development(spec).images_NCHW.max() < 100
    assert load_test(spec).images_NCHW.min() >= 100
    (tmp_path / "empty" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match="must have a folder of images"):
        load_development(DataSpec(source=f"folder:{tmp_path / 'empty'}"))


def test_arrays_of_a_test_split_may_miss_the_last_class(tmp_path: Path) -> None:
    """Its classes are those of the development data, whose labels alone say how many there are."""
    images = np.zeros((3, 2, 2), np.uint8)
    arrays = {
        "x_train": images,
        "y_train": np.array([0, 1, 2]),
        "x_test": images,
        "y_test": np.array([0, 1, 1]),
    }
    np.savez(tmp_path / "set.npz", **arrays)
    spec = DataSpec(source=f"npz:{tmp_path}/set.npz")
    assert load_test(spec).class_names == load_development(spec).class_names == ("0", "1", "2")
    np.savez(tmp_path / "set.npz", **arrays | {"y_test": np.array([0, 1, 3])})
    with pytest.raises(DataError, match="row 2: label 3 is out of range; with 3 classes"):
        load_test(spec)
    assert load_development(spec).num_classes == 3


@pytest.mark.parametrize("kind", ["npz", "torch"])
def test_arrays_in_one_file_or_two(kind: str, tmp_path: Path) -> None:
    """`images` and `labels` alone are development data; a second file is named for testing."""
    images = np.arange(4 * 2 * 3 * 3, dtype=np.uint8).reshape(4, 2, 3, 3)  # channels last in NumPy's files
    paths = [tmp_path / f"{name}.{kind}" for name in ("one", "two")]
    for path in paths:
        if kind == "npz":
            with path.open("wb") as file:
                np.savez(file, images=images, labels=np.array([0, 1, 0, 1]))
        else:
            torch.save({"images": torch.from_numpy(images), "labels": torch.tensor([0, 1, 0, 1])}, path)
    spec = DataSpec(source=f"{kind}:{paths[0]}")
    loaded = load_development(spec)
    assert loaded.image_shape == ((3, 2, 3) if kind == "npz" else (2, 3, 3))
    expected = images.transpose(0, 3, 1, 2) if kind == "npz" else images
    assert np.array_equal(loaded.images_NCHW.numpy(), expected)
    for look in (load_test, check_test):
        with pytest.raises(DataError, match="must have the arrays `x_test` and `y_test`"):
            look(spec)
    assert len(load_test(DataSpec(source=spec.source, test_source=f"{kind}:{paths[1]}"))) == 4
    with pytest.raises(DataError, match="as test data and as development data"):
        load_test(DataSpec(source=spec.source, test_source=spec.source))


class Evil:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self._path), "w")


def test_files_of_arrays_run_nothing(tmp_path: Path) -> None:
    """Object arrays and pickled objects are refused, and leave no trace of having been opened."""
    trace = tmp_path / "trace"
    np.savez(tmp_path / "evil.npz", x_train=np.array([Evil(trace)], dtype=object), y_train=np.array([0]))
    torch.save({"x_train": Evil(trace), "y_train": torch.tensor([0])}, tmp_path / "evil.pt")
    for source in (f"npz:{tmp_path}/evil.npz", f"torch:{tmp_path}/evil.pt"):
        with pytest.raises(DataError, match=r"evil\.\w+ is not"):
            load_development(DataSpec(source=source))
    assert not trace.exists()


FLAT = np.zeros((2, 3, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x_train": FLAT}, "must have the arrays `x_train` and `y_train`, or .*; got x_train"),
        (
            {"x_train": FLAT.astype(np.float32), "y_train": np.zeros(2, int)},
            "images must be uint8 from 0 to 255, got float32",
        ),
        ({"x_train": FLAT[0], "y_train": np.zeros(3, int)}, r"images must have shape .*, got \[3, 3\]"),
        ({"x_train": np.zeros((2, 3, 3, 65), np.uint8), "y_train": np.zeros(2, int)}, r"\[N, H, W, C\]"),
        ({"x_train": FLAT, "y_train": np.zeros(2)}, "labels must be integers, got float64"),
        ({"x_train": FLAT, "y_train": np.zeros(3, int)}, "2 images and 3 labels"),
        ({"x_train": FLAT, "y_train": np.array([0, -1])}, "row 1: label -1 is out of range"),
        (
            {"x_train": FLAT, "y_train": np.zeros(2, int), "class_names": np.array(["a", "b"])},
            r"class\(es\) b",
        ),
    ],
)
def test_arrays_that_cannot_be_used(arrays: dict[str, np.ndarray], says: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(DataError, match=says):
        load_development(DataSpec(source=f"npz:{tmp_path}/set.npz"))


def test_a_file_of_tensors_that_is_none(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(DataError, match="must hold a dict of tensors, got a list"):
        load_development(DataSpec(source=f"torch:{tmp_path}/list.pt"))
    (tmp_path / "text.pt").write_text("text")
    with pytest.raises(DataError, match="is not a file of tensors"):
        load_development(DataSpec(source=f"torch:{tmp_path}/text.pt"))
    with pytest.raises(DataError, match=r"absent\.npz does not exist"):
        load_development(DataSpec(source=f"npz:{tmp_path}/absent.npz"))


@pytest.mark.parametrize("name", ["parquet", "npz", "torch", "folder", "cifar10", "tiny-imagenet"])
def test_sources_are_read_through_file_uris(name: str, tmp_path: Path) -> None:
    """As from s3://: the same images, listed and read by pyarrow's filesystem alone."""
    spec = made(name, tmp_path)
    kind, colon, path = spec.source.partition(":")
    source = f"{kind}:file://{path}" if colon else kind
    remote = DataSpec(source=source, root=f"file://{tmp_path}", cache=tmp_path / "cache")
    assert load_development(remote).digest == load_development(spec).digest
    assert load_test(remote).digest == load_test(spec).digest


def test_a_uri_that_pyarrow_cannot_use(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nosuch://x/y is not a usable path or URI"):
        load_development(DataSpec(source="parquet:nosuch://x/y"))


@pytest.mark.parametrize("column", ["label", "labels", "fine_label"])
def test_columns_of_labels(column: str, tmp_path: Path) -> None:
    """Whatever it is called, with its names in the hub's metadata."""
    import pyarrow.parquet as pq

    described = {"info": {"features": {column: {"names": ["a", "b"]}}}}
    path = write_images(
        tmp_path / "train.parquet",
        [picture(1), picture(2)],
        [0, 1],
        metadata={"huggingface": json.dumps(described)},
    )
    table = pq.read_table(path)
    renamed = table.rename_columns(["image", column]).replace_schema_metadata(table.schema.metadata)
    pq.write_table(renamed, path)
    assert load_development(DataSpec(source=f"parquet:{path}")).class_names == ("a", "b")


def test_a_subset_of_classes_is_numbered_in_its_order(tmp_path: Path) -> None:
    """dog, 0: the images of class 5 become class 0, those of class 0 class 1; nothing else is decoded or kept."""
    spec = made("cifar10", tmp_path, classes=("dog", 0))
    images, test = load_development(spec), load_test(spec)
    assert images.class_names == test.class_names == ("dog", "airplane")
    assert (values(images), images.labels_N.tolist()) == ([0, 5, 10, 15], [1, 0, 1, 0])
    assert (values(test), test.labels_N.tolist()) == ([100, 105], [1, 0])
    limited = load_development(DataSpec(source="cifar10", root=str(tmp_path), classes=("dog", 0), limit=2))
    assert sorted(limited.labels_N.tolist()) == [0, 1]


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (("dog", "yak"), "there is no class 'yak'"),
        (("dog", 10), "there is no class 10; allowed: 0 .. 9"),
        (("dog", 5), "5 is a duplicate of class dog"),
    ],
)
def test_classes_that_there_are_not(classes: tuple[str | int, ...], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        load_development(made("cifar10", tmp_path, classes=classes))


def test_images_of_many_sizes_are_scaled_and_cut(tmp_path: Path) -> None:
    """8x4 and 4x12 (height x width) at size 4. The first has rows 0, 0, 50, 50, 50, 50, 0, 0, whose middle four are
    50; the second has columns that are 70 in the middle four. Without a size they are refused by name."""
    tall, wide = np.zeros((8, 4), np.uint8), np.zeros((4, 12), np.uint8)
    tall[2:6], wide[:, 4:8] = 50, 70
    path = write_images(tmp_path / "train.parquet", [encode(tall), encode(wide)], [0, 1])
    images = load_development(DataSpec(source=f"parquet:{path}", image_size=4))
    assert images.images_NCHW.flatten(1).unique(dim=1).tolist() == [[50], [70]]
    with pytest.raises(DataError, match=r"row 1: the image is 4x12 .* data.image_size"):
        load_development(DataSpec(source=f"parquet:{path}"))


def test_scaling_takes_the_mean_and_not_every_other_pixel(tmp_path: Path) -> None:
    """A checkerboard of 0 and 200 at half its size is about 100 everywhere; sampled, it would be 0 or 200."""
    board = (200 * (np.indices((32, 32)).sum(axis=0) % 2)).astype(np.uint8)
    path = write_images(tmp_path / "train.parquet", [encode(board)], [0])
    half = load_development(DataSpec(source=f"parquet:{path}", image_size=16)).images_NCHW[0, 0, 4:12, 4:12]
    assert (half.int() - 100).abs().max() <= 2


def test_pixels_that_are_there_are_scaled_too(tmp_path: Path) -> None:
    """CIFAR at 16: uniform planes stay what they are. Its own size would have no effect and is refused."""
    spec = made("cifar10", tmp_path)
    small = load_development(DataSpec(source="cifar10", root=str(tmp_path), image_size=16))
    assert small.image_shape == (3, 16, 16)
    assert small.images_NCHW[3].unique(dim=2).flatten().unique().tolist() == [3, 4, 5]
    with pytest.raises(DataError, match=r"data\.image_size: has no effect"):
        load_development(DataSpec(source="cifar10", root=spec.root, image_size=32))


def test_broken_images_are_left_out_counted_and_named(tmp_path: Path) -> None:
    """Two of six: tolerated as a count of 2 or a fraction of 0.34, refused at 1, at 0.3 and by default."""
    class_folders(tmp_path, 0)
    (tmp_path / "cat" / "1.png").write_bytes(b"no image")
    (tmp_path / "dog" / "2.png").write_bytes(b"")
    source = f"folder:{tmp_path}"
    for allowed in (2, 0.34):
        images = load_development(DataSpec(source=source, max_broken=allowed))
        assert (values(images), images.labels_N.tolist()) == ([0, 2, 10, 11], [0, 0, 1, 1])
        assert [name.partition(": ")[0] for name in images.broken] == [
            str(tmp_path / name) for name in ("cat/1.png", "dog/2.png")
        ]
    for too_few in (1, 0.3):
        with pytest.raises(
            DataError, match=r"(?s)more broken images than data\.max_broken allows \(1\).*1\.png.*2\.png"
        ):
            load_development(DataSpec(source=source, max_broken=too_few))
    with pytest.raises(DataError, match=r"(?s)cat/1\.png: the image cannot be decoded.*data\.max_broken"):
        load_development(DataSpec(source=source))


def test_classes_may_be_unbalanced_and_a_class_must_not_vanish(tmp_path: Path) -> None:
    """Three cats and one dog are fine; if the dog is broken and left out, there is nothing to distil dogs from."""
    class_folders(tmp_path, 0)
    for i in (1, 2):
        (tmp_path / "dog" / f"{i}.png").unlink()
    source = f"folder:{tmp_path}"
    assert torch.bincount(load_development(DataSpec(source=source)).labels_N).tolist() == [3, 1]
    (tmp_path / "dog" / "0.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"no images of class\(es\) dog"):
        load_development(DataSpec(source=source, max_broken=1))
