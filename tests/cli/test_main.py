"""The command line: mistakes are one message and exit code 2 with nothing written; help and dry runs."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

import ray_distill
from ray_distill.artifacts.dataset import DistilledDataset
from ray_distill.cli.distill import demo_config
from ray_distill.cli.main import app
from ray_distill.config.config import ConfigError
from ray_distill.config.load import load_config, parse_config
from ray_distill.storage.run_dir import RunDir
from ray_distill.tracking.tracker import Tracker
from tests.helpers.evaluated_sets import grey_set

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "experiments" / "digits_ipc1.yaml")
runner = CliRunner()


def test_help_names_every_verb_and_option() -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    for verb in ("demo", "distill", "evaluate", "show", "import", "export", "bench", "data"):
        assert verb in result.output
        assert runner.invoke(app, [verb, "--help"]).exit_code == 0


def test_the_version_is_that_of_the_package() -> None:
    assert runner.invoke(app, ["--version"]).output == f"ray-distill {ray_distill.__version__}\n"


def test_a_thread_that_is_left_behind_costs_neither_output_nor_exit_code() -> None:
    """As an interrupted run leaves one, in Ray: it must not be there when Python is taken down."""
    left = "import sys, threading, time; from ray_distill.cli.main import main; "
    left += "threading.Thread(target=time.sleep, args=(99,), daemon=True).start(); import atexit; "
    left += "atexit.register(print, 'taken down'); sys.argv[1:] = "
    for arguments, code, says in ((["--version"], 0, "ray-distill "), (["distill", "no.yaml"], 2, "no.yaml")):
        done = subprocess.run(
            [sys.executable, "-c", f"{left}{arguments}; main()"], capture_output=True, text=True, check=False
        )
        assert done.returncode == code
        assert says in done.stdout + done.stderr
        assert "taken down" not in done.stdout


@pytest.mark.parametrize("verb", ["distill", "search"])
def test_a_folder_in_use_is_reported_without_importing_torch(verb: str, tmp_path: Path) -> None:
    """Nor Ray nor MLflow, which take seconds."""
    (tmp_path / "text").touch()
    file = {"distill": DIGITS, "search": str(ROOT / "experiments" / "search_window_digits.yaml")}[verb]
    code = f"import sys; from ray_distill.cli.main import app; app([{verb!r}, {file!r}, '--out', {str(tmp_path)!r}], "
    code += "standalone_mode=False); print({'torch', 'ray', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "exists and is not empty" in done.stderr
    assert done.stdout == "set()\n"


def test_a_dry_run_prints_the_resolved_configuration_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it prints is YAML that reads back to the same configuration, with the override in it."""
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["distill", DIGITS, "--dry-run", "--set", "outer.lr=0.5"])
    assert result.exit_code == 0
    config = parse_config(yaml.safe_load(result.stdout))
    assert config.outer.lr == 0.5
    assert f"hash {config.hash}" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_a_store_left_behind_does_not_block_a_folder(tmp_path: Path) -> None:
    """A run that was killed as it began left its store: the folder is still free."""
    (tmp_path / "mlflow.db").touch()
    RunDir(tmp_path).check_empty("")
    (tmp_path / "run.json").touch()
    with pytest.raises(ConfigError):
        RunDir(tmp_path).check_empty("")


def test_what_may_be_resumed(tmp_path: Path) -> None:
    """The same experiment in the same store, not finished; with other workers if one likes."""
    config = load_config(Path(DIGITS))
    folder, tracker = RunDir(tmp_path), Tracker("sqlite:////there/mlflow.db", "abc")
    with pytest.raises(ConfigError, match="holds no run"):
        folder.tracker_to_resume(config)
    folder.claim(config, tracker)
    moved = load_config(Path(DIGITS), ["cluster.num_workers=1", "name=other", "checkpoint.every=7"])
    assert folder.tracker_to_resume(moved) == tracker
    for override, says in (
        ("outer.lr=0.5", "another configuration"),
        ("tracking.uri=http://else", "tracking.uri"),
    ):
        with pytest.raises(ConfigError, match=says):
            folder.tracker_to_resume(load_config(Path(DIGITS), [override]))
    folder.summary.touch()
    with pytest.raises(ConfigError, match="finished"):
        folder.tracker_to_resume(config)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artefact of ten grey images."""
    path = tmp_path_factory.mktemp("artifact") / "distilled.parquet"
    grey_set(demo_config([])).save(path)
    return path


def test_show_describes_a_set_and_draws_it_once(artifact: Path, tmp_path: Path) -> None:
    target = tmp_path / "sheet.png"
    result = runner.invoke(app, ["show", str(artifact), "--out", str(target)])
    assert result.exit_code == 0, result.output
    assert "none: pixels in [0, 1]" in result.output
    assert target.exists()
    for out, says in (
        (target, "already exists"),
        (tmp_path / "x.foo", ".png"),
        (tmp_path / "no" / "x.png", "does not exist"),
    ):
        result = runner.invoke(app, ["show", str(artifact), "--out", str(out)])
        assert (result.exit_code, says in result.stderr) == (2, True), result.output


def test_learnt_labels_leave_pictures_in_their_classes(artifact: Path, tmp_path: Path) -> None:
    """Labels that favour another class, and a row of zeros: `show` says their sums and draws the same sheet."""
    hard = DistilledDataset.load(artifact)
    labels_NK = 3.0 * torch.eye(10).roll(1, dims=1)
    labels_NK[7] = 0.0
    learnt = replace(hard, labels_NK=labels_NK)
    learnt.save(tmp_path / "learnt.parquet")
    assert torch.equal(DistilledDataset.load(tmp_path / "learnt.parquet").labels_NK, labels_NK)
    result = runner.invoke(app, ["show", str(tmp_path / "learnt.parquet"), "--out", str(tmp_path / "a.png")])
    assert result.exit_code == 0, result.output
    assert "rows sum to 0 .. 3" in result.output
    runner.invoke(app, ["show", str(artifact), "--out", str(tmp_path / "b.png")])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_what_a_set_brings_along_for_baselines_is_dropped_with_them(artifact: Path) -> None:
    """The demo's draws of random images have no effect with --baselines none, and are none of the user's mistakes. Two
    sets are judged by one evaluation, the first one's."""
    from ray_distill.evaluation.overrides import evaluation_configs

    values = DistilledDataset.load(artifact).config
    assert values["evaluation"]["random_real_draws"] == 5
    other = values | {"evaluation": values["evaluation"] | {"seeds": 9}, "seed": 3}
    first, second = evaluation_configs(
        [values, other], {"baselines": [], "tune_lr": True}, ["data.root=null"]
    )
    assert (first.evaluation.baselines, first.evaluation.random_real_draws) == ((), None)
    assert first.evaluation.lr_grid is not None
    assert second.evaluation == first.evaluation
    assert (first.seed, second.seed) == (0, 3)


def test_sets_get_distinct_names() -> None:
    from ray_distill.cli.evaluate import set_names

    def names(*paths: str) -> list[str]:
        return list(set_names([Path(path) for path in paths]))

    assert names("runs/a/distilled.parquet") == ["distilled"]
    assert names("a/x.parquet", "a/y.parquet") == ["x", "y"]
    assert names("a/distilled.parquet", "b/distilled.parquet") == ["a", "b"]
    assert names("a/x.parquet", "a/y.parquet", "b/x.parquet") == ["a/x", "a/y", "b/x"]


def test_an_artefact_contains_neither_machines_nor_stores() -> None:
    """What is shared with the set: the experiment."""
    shared = demo_config(["tracking.uri=http://mine"]).experiment()
    assert "tracking" not in shared
    assert "cluster" not in shared
    assert parse_config(shared).hash == demo_config([]).hash


def test_the_demo_asks_for_no_more_workers_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one core: one worker, and the same experiment by its hash."""
    two = demo_config([])
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    assert demo_config([]).cluster.num_workers == 1
    assert demo_config([]).hash == two.hash


READMES = [
    ROOT / "README.md",
    ROOT / "experiments" / "README.md",
    ROOT / "experiments" / "cluster" / "README.md",
    ROOT / "experiments" / "examples" / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "ray_distill" / "README.md",
    ROOT / "ray_distill" / "distillation" / "README.md",
    ROOT / "ray_distill" / "storage" / "README.md",
]


def readme_commands() -> list[str]:
    text = "\n".join(path.read_text() for path in READMES)
    blocks = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return list(dict.fromkeys(commands))


def test_the_two_commands_stand_at_the_top() -> None:
    assert readme_commands()[:2] == ["pip install uv && uv run ray-distill demo", "uv run pytest"]


@pytest.mark.parametrize("command", readme_commands())
def test_every_readme_command_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs and options exist, files that a command names are there, configurations load with its --set."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(command.replace("pip install uv && ", ""))
    if words == [".ci/wheel"]:
        assert os.access(words[0], os.X_OK)
        return
    if words[:3] == ["ray", "job", "submit"]:
        submitted = words.index("--")
        assert all(Path(word).exists() for word in words[3:submitted] if word.endswith(".yaml"))
        words = ["uv", "run", *words[submitted + 1 :]]
        if words[2:5] == ["python", "-m", "ray_distill"]:
            words[2:5] = ["ray-distill"]
    assert words[:2] == ["uv", "run"], command
    tool, *arguments = words[2:]
    if tool == "python":
        assert Path(arguments[0]).exists()
        return
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


@pytest.mark.parametrize("path", READMES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_link_of_a_readme_leads_somewhere(path: Path) -> None:
    """To a file that is there, and to a heading that it has."""
    links = re.findall(r"\]\(((?!https?:)[^)]+)\)", path.read_text())
    assert len(links) >= 2
    for link in links:
        name, _, heading = link.partition("#")
        target = path.parent / name
        assert target.exists(), link
        if heading:
            heads = re.findall(r"^#+ (.+)$", target.read_text(), re.M)
            assert heading in {head.lower().replace(" ", "-") for head in heads}, link
