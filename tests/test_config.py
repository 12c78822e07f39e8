"""Configuration: what is accepted, what is refused and how it is said, what the hash covers."""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import get_args

import pytest
import yaml

from ray_distill.config import ConfigError, apply_overrides, load, parse, read_yaml
from ray_distill.config_sections import NETWORK_FAMILIES, Operation
from ray_distill.core.augment import OPERATIONS
from ray_distill.core.inner_optimizer import EPS_CONVENTIONS
from ray_distill.core.networks import FAMILIES, NORMS

DEMO = Path(str(files("ray_distill") / "demo.yaml"))
EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", [DEMO, *EXPERIMENTS], ids=lambda p: p.stem)
def test_shipped_configurations_load_and_print_what_they_are(path: Path) -> None:
    """The resolved YAML reads back to an equal configuration with an equal hash."""
    config = load(path)
    again = parse(yaml.safe_load(config.to_yaml()))
    assert again == config
    assert again.hash == config.hash


def test_experiments_are_shipped() -> None:
    """The parametrisation above must not be empty."""
    assert {"digits_ipc1", "cifar10_ipc1_cpu"} <= {path.stem for path in EXPERIMENTS}


WRONG = [
    ("truncation.window_length=80", "truncation.window_length", "40"),
    ("truncation.min_window_start=41", "truncation.min_window_start", "28"),
    ("truncation.rule=bptt", "truncation.window_length", "unknown key"),
    ("truncation.rule=zigzag", "truncation", "rat-bptt"),
    ("truncation.unroll_length=0", "truncation.unroll_length", "greater than 0"),
    ("distilled.ipc=0", "distilled.ipc", "greater than 0"),
    ("distilled.ipc=1.0", "distilled.ipc", "integer"),
    ("distilled.init=cats", "distilled.init", "unit-noise"),
    ("outer.lrr=1", "outer.lrr", "unknown key"),
    ("outer.lr=fast", "outer.lr", "number"),
    ("outer.lr=-1", "outer.lr", "greater than 0"),
    ("outer.clip_ema_decay=1.0", "outer.clip_ema_decay", "less than 1"),
    ("outer.steps=null", "outer.steps", "integer"),
    ("outer.augmentation=[spin]", "outer.augmentation.0", "rotate"),
    ("outer.augmentation=rotate", "outer.augmentation", "list"),
    ("inner.augmentation=[flip, flip]", "inner.augmentation", "twice"),
    ("inner.batch_per_class=2", "inner.batch_per_class", "distilled.ipc"),
    ("inner.eps_convention=adamw", "inner.eps_convention", "higher"),
    ("data.source=ftp:there", "data.source", "parquet:PATH"),
    ("data.source='parquet:'", "data.source", "parquet:PATH"),
    ("data.test_source=parquet:x", "data.test_source", "no effect"),
    ("data.zca_shrinkage=0.1", "data.zca_shrinkage", "no effect"),
    ("data.validation_fraction=0", "data.validation_fraction", "greater than 0"),
    ("network.name=convnet", "network.name", "depth"),
    ("network.name=resnext9", "network.name", "convnet1"),
    ("network={name: mlp2, norm: instance}", "network.norm", "no effect"),
    ("evaluation.networks=[]", "evaluation.networks", "at least 1"),
    ("evaluation.networks=[mlp2, mlp2]", "evaluation.networks", "twice"),
    ("evaluation.networks=mlp2", "evaluation.networks", "list"),
    ("cluster.num_workers=3", "cluster.num_workers", "replicas"),
    ("cluster.use_gpu=1", "cluster.use_gpu", "boolean"),
    ("seed=-1", "seed", "0"),
    ("name=a/b", "name", "pattern"),
    ("engine=magic", "engine", "adjoint"),
    ("truncation={rule: rat-bptt}", "truncation.unroll_length", "missing"),
    ("validation={}", "validation.horizon", "missing"),
    ("extra=1", "extra", "unknown key"),
]


@pytest.mark.parametrize(("override", "path", "says"), WRONG, ids=[w[0] for w in WRONG])
def test_a_wrong_value_is_refused_by_its_path(override: str, path: str, says: str) -> None:
    """The message begins with the key's path and says what is allowed."""
    with pytest.raises(ConfigError) as caught:
        load(DEMO, [override])
    lines = str(caught.value).splitlines()
    assert any(line.startswith(f"{path}: ") and says in line for line in lines), lines


@pytest.mark.parametrize("override", ["outer.lr", "=1", "outer..lr=1", ".=1", "name.x=1", "outer.lr=[1"])
def test_a_malformed_override_is_refused(override: str) -> None:
    """--set must be a.b=value with a YAML value, into a section."""
    with pytest.raises(ConfigError, match="--set"):
        load(DEMO, [override])


def test_every_mistake_is_named_at_once() -> None:
    """Two wrong keys, two lines."""
    with pytest.raises(ConfigError) as caught:
        load(DEMO, ["outer.lr=0", "distilled.ipc=0"])
    assert len(str(caught.value).splitlines()) == 2


def test_overrides_leave_their_input_alone_and_read_yaml_values() -> None:
    """Also 1e-3, which YAML 1.1 would read as text."""
    values = {"a": {"b": 1}}
    assert apply_overrides(values, ["a.c=1e-3", "d.e=[x, y]", "a.b=null"]) == {
        "a": {"b": None, "c": 1e-3},
        "d": {"e": ["x", "y"]},
    }
    assert values == {"a": {"b": 1}}


def test_files_that_are_no_mapping(tmp_path: Path) -> None:
    """A missing file, a list, broken YAML and bytes that are no text: each a ConfigError that names it."""
    contents = {
        "list.yaml": b"- 1\n",
        "broken.yaml": b"a: [1\n",
        "bytes.yaml": b"\xff\xfe\x00a",
        "empty.yaml": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    for name in [*contents, "missing.yaml"]:
        with pytest.raises(ConfigError, match=name):
            read_yaml(tmp_path / name)


def test_the_hash_covers_the_numbers_and_not_the_machines() -> None:
    """Another seed is another experiment; another number of workers or another store is the same one."""
    config = load(DEMO)
    assert load(DEMO, ["seed=1"]).hash != config.hash
    assert load(DEMO, ["outer.lr=0.011"]).hash != config.hash
    moved = load(DEMO, ["cluster.num_workers=1", "tracking.uri=sqlite:///elsewhere.db"])
    assert moved.hash == config.hash


def test_names_are_those_of_core() -> None:
    """What the configuration offers is what core can do, no more and no less."""
    assert set(get_args(Operation)) == set(OPERATIONS)
    assert set(NETWORK_FAMILIES) == set(FAMILIES)
    assert {"instance", "none"} == set(NORMS)
    assert set(EPS_CONVENTIONS) == {"torch", "higher"}


def test_a_configuration_is_read_without_torch() -> None:
    """Help and mistakes are told at once: the module imports neither torch nor ray nor mlflow."""
    code = "import sys, ray_distill.cli; print({'torch', 'ray', 'mlflow', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_defaults_that_depend_on_the_mode() -> None:
    """Shrinkage appears with ZCA, a norm with a convnet; both absent otherwise."""
    assert load(DEMO).data.zca_shrinkage is None
    assert load(DEMO, ["data.preprocessing=zca"]).data.zca_shrinkage == 0.1
    assert load(DEMO).network.norm == "instance"
    assert load(DEMO, ["network.name=mlp2"]).network.norm is None
