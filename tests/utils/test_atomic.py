"""Atomic writes: all or nothing."""

import json
import os
from pathlib import Path

import pytest

from ray_distill.utils.atomic import atomic_write, write_json, write_text


def half_written(path: Path) -> None:
    with atomic_write(path) as file:
        file.write(b"half")
        raise OSError("disk full")


def test_a_file_is_replaced_when_it_is_complete(tmp_path: Path) -> None:
    """Before that, a reader finds the old text, also when a write fails half-way; nothing else is left behind."""
    path = tmp_path / "file"
    write_text(path, "old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(OSError, match="disk full"):
        half_written(path)
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc to read an open file by")
def test_a_file_is_synced_before_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash leaves the old file or all of the new one: all new bytes are synced while the old file is still in place."""
    path, forced = tmp_path / "file", []
    write_text(path, "old")

    def force(number: int) -> None:
        forced.append((Path(f"/proc/self/fd/{number}").read_text(), path.read_text()))

    monkeypatch.setattr(os, "fsync", force)
    write_text(path, "new")
    assert forced == [("new", "old")]
    assert path.read_text() == "new"


def test_json_is_indented(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, None]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"b": [1, None]}
    assert text.endswith("}\n")
    assert len(text.splitlines()) > 3
