"""The experiments of the paper's public code: each file says what its command line says."""

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from ray_distill.config.config import Config
from ray_distill.config.load import load_config, read_yaml
from ray_distill.config.truncation import RatBpttConfig
from ray_distill.data.sources import READERS
from ray_distill.planning.images import known_images
from ray_distill.tuning.config import SearchConfig

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "experiments" / "README.md"
# As they stand in the README of the paper's public code, without what names files, ranks and printing.
COMMANDS = {
    "cifar10_ipc10": (
        "--dataset cifar10 --num_per_class 10 --batch_per_class 10 --num_train_eval 8 --batch_size 5000 --ddtype curriculum "
        "--cctype 2 --epoch 60000 --test_freq 25 --print_freq 10 --arch convnet --window 60 --minwindow 0 --totwindow 200 "
        "--inner_optim Adam --inner_lr 0.001 --lr 0.001 --zca --syn_strategy flip_rotate --real_strategy flip_rotate"
    ),
    "cifar100_ipc10": (
        "--dataset cifar100 --num_per_class 10 --batch_per_class 1 --train_y --task_sampler_nc 100 --num_train_eval 8 "
        "--batch_size 5000 --ddtype curriculum --cctype 2 --epoch 60000 --test_freq 25 --print_freq 10 --arch convnet "
        "--window 100 --minwindow 0 --totwindow 300 --inner_optim Adam --inner_lr 0.001 --lr 0.001 --zca "
        "--syn_strategy flip_rotate --real_strategy flip_rotate"
    ),
    "tiny_imagenet_ipc10": (
        "--dataset tiny-imagenet-200 --num_per_class 10 --batch_per_class 1 --task_sampler_nc 50 --train_y "
        "--num_train_eval 8 --batch_size 1000 --ddtype curriculum --cctype 2 --epoch 60000 --test_freq 10 --print_freq 10 "
        "--arch convnet4 --window 100 --minwindow 0 --totwindow 300 --inner_optim Adam --inner_lr 0.001 --lr 0.0003 "
        "--syn_strategy flip_rotate --real_strategy flip_rotate"
    ),
    "cifar100_ipc1_stabilised": (
        "--dataset cifar100 --num_per_class 1 --batch_per_class 1 --task_sampler_nc 100 --num_train_eval 8 --train_y "
        "--batch_size 5000 --ddtype curriculum --cctype 0 --epoch 60000 --test_freq 50 --print_freq 10 --arch convnet "
        "--window 90 --minwindow 0 --totwindow 130 --inner_optim Adam --inner_lr 0.001 --lr 0.0003 --zca "
        "--syn_strategy flip_rotate --real_strategy flip_rotate"
    ),
    "tiny_imagenet_ipc10_stabilised": (
        "--dataset tiny-imagenet-200 --num_per_class 10 --batch_per_class 1 --task_sampler_nc 50 --num_train_eval 8 "
        "--train_y --batch_size 2000 --ddtype curriculum --cctype 0 --epoch 60000 --test_freq 10 --print_freq 10 "
        "--arch convnet4 --window 90 --minwindow 0 --totwindow 270 --inner_optim Adam --inner_lr 0.001 --lr 0.0003 "
        "--syn_strategy flip_rotate --real_strategy flip_rotate"
    ),
    "imagenet_ipc1_stabilised": (
        "--dataset imagenet --train_y --num_per_class 1 --batch_per_class 1 --task_sampler_nc 50 --num_train_eval 8 "
        "--batch_size 1500 --ddtype curriculum --cctype 0 --epoch 60000 --test_freq 1 --print_freq 10 --arch convnet4 "
        "--window 80 --minwindow 0 --totwindow 280 --inner_optim Adam --inner_lr 0.001 --lr 0.0003 "
        "--syn_strategy flip_rotate --real_strategy flip_rotate"
    ),
}
SOURCES = {"tiny-imagenet-200": "tiny-imagenet"}
NETWORKS = {"convnet": "convnet3", "convnet4": "convnet4"}
RULES = {"2": "rat-bptt", "0": "t-bptt"}


def flags(command: str) -> dict[str, str]:
    """Each flag's value; of a flag without one, itself."""
    words = shlex.split(command)
    following = [*words[1:], "--"]
    return {
        w[2:]: (after if not after.startswith("--") else w)
        for w, after in zip(words, following, strict=True)
        if w.startswith("--")
    }


def of(name: str) -> Config:
    return load_config(ROOT / "experiments" / f"{name}.yaml")


@pytest.mark.parametrize("name", COMMANDS)
def test_an_experiment_is_its_command_line(name: str) -> None:
    said, config = flags(COMMANDS[name]), of(name)
    assert config.name == name
    assert config.data.source == SOURCES.get(said["dataset"], said["dataset"])
    assert config.distilled.ipc == int(said["num_per_class"])
    assert config.distilled.init == "unit-noise"
    assert config.distilled.learn_labels == ("train_y" in said)
    assert config.distilled.label_lr_scale == (1.0 if "train_y" in said else None)
    inner = config.inner
    assert (inner.optimizer, inner.lr) == (said["inner_optim"].lower(), float(said["inner_lr"]))
    assert inner.batch_per_class == int(said["batch_per_class"])
    assert inner.classes_per_batch == (int(said["task_sampler_nc"]) if "task_sampler_nc" in said else None)
    for side, flag in ((config.inner, "syn_strategy"), (config.outer, "real_strategy")):
        assert side.augmentation == tuple(said[flag].split("_"))
        assert side.augmentation_mode == "single"
    window = config.truncation
    assert window.rule == RULES[said["cctype"]]
    assert (window.window_length, window.unroll_length) == (int(said["window"]), int(said["totwindow"]))
    if isinstance(window, RatBpttConfig):
        assert (window.min_window_start, window.redraw_every) == (int(said["minwindow"]), 1)
    assert config.outer.lr == float(said["lr"])
    assert config.outer.batch_size == int(said["batch_size"])
    assert config.data.preprocessing == ("zca" if "zca" in said else "normalise")
    network = config.network
    assert (network.name, network.width) == (NETWORKS[said["arch"]], 128)
    assert config.evaluation.networks == (network.name,)
    assert config.evaluation.seeds == config.validation.num_networks == int(said["num_train_eval"])
    assert config.replicas == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_passes_over_the_data_are_outer_steps(name: str) -> None:
    """A pass over n images in batches of B is ceil(n / B) outer steps: 60,000 passes, validated every few of them."""
    said, config = flags(COMMANDS[name]), of(name)
    count = known_images(config.data.source).num_train
    steps = -(-count // int(said["batch_size"]))
    assert config.outer.steps == int(said["epoch"]) * steps
    assert config.validation.every == int(said["test_freq"]) * steps


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_table", ROOT / "experiments" / "readme_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_shows_what_was_measured() -> None:
    """The table in the README is the one that its script makes of the committed summary."""
    summary = json.loads((ROOT / "experiments" / "results" / "demo" / "summary.json").read_text())
    readme = (ROOT / "README.md").read_text()
    assert script().with_table(readme, summary) == readme
    assert f"{100 * summary['networks']['convnet2']['mean']:.1f}" in readme


def test_the_guide_lists_every_experiment() -> None:
    """Its table is the one that the script makes of the files; a row as one would write it by hand."""
    guide = GUIDE.read_text()
    table = script().experiments(ROOT / "experiments")
    assert script().with_experiments(guide, table) == guide
    for path in (ROOT / "experiments").glob("*.yaml"):
        if "space" in read_yaml(path):
            continue
        assert f"[{path.stem}]({path.name})" in table
    (row,) = (line for line in table.splitlines() if "[cifar100_ipc10]" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:] == ["cifar100", "10", "rat-bptt", "100", "300", "learnt", "convnet3", "600,000"]


def test_the_guide_lists_every_source_of_data() -> None:
    """Its table is the one of the module that reads them, and names every reader and no other."""
    guide = GUIDE.read_text()
    table = script().data_sources()
    assert script().with_sources(guide, table) == guide
    firsts = " ".join(line.split("|")[1] for line in table.splitlines()[2:])
    known_images = {name.partition(":")[0] for name in re.findall(r"`([^`]+)`", firsts)}
    assert known_images == set(READERS)


def test_the_configuration_reference_is_up_to_date() -> None:
    """It is the one that the script makes of the fields, and names every key of every section."""
    reference = (ROOT / "experiments" / "configuration.md").read_text()
    assert script().configuration() == reference, "run `uv run python experiments/readme_table.py`"
    schemas = [Config.model_json_schema(), SearchConfig.model_json_schema()]
    sections = [schema for root in schemas for schema in (root, *root["$defs"].values())]
    described = {key for s in sections for key, field in s["properties"].items() if "description" in field}
    assert len(described) > 80
    assert [key for key in described - {"fraction_of"} if f"| `{key}` |" not in reference] == []
