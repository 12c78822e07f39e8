"""Configuration: what is accepted, what is refused and how it is said, what the hash covers."""

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import get_args

import pytest
import yaml

from ray_distill.config.config import ConfigError
from ray_distill.config.load import apply_overrides, load_config, parse_config, parse_data_request, read_yaml
from ray_distill.config.sections import ALWAYS_COMPOSED, Mode, Operation
from ray_distill.core import augment
from ray_distill.core.inner_optimizer import EPS_CONVENTIONS

DEMO = Path(str(files("ray_distill") / "demo.yaml"))
FILES = sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml"))
SEARCHES = [path for path in FILES if "space" in read_yaml(path)]
EXPERIMENTS = [path for path in FILES if path not in SEARCHES]


@pytest.mark.parametrize("path", [DEMO, *EXPERIMENTS], ids=lambda p: p.stem)
def test_shipped_configurations_load_and_print_what_they_are(path: Path) -> None:
    """The resolved YAML reads back to an equal configuration with an equal hash."""
    config = load_config(path)
    again = parse_config(yaml.safe_load(config.to_yaml()))
    assert again == config
    assert again.hash == config.hash


def test_experiments_are_shipped() -> None:
    """The parametrisation above must not be empty."""
    assert {"digits_ipc1", "cifar10_ipc1_cpu"} <= {path.stem for path in EXPERIMENTS}


FORWARD = "rule: forward, unroll_length: 40, window_length: 12"


def test_every_mistake_is_named_at_once() -> None:
    """Two wrong keys, two lines."""
    with pytest.raises(ConfigError) as caught:
        load_config(DEMO, ["outer.lr=0", "distilled.ipc=0"])
    assert len(str(caught.value).splitlines()) == 2


WINDOW, START = "truncation.window_length", "truncation.min_window_start"
MISFITS = [
    # 12 + 29 k / 129 rounds to 41 from k = 126.8 on.
    (f"{WINDOW}={{schedule: linear, start: 12, end: 41}}", 0, WINDOW, "at step 127 they are 41 and 40;"),
    # Fits at both ends of the run, and not in its middle.
    (
        "truncation.unroll_length={schedule: piecewise, values: [40, 11, 40], from_steps: [0, 50, 51]}",
        *(0, WINDOW, "at step 50 they are 12 and 11;"),
    ),
    # The last step only.
    (
        "truncation.unroll_length={schedule: piecewise, values: [40, 11], from_steps: [0, 129]}",
        *(0, WINDOW, "at step 129 they are 12 and 11;"),
    ),
    # 40 - 20 k / 129 rounds to 21 from k = 119.3 on.
    (
        "truncation.unroll_length={schedule: linear, start: 40, end: 20}",
        *(10, START, "at step 120 is 21 - 12 = 9 (got 10)"),
    ),
    # 12 + 19 (1 - cos(pi k / 129)) / 2 rounds to 31 from k = 129 (1 - acos(36/38) / pi) = 115.6 on.
    (
        f"{WINDOW}={{schedule: cosine, start: 12, end: 31}}",
        *(10, START, "at step 116 is 40 - 31 = 9 (got 10)"),
    ),
]


@pytest.mark.parametrize(("override", "earliest", "path", "says"), MISFITS, ids=[m[0] for m in MISFITS])
def test_lengths_must_fit_at_every_outer_step(override: str, earliest: int, path: str, says: str) -> None:
    """130 outer steps, window 12, unroll 40 but for the override: the first step that does not fit is named."""
    with pytest.raises(ConfigError) as caught:
        load_config(DEMO, [f"{START}={earliest}", override])
    assert str(caught.value).startswith(f"{path}: ")
    assert says in str(caught.value)


def test_lengths_that_fit_at_every_step_are_taken_whatever_they_would_be_after_the_run() -> None:
    """12 + 68 k / 299 rounds to 41 from k = 125.3 on: a run of 126 steps never gets there, one of 127 does."""
    window = "truncation.window_length={schedule: linear, start: 12, end: 80, steps: 300}"
    assert load_config(DEMO, [window, "outer.steps=126"]).truncation.rule == "rat-bptt"
    with pytest.raises(ConfigError, match="at step 126 they are 41 and 40"):
        load_config(DEMO, [window, "outer.steps=127"])


def test_a_curriculum_must_have_the_validations_to_move() -> None:
    """Every 26 of 130 steps: four validations before the last step, one to compare with and a patience of 3."""
    assert load_config(DEMO, [f"truncation={{{FORWARD}, patience: 3}}"]).truncation.rule == "forward"
    with pytest.raises(
        ConfigError, match=r"^truncation.patience: .*before the last outer step, which is 4 \(got 4\)"
    ):
        load_config(DEMO, [f"truncation={{{FORWARD}, patience: 4}}"])


def test_a_schedule_over_the_run_needs_two_steps() -> None:
    """A run of one step cannot go from one value to another; of two, it can."""
    lr = "outer.lr={schedule: cosine, start: 1e-2, end: 1e-3}"
    with pytest.raises(ConfigError, match=r"^outer.lr: .*outer.steps is 1"):
        load_config(DEMO, [lr, "outer.steps=1"])
    assert load_config(DEMO, [lr, "outer.steps=2"]).outer.steps == 2


def test_a_scheduled_value_is_a_number_or_a_mapping_in_overrides_and_in_print() -> None:
    """A number is laid over a mapping, a mapping over a number, a key into a mapping; each prints as it was."""
    cosine = "outer.lr={schedule: cosine, start: 1e-2, end: 1e-4}"
    pieces = "truncation.window_length={schedule: piecewise, values: [4, 8], from_steps: [0, 9]}"
    config = load_config(DEMO, [cosine, pieces])
    assert str(config.outer.lr) == "0.01 to 0.0001 (cosine)"
    assert str(config.truncation.window_length) == "4, 8 (piecewise)"  # type: ignore[union-attr]
    again = parse_config(yaml.safe_load(config.to_yaml()))
    assert (again, again.hash) == (config, config.hash)
    assert parse_config(json.loads(json.dumps(config.to_dict()))) == config
    assert load_config(DEMO, [cosine, "outer.lr.end=1e-3"]).outer.lr.end == 1e-3  # type: ignore[union-attr]
    assert load_config(DEMO, [cosine, "outer.lr=0.03"]) == load_config(DEMO)


def test_overrides_leave_their_input_alone_and_read_yaml_values() -> None:
    """Also 1e-3, which YAML 1.1 would read as text."""
    values = {"a": {"b": 1}}
    assert apply_overrides(values, ["a.c=1e-3", "d.e=[x, y]", "a.b=null"]) == {
        "a": {"b": None, "c": 1e-3},
        "d": {"e": ["x", "y"]},
    }
    assert values == {"a": {"b": 1}}


def test_the_hash_covers_the_numbers_and_not_the_machines() -> None:
    """Another seed is another experiment; another number of workers or another store is the same one."""
    config = load_config(DEMO)
    assert load_config(DEMO, ["seed=1"]).hash != config.hash
    assert load_config(DEMO, ["outer.lr=0.011"]).hash != config.hash
    moved = load_config(DEMO, ["cluster.num_workers=1", "tracking.uri=sqlite:///elsewhere.db"])
    assert moved.hash == config.hash
    assert load_config(DEMO, ["cluster.min_workers=1"]).hash == config.hash


def test_each_optimizer_has_its_own_defaults() -> None:
    sgd, adam = load_config(DEMO, ["inner.optimizer=sgd"]).inner, load_config(DEMO).inner
    assert (sgd.momentum, sgd.weight_decay, sgd.eps_convention) == (0.9, 5e-4, None)
    assert (adam.momentum, adam.weight_decay, adam.eps_convention) == (None, None, "torch")


def test_how_the_arithmetic_is_done_is_not_what_the_run_is() -> None:
    config = load_config(DEMO)
    assert load_config(DEMO, ["compute.compile=never", "compute.images_per_pass=3"]).hash == config.hash
    assert load_config(DEMO, ["precision=float64"]).hash != config.hash


def test_names_are_those_of_core() -> None:
    """What the configuration offers is what core can do, no more and no less."""
    assert set(get_args(Operation)) == set(augment.OPERATIONS)
    assert tuple(name for name, row in augment.OPERATIONS.items() if row.always) == ALWAYS_COMPOSED
    assert get_args(Mode) == get_args(augment.Mode)
    assert set(EPS_CONVENTIONS) == {"torch", "higher"}


def test_a_configuration_is_read_without_torch() -> None:
    """Help and mistakes are told at once: the module imports neither torch nor ray nor mlflow."""
    code = "import sys, ray_distill.cli.main; print({'torch', 'ray', 'mlflow', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("operations", ["[flip, crop]", "[crop, cutout, rotate]", "[flip, color]"])
def test_composed_is_accepted_where_it_differs_from_single(operations: str) -> None:
    """Something is always on, and it is not all there is."""
    for section in ("inner", "outer"):
        config = load_config(
            DEMO, [f"{section}.augmentation={operations}", f"{section}.augmentation_mode=composed"]
        )
        assert getattr(config, section).augmentation_mode == "composed"


def test_defaults_that_depend_on_the_mode() -> None:
    """Shrinkage appears with ZCA, a network's options with its family, a scale with learnt labels; all absent otherwise."""
    assert load_config(DEMO).distilled.label_lr_scale is None
    assert load_config(DEMO, ["distilled.learn_labels=true"]).distilled.label_lr_scale == 1.0
    assert load_config(DEMO).data.zca_shrinkage is None
    assert load_config(DEMO, ["data.preprocessing=zca"]).data.zca_shrinkage == 0.1

    def options(network: str) -> tuple[object, ...]:
        section = load_config(DEMO, [f"network={{name: '{network}'}}"]).network
        return section.width, section.activation, section.pooling

    assert options("convnet3-bn") == (128, "relu", "avg")
    assert options("mlp2") == (128, "relu", None)
    assert options("resnet18-bn") == (64, None, None)
    assert options("torchvision:mobilenet_v2") == (None, None, None)


def test_the_size_of_many_sized_sources_and_where_files_lie() -> None:
    """ImageNet at 64 unless told; neither root nor cache is a part of the experiment."""
    assert load_config(DEMO, ["data={source: imagenet}"]).data.image_size == 64
    assert load_config(DEMO, ["data={source: imagenet, image_size: 32}"]).data.image_size == 32
    plain = load_config(DEMO, ["data={source: mnist, classes: [3, 5]}"])
    assert plain.data.classes == (3, 5)
    moved = load_config(DEMO, ["data={source: mnist, classes: [3, 5], root: /else, cache: there}"])
    assert moved.hash == plain.hash
    assert moved.experiment() == plain.experiment()
    for other in ("classes: [5, 3]", "classes: [3, 5], image_size: 32", "classes: [3, 5], limit: 100"):
        assert load_config(DEMO, [f"data={{source: mnist, {other}}}"]).hash != plain.hash
    broken = (
        load_config(DEMO, ["data={source: 'folder:a', max_broken: 3}"]),
        load_config(DEMO, ["data.source=folder:a"]),
    )
    assert broken[0].hash != broken[1].hash


def test_data_alone_are_checked_as_in_an_experiment() -> None:
    """For `data prepare`: the same section, and the seed."""
    request = parse_data_request({"data": {"source": "mnist", "preprocessing": "zca"}, "seed": 3})
    assert (request.data.zca_shrinkage, request.seed) == (0.1, 3)
    with pytest.raises(ConfigError, match=r"(?s)data\.source: .*outer: unknown key 'outer' at the top"):
        parse_data_request({"data": {"source": "x"}, "outer": {"lr": 1}})
