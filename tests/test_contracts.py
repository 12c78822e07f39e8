"""Rules of the house that are checked and not only written down."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False
    )


def test_imports_point_one_way(tmp_path: Path) -> None:
    """The contracts hold; and the one that keeps distillation and search from the test split fails on a planted import
    into either, and for a module that nobody has listed."""
    assert lint_imports(ROOT).returncode == 0
    shutil.copytree(
        ROOT / "ray_distill", tmp_path / "ray_distill", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name in ("data/splits.py", "tuning/newcomer.py"):
        planted = tmp_path / "ray_distill" / name
        whole = planted.read_text() if planted.exists() else '"""A module that nobody has listed."""\n'
        planted.write_text(whole + "\nfrom ray_distill.data.test_split import load_test\n")
        broken = lint_imports(tmp_path)
        assert broken.returncode == 1
        assert "Distillation and search cannot reach the test split BROKEN" in broken.stdout
        planted.write_text(whole)


def test_no_file_names_an_index_or_a_path_of_one_machine() -> None:
    """What is committed works elsewhere."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    forbidden = ("/wo" + "rk/", "py" + "pi.org", "pytho" + "nhosted", "/ro" + "ot/")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".png", ".parquet"} or not path.exists():
            continue
        text = path.read_text()
        assert not [word for word in forbidden if word in text], name


def test_modules_and_functions_stay_small() -> None:
    """A module is read in one sitting, a function on one screen, the root of the package at a glance."""
    package = ROOT / "ray_distill"
    assert len(list(package.glob("*.py"))) <= 6
    for path in package.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 350, path
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        assert not [f.name for f in functions if (f.end_lineno or 0) - f.lineno >= 60], path


def test_no_two_classes_have_one_name() -> None:
    names = [
        node.name
        for path in (ROOT / "ray_distill").rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    ]
    assert sorted(names) == sorted(set(names))
