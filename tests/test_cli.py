"""The command line: mistakes are one message and exit code 2 with nothing written; help and dry runs."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ray_distill.cli import app, demo_config
from ray_distill.config import parse

ROOT = Path(__file__).parents[1]
DIGITS = str(ROOT / "experiments" / "digits_ipc1.yaml")
runner = CliRunner()


def test_help_names_every_verb_and_option() -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    for verb in ("demo", "distill", "evaluate", "show"):
        assert verb in result.output
        assert runner.invoke(app, [verb, "--help"]).exit_code == 0


def test_a_dry_run_prints_the_resolved_configuration_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it prints is YAML that reads back to the same configuration, with the override in it."""
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["distill", DIGITS, "--dry-run", "--set", "outer.lr=0.5"])
    assert result.exit_code == 0
    config = parse(yaml.safe_load(result.stdout))
    assert config.outer.lr == 0.5
    assert f"hash {config.hash}" in result.stdout
    assert list(tmp_path.iterdir()) == []


WRONG = [
    (["distill", DIGITS, "--set", "truncation.window_length=61"], "truncation.window_length"),
    (["distill", DIGITS, "--set", "distilled.ipc=0"], "distilled.ipc"),
    (["distill", DIGITS, "--set", "distilled.ipc"], "--set"),
    (["distill", "nowhere.yaml"], "nowhere.yaml"),
    (["distill", DIGITS, "--resume"], "no run to resume"),
    (["demo", "--set", "outer.stepz=3"], "outer.stepz"),
    (["evaluate", "nowhere.parquet"], "nowhere.parquet"),
    (["show", "nowhere.parquet"], "nowhere.parquet"),
    (["show", DIGITS], "digits_ipc1.yaml"),
]


@pytest.mark.parametrize(
    ("arguments", "says"), WRONG, ids=[" ".join(w[0][:1] + w[0][-1:])[-40:] for w in WRONG]
)
def test_a_mistake_is_one_message_and_exit_code_2(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    result = runner.invoke(app, ["distill", DIGITS, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "--resume" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_the_demo_asks_for_no_more_workers_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one core: one worker, and the same experiment by its hash."""
    two = demo_config([])
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert demo_config([]).cluster.num_workers == 1
    assert demo_config([]).hash == two.hash


def readme_commands() -> list[str]:
    blocks = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def test_the_two_commands_stand_at_the_top() -> None:
    assert readme_commands()[:2] == ["pip install uv && uv run ray-distill demo", "uv run pytest"]


@pytest.mark.parametrize("command", readme_commands())
def test_every_readme_command_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs and options exist, files that a command names are there, configurations load with its --set."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(command.replace("pip install uv && ", ""))
    assert words[:2] == ["uv", "run"], command
    tool, *arguments = words[2:]
    assert tool in {"ray-distill", "pytest", "ruff", "mypy", "lint-imports", "mlflow"}
    if tool != "ray-distill":
        return
    for word in arguments:
        if word.endswith(".yaml"):
            assert Path(word).exists(), word
    verb = arguments[0]
    if verb == "distill":
        result = runner.invoke(app, [*arguments, "--dry-run"])
        assert result.exit_code == 0, result.output
    else:
        result = runner.invoke(app, [*arguments, "--help"])
        assert result.exit_code == 0, result.output
        unknown = runner.invoke(app, [verb, "--no-such-option"])
        assert unknown.exit_code == 2


def test_the_readme_shows_what_was_measured() -> None:
    """The table in the README is the one that its script makes of the committed summary."""
    spec = importlib.util.spec_from_file_location("readme_table", ROOT / "experiments" / "readme_table.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    summary = json.loads((ROOT / "experiments" / "results" / "demo" / "summary.json").read_text())
    readme = (ROOT / "README.md").read_text()
    assert script.with_table(readme, summary) == readme
    assert f"{100 * summary['networks']['convnet2']['mean']:.1f}" in readme
