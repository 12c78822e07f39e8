"""The Python interface: what it names, that naming costs nothing, and what a call refuses before anything runs.

Real runs through it: tests/integration/test_api.py.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import ray_distill as rd
from tests.helpers.tiny import TINY

ROOT = Path(__file__).parents[1]


def test_every_public_name_is_there_and_typed() -> None:
    """`__all__`, the lazy table and the stub name the same things, and each can be had."""
    stub = (ROOT / "ray_distill" / "__init__.pyi").read_text()
    typed = {line.rpartition(" as ")[2] for line in stub.splitlines() if " as " in line}
    assert typed | {"__version__"} == set(rd.__all__)
    for name in rd.__all__:
        assert getattr(rd, name) is not None
        assert name in dir(rd)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = rd.nothing  # type: ignore[attr-defined]


def test_importing_it_imports_nothing_else() -> None:
    code = (
        "import sys, ray_distill; print({'torch', 'ray', 'mlflow', 'pydantic', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_configuration_from_a_file_a_dict_or_itself(tmp_path: Path) -> None:
    """All three, with overrides as strings or as a dict, are the same configuration."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    expected = rd.load_config(TINY, ["outer.lr=0.5", "inner.augmentation=[flip]"])
    overrides = {"outer.lr": 0.5, "inner.augmentation": ["flip"]}
    assert expected.outer.lr == 0.5
    assert rd.load_config(tmp_path / "tiny.yaml", overrides) == expected
    assert rd.load_config(str(tmp_path / "tiny.yaml"), overrides) == expected
    assert rd.load_config(rd.load_config(TINY), overrides) == expected
    assert TINY["outer"]["lr"] == 0.01, "the dict that was given is left as it is"
    with pytest.raises(rd.UserError, match=r"outer\.rate"):
        rd.load_config(TINY, {"outer.rate": 1})


def test_a_search_from_a_file_or_a_dict(tmp_path: Path) -> None:
    values = {
        "name": "small",
        "base": TINY,
        "space": {"outer.lr": {"choice": [0.1, 0.2]}},
        "scheduler": {"name": "none"},
        "budget": {"trials": 2, "outer_steps": 10},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "search.yaml").write_text(yaml.safe_dump({**values, "base": "tiny.yaml"}))
    expected = rd.load_search(values, {"budget.trials": 3})
    assert expected.budget.trials == 3
    assert rd.load_search(tmp_path / "search.yaml", ["budget.trials=3"]) == expected
    assert rd.load_search(expected) == expected


def test_bad_calls_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    """UserError, never an exit code, and nothing on the disk."""
    images, labels = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])
    out = tmp_path / "out"
    with pytest.raises(rd.UserError, match="resume and replace"):
        rd.distill(TINY, out=out, resume=True, replace=True)
    with pytest.raises(rd.UserError, match="`train`"):
        rd.distill(TINY, out=out, test=(images, labels))
    with pytest.raises(rd.UserError, match="4 images, but 3 labels"):
        rd.distill(TINY, out=out, train=(images, labels[:3]))
    with pytest.raises(rd.UserError, match=r"outer\.steps"):
        rd.distill(TINY, out=out, overrides={"outer.steps": -1})
    with pytest.raises(rd.UserError, match=r"no run|run\.json"):
        rd.distill(TINY, out=out, resume=True)
    with pytest.raises(rd.UserError, match="not a file"):
        rd.evaluate(tmp_path / "absent.parquet")
    assert not list(tmp_path.iterdir())
    (out / "mine").mkdir(parents=True)
    with pytest.raises(rd.UserError, match=r"not empty.*resume=True"):
        rd.distill(TINY, out=out)
