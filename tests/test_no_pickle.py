"""The package never executes the contents of a file: an audit of every call in its sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ray_distill"
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN = {"eval", "exec", "compile", "__import__"}
NEEDS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}


def offences(source: str) -> Iterator[str]:
    """Calls and imports in a module that could execute the contents of a file."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (a.name for a in names if a.name.partition(".")[0] in FORBIDDEN_MODULES)
            case ast.ImportFrom(module=str(module)):
                if module.partition(".")[0] in FORBIDDEN_MODULES:
                    yield module
            case ast.Call(func=func, keywords=keywords):
                yield from _in_call(ast.unparse(func), {k.arg: ast.unparse(k.value) for k in keywords})


def _in_call(name: str, keywords: dict[str | None, str]) -> Iterator[str]:
    if name in FORBIDDEN:
        yield name
    if name in NEEDS and keywords.get(NEEDS[name][0]) != str(NEEDS[name][1]):
        yield f"{name} without {NEEDS[name][0]}={NEEDS[name][1]}"
    if (
        name.startswith("yaml.")
        and "load" in name
        and (name, keywords.get("Loader")) != ("yaml.load", "_YamlLoader")
    ):
        yield f"{name} without the safe loader"


def test_no_module_executes_the_contents_of_a_file() -> None:
    found = {str(path): list(offences(path.read_text())) for path in PACKAGE.rglob("*.py")}
    assert len(found) > 80
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "from pickle import loads",
        "import torch; torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(t, Loader=yaml.Loader)",
        "yaml.unsafe_load(t)",
        "eval(t)",
        "exec(t)",
    ],
)
def test_the_audit_detects(planted: str) -> None:
    assert list(offences(planted))
    assert not list(
        offences("yaml.load(t, Loader=_YamlLoader); np.load(f, allow_pickle=False); model.eval()")
    )
