"""`data prepare`: its summary of the data, that a second time costs nothing, and the picture."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ray_distill.cli.main import app

ROOT = Path(__file__).parents[2]
runner = CliRunner()


def prepared(*arguments: str) -> str:
    result = runner.invoke(app, ["data", "prepare", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAY_DISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prepared"


def test_it_summarises_the_data_and_where_they_are_cached(cache: Path) -> None:
    """Counts, classes, seconds, megabytes, the folder and the picture; the second time, that everything was cached."""
    said = prepared("digits", "--set", "data.preprocessing=zca")
    for part in (
        "digits: 1,438 development images of 1x8x8, 10 classes",
        "train          1,293",
        "validation     145",
        "test           359",
        "0 142, 1 146",
        "whitening test",
        "fitted-zca-",
        f"MB in {cache}",
    ):
        assert part in said, part
    (sheet,) = cache.glob("digits-development-*.png")
    assert str(sheet) in said
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert "everything was cached" in prepared("digits", "--set", "data.preprocessing=zca")
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == before


def test_a_run_uses_what_was_prepared(cache: Path) -> None:
    """Prepared by an experiment's file: nothing is left for the run itself to do."""
    from ray_distill.builders.experiment import load_development_data
    from ray_distill.config.load import load_config

    experiment = ROOT / "experiments" / "digits_ipc1.yaml"
    prepared(str(experiment), "--set", "seed=3")
    said: list[str] = []
    data = load_development_data(
        load_config(experiment, ["seed=3"]), None, lambda what, *_: said.append(what)
    )
    assert data.num_classes == 10
    assert said == []


def test_class_sizes_broken_images_and_a_missing_test_split_are_reported(cache: Path, tmp_path: Path) -> None:
    """Five of a, two of b, one of them broken; no test data: said, and no obstacle."""
    for name, count in (("a", 5), ("b", 3)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((8, 12, 3), 20 * i + 9, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{i}.png")
    (tmp_path / "set" / "b" / "1.png").write_bytes(b"broken")
    sheet = tmp_path / "sheet.png"
    said = prepared(
        f"folder:{tmp_path / 'set'}",
        *("--set", "data.max_broken=1", "--set", "data.image_size=8", "--picture", str(sheet)),
    )
    assert "7 development images of 3x8x8, 2 classes" in said
    assert "a 5, b 2" in said
    assert "1 broken image(s)" in said
    assert "b/1.png" in said
    assert "none: " in said
    assert Image.open(sheet).size[0] > 100


def test_many_classes_and_channels_are_summarised(cache: Path, tmp_path: Path) -> None:
    """30 classes of 2 or 3 images with 5 channels: the range of counts, and a picture of their mean."""
    labels = np.array([k for k in range(30) for _ in range(3 if k == 7 else 2)])
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 4, 4, 5), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=labels)
    said = prepared(f"npz:{tmp_path}/set.npz")
    assert "61 development images of 5x4x4, 30 classes" in said
    assert "per class      2 (0) to 3 (7)" in said
    assert len(list(cache.glob("*.png"))) == 1
