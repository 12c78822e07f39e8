"""Prepared images: built once, whole whenever they are there, mapped and not copied, the same everywhere."""

import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_distill.data import whitening
from ray_distill.data.arrow_file import ArrowImageWriter, open_images
from ray_distill.data.cache import build_once
from ray_distill.data.labelled_images import DataError
from ray_distill.data.preprocessing import fit_preprocessing
from ray_distill.data.real_data import RealData
from ray_distill.data.sources import load_development
from ray_distill.data.spec import DataSpec
from ray_distill.data.splits import open_development, prepare_development
from ray_distill.utils.memory import machine_bytes
from tests.helpers.source_files import class_folders, grey
from tests.helpers.tiny import whole

SLOW_BUILD = """
import sys, time
from ray_distill.data import decoded
from ray_distill.data.sources import load_development
from ray_distill.data.spec import DataSpec
from pathlib import Path
plain = decoded.decode_images
def slowly(*arguments, **options):
    print("building", flush=True)
    for image in plain(*arguments, **options):
        yield image
        time.sleep(float(sys.argv[3]))
decoded.decode_images = slowly
decoded._CHUNK_IMAGES = 2
print(load_development(DataSpec(source=sys.argv[1], cache=Path(sys.argv[2]))).digest, flush=True)
"""
"""A process that loads a folder's images, slowly, and says when it decodes them."""


def loading(source: str, cache: Path, pause_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW_BUILD, source, str(cache), str(pause_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_builder_that_is_killed_leaves_nothing_wrong(tmp_path: Path) -> None:
    """SIGKILL in mid-build: parts are there, the file is not. The next one builds it, and removes the parts."""
    class_folders(tmp_path / "set", 0)
    source, cache = f"folder:{tmp_path / 'set'}", tmp_path / "cache"
    killed = loading(source, cache, 30.0)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "building\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    left = names(cache)
    assert left
    assert all(".part-" in name for name in left)
    images = load_development(DataSpec(source=source, cache=cache))
    assert images.images_NCHW[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert names(cache) == [images.path.name]


def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    """Started while the other builds, the second waits and opens what the first has built."""
    class_folders(tmp_path / "set", 0)
    source, cache = f"folder:{tmp_path / 'set'}", tmp_path / "cache"
    both = [loading(source, cache, 0.3) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].splitlines() for process in both]
    assert sorted(len(lines) for lines in said) == [1, 2]
    assert said[0][-1] == said[1][-1]
    assert len(names(cache)) == 1


def test_a_build_that_fails_leaves_nothing_and_is_tried_again(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "file"

    def fail(part: Path) -> None:
        part.write_text("half")
        part.with_name(f"{part.name}.raw").write_text("half")
        raise DataError("broken")

    with pytest.raises(DataError):
        build_once(target, fail)
    assert names(target.parent) == []
    assert build_once(target, lambda part: part.write_text("whole") and None)
    assert not build_once(target, fail)
    assert target.read_text() == "whole"


def test_the_same_is_prepared_once_and_something_else_anew(tmp_path: Path) -> None:
    """A second time nothing is said to be done. Another size, limit or class subset, or a file that changed, is
    another file; a touched file is decoded again, but its digest, and with it the whitening, is the same."""
    class_folders(tmp_path / "set", 0, side=6)
    rng = np.random.default_rng(0)
    from tests.helpers.hub_files import encode

    for path in (tmp_path / "set").rglob("*.png"):
        path.write_bytes(encode(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)))
    spec = DataSpec(
        source=f"folder:{tmp_path / 'set'}",
        cache=tmp_path / "cache",
        preprocessing="zca",
        validation_fraction=0.4,
    )

    def prepared(**changes: object) -> list[str]:
        said: list[str] = []
        prepare_development(replace(spec, **changes), None, lambda what, *_: said.append(what))  # type: ignore[arg-type]
        return list(dict.fromkeys(said))

    everything = ["decoding", "fitting zca", "whitening"]
    assert prepared() == everything
    assert prepared() == []
    assert prepared(image_size=3) == everything
    assert prepared(limit=4) == everything
    assert prepared(classes=("dog", "cat")) == everything
    # Another seed is other training rows of the same pixels; a fraction that comes to the same rows is not.
    assert prepared(seed=1) == ["fitting zca", "whitening"]
    assert prepared(validation_fraction=0.3) == []
    assert prepared(zca_shrinkage=0.2) == ["fitting zca", "whitening"]
    assert prepared(preprocessing="normalise") == ["fitting normalise"]
    (tmp_path / "set" / "cat" / "0.png").touch()
    assert prepared() == ["decoding"]
    (tmp_path / "set" / "cat" / "0.png").write_bytes(encode(np.zeros((6, 6, 3), np.uint8)))
    assert prepared() == everything


TAKE_ALL = """
import sys, torch
from pathlib import Path
from ray_distill.data.arrow_file import open_images
from ray_distill.data.preprocessing import NoPreprocessing
from ray_distill.data import real_data
from ray_distill.data.real_data import RealData
def memory():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty:", "Rss:"))]
def take_all(path):
    images = open_images(Path(path))
    data = RealData.from_images(images, torch.arange(len(images)), NoPreprocessing())
    for rows in torch.arange(len(images)).split(100):
        assert float(data.images(rows).sum()) > 0
    return data
torch.set_num_threads(1)
small = take_all(sys.argv[1])
real_data.LARGE_BYTES = int(sys.argv[3])
before = memory()
large = take_all(sys.argv[2])
print(*(after - b for after, b in zip(memory(), before)))
"""
"""A process that takes all images of a small file and of a large one, and tells what the large one took, in kB: in all,
and of memory of its own."""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no private memory is told here")
def test_a_file_is_opened_without_being_copied(tmp_path: Path) -> None:
    """All of 128 MB are taken, 100 at a time, with less than 48 MB more that nobody could take back; from the size
    on that counts as large, with less than 48 MB more of whatever kind."""
    for name, parts in (("small", 1), ("large", 128)):
        spool = ArrowImageWriter(tmp_path / name)
        for _ in range(parts):
            spool.add(np.full((100, 1, 100, 100), 7, np.uint8))
        spool.finish(torch.zeros(100 * parts, dtype=torch.int64), {"class_names": ["a"], "white": 255})
        spool.close()
    for large_bytes in (2**30, 0):
        files = [str(tmp_path / "small"), str(tmp_path / "large")]
        arguments = [sys.executable, "-c", TAKE_ALL, *files, str(large_bytes)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        resident, own = map(int, done.stdout.split())
        assert own < 48_000
        assert (resident < 48_000) == (large_bytes == 0)


@pytest.mark.slow
def test_more_values_than_32_bits_count(tmp_path: Path) -> None:
    """2.3e9 values, above 2^31: the last image is found where it should be."""
    spool = ArrowImageWriter(tmp_path / "images.arrow")
    try:
        for i in range(190):
            spool.add(np.full((1000, 3, 64, 64), i, np.uint8))
        spool.finish(torch.arange(190_000) % 7, {"class_names": list("abcdefg"), "white": 255})
    finally:
        spool.close()
    images = open_images(tmp_path / "images.arrow")
    assert images.images_NCHW.numel() > 2**31
    assert images.images_NCHW[::1000, 2, 63, 63].tolist() == list(range(190))
    assert images.labels_N[-1] == 189_999 % 7
    images.path.unlink()


@pytest.mark.parametrize("kind", ["none", "normalise", "zca"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_what_the_preprocessing_gives(kind: str, dtype: torch.dtype) -> None:
    """Bit for bit, of all training images at once, and of some of them in any order."""
    spec = DataSpec(source="digits", preprocessing=kind, validation_fraction=0.2)
    data = prepare_development(spec)
    everything = load_development(spec)
    train = data.train.to(torch.device("cpu"), dtype)
    expected = data.preprocessing.apply(everything.pixels(torch.arange(len(everything))))
    expected = expected[data.train.rows_N].to(dtype)
    assert torch.equal(whole(train)[0], expected)
    chosen = torch.tensor([5, 900, 3])
    batch = train.rows(chosen)
    assert torch.equal(batch.images_NCHW, expected[chosen])
    assert batch.labels_NK.dtype == dtype
    assert torch.equal(batch.labels_NK.argmax(dim=1), train.labels_N[chosen])
    assert torch.equal(torch.cat([images for images, _ in train.batches()]), expected)
    assert torch.equal(torch.cat([labels for _, labels in train.batches()]), train.labels_N)


@pytest.mark.parametrize("kind", ["normalise", "zca"])
def test_a_ticket_opens_the_same_images(kind: str, tmp_path: Path) -> None:
    """Through pickle, as to a worker: from the files; without them from the source; never other images."""
    class_folders(tmp_path / "set", 0)
    spec = DataSpec(
        source=f"folder:{tmp_path / 'set'}",
        image_size=3,
        cache=tmp_path / "cache",
        preprocessing=kind,
        validation_fraction=0.34,
    )
    for path, value in zip(sorted((tmp_path / "set").rglob("*.png")), range(6), strict=True):
        from tests.helpers.hub_files import encode

        path.write_bytes(encode(np.random.default_rng(value).integers(0, 256, (4, 4, 3), dtype=np.uint8)))
    data = prepare_development(spec)
    sent = pickle.dumps(data.handle)
    assert len(sent) < 2000
    fetched: list[int] = []

    def redeemed() -> tuple[RealData, RealData]:
        return open_development(pickle.loads(sent), lambda: fetched.append(1) or data.preprocessing)  # type: ignore[func-returns-value]

    def same(pair: tuple[RealData, RealData]) -> bool:
        ours = (data.train, data.validation)
        return all(
            torch.equal(a, b)
            for o, p in zip(ours, pair, strict=True)
            for a, b in zip(whole(o), whole(p), strict=True)
        )

    assert same(redeemed())
    assert not fetched, "whitened images are there"
    kept = data.handle.images_path.read_bytes()
    for path in (tmp_path / "cache").glob("*.arrow"):
        path.unlink()
    assert same(redeemed())
    assert len(fetched) == (kind == "zca")
    assert data.handle.images_path.read_bytes() == kept
    for path in (tmp_path / "cache").glob("*.arrow"):
        path.unlink()
    (tmp_path / "set" / "dog" / "0.png").write_bytes((tmp_path / "set" / "cat" / "0.png").read_bytes())
    with pytest.raises(DataError, match="has different images on this machine"):
        redeemed()


def test_files_that_are_none_of_ours_are_named(tmp_path: Path) -> None:
    """Cut, empty, not Arrow, Arrow of others: which file, and what to do."""
    class_folders(tmp_path / "set", 0)
    spec = DataSpec(source=f"folder:{tmp_path / 'set'}", cache=tmp_path / "cache")
    path = load_development(spec).path
    content = path.read_bytes()
    for wrong in (
        content[: len(content) // 2],
        b"",
        b"a text",
        content.replace(b'"format": 1', b'"format": 9'),
    ):
        path.write_bytes(wrong)
        with pytest.raises(
            DataError, match=rf"{path.name} is not a valid file of prepared images .*; remove it"
        ):
            load_development(spec)
    path.write_bytes(content)
    assert open_images(path).digest == load_development(spec).digest


def test_a_file_says_what_it_holds(tmp_path: Path) -> None:
    """Readable by any Arrow reader: a tensor column, a label column, and JSON."""
    import pyarrow as pa

    class_folders(tmp_path / "set", 0)
    path = load_development(DataSpec(source=f"folder:{tmp_path / 'set'}", cache=tmp_path / "cache")).path
    with pa.ipc.open_file(str(path)) as reader:
        table = reader.read_all()
    assert table.schema.field("image").type == pa.fixed_shape_tensor(pa.uint8(), (3, 4, 4))
    assert table.column("label").to_pylist() == [0, 0, 0, 1, 1, 1]
    assert json.loads(table.schema.metadata[b"ray_distill"])["class_names"] == ["cat", "dog"]


def test_greys_before_the_first_colour_are_spread(tmp_path: Path) -> None:
    """700 grey images, more than a chunk, and then a red one: all have three channels, none is lost."""
    from tests.helpers.hub_files import encode, write_images

    greys = [encode(image) for image in grey(100, 2, 0)] * 7
    red = encode(np.array([[[255, 0, 0]] * 2] * 2, np.uint8))
    path = write_images(tmp_path / "train.parquet", [*greys, red], [0] * 700 + [1])
    images = load_development(DataSpec(source=f"parquet:{path}")).images_NCHW
    assert images.shape == (701, 3, 2, 2)
    assert images[:700, :, 0, 0].tolist() == [[i % 100] * 3 for i in range(700)]
    assert images[700, :, 0, 0].tolist() == [255, 0, 0]


def test_a_whitening_that_does_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny-ImageNet's 12,288 numbers an image: six matrices of 8 D^2 bytes are 7.25 GB; told, and refused at 7 GB.
    CIFAR's half a gigabyte is not worth a word."""
    tiny, cifar = (3, 64, 64), (3, 32, 32)
    assert whitening.fitting_bytes(tiny) == 6 * 8 * 12288**2
    assert whitening.fitting_note(tiny) == ", needs 7.2 GB"
    assert whitening.fitting_note(cifar) == ""
    monkeypatch.setattr(whitening, "machine_bytes", lambda: 7_000_000_000)
    with pytest.raises(
        DataError, match=r"3x64x64 needs 7\.2 GB of memory, this machine has 7\.0 GB; use normalise"
    ):
        whitening.check_fitting_memory(tiny)
    whitening.check_fitting_memory(cifar)
    monkeypatch.setattr(whitening, "machine_bytes", lambda: 1)
    spec = DataSpec(source="digits", preprocessing="zca", validation_fraction=0.3, seed=77)
    with pytest.raises(DataError, match=r"needs 0\.0 GB"):
        prepare_development(spec)
    assert not list(spec.cache.glob(".fitted*.part*"))


def test_the_memory_of_this_machine_is_known() -> None:
    """At most what the operating system has, and more than this process."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**27 < machine_bytes() <= physical


def test_whitened_in_parts_is_whitened(tmp_path: Path) -> None:
    """2,300 images, three chunks of which the last is short: as the matrix gives them, to float32 rounding."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2300, 3, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(2300) % 2)
    spec = DataSpec(
        source=f"npz:{tmp_path}/set.npz",
        preprocessing="zca",
        validation_fraction=0.1,
        cache=tmp_path / "cache",
    )
    data = prepare_development(spec)
    pixels = load_development(spec).pixels(data.train.rows_N)
    fitted = fit_preprocessing("zca", pixels.split(1000), zca_shrinkage=0.1)
    torch.testing.assert_close(whole(data.train)[0], fitted.apply(pixels))
