"""Plans: the arithmetic on made-up probes, what is proposed where memory is short, and one real probe."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ray_distill.builders import settings
from ray_distill.builders.experiment import bytes_per_state
from ray_distill.cli.main import app
from ray_distill.cli.plan import _limits, _table
from ray_distill.config.config import Config
from ray_distill.core.metagradient import adjoint_metagradients
from ray_distill.core.outer_loop import draw_real_batch
from ray_distill.core.rng import Stream
from ray_distill.core.schedules import Constant, Linear
from ray_distill.core.truncation import BPTT, RBPTT, TBPTT, ForwardCurriculum, RaTBPTT, Window
from ray_distill.core.unroll import draw_inner, initial_state, run_window
from ray_distill.errors import RunError
from ray_distill.planning import images as planning_images
from ray_distill.planning.estimate import (
    GroupCost,
    ProbeResults,
    mean_steps,
    num_validations,
    plan_row,
    replayed_steps,
    stored_states,
    table_rows,
)
from ray_distill.planning.images import ImageInfo, image_info, known_images
from ray_distill.planning.memory_fit import plan_record, setting_to_lower
from ray_distill.planning.probes import BatchProbe, ProbeSettings, StepProbe, ValidationProbe, run_probe
from tests.helpers.hub_files import encode, write_images
from tests.helpers.tiny import Bench, tiny_config

Make = Callable[..., Bench]
GIB = 2**30
N20, W6 = Constant(20), Constant(6)
RULES = {
    "bptt": (BPTT(unroll_length=N20), (0, 20, 0)),
    "t-bptt": (TBPTT(unroll_length=N20, window_length=W6), (14, 6, 0)),
    # 1 .. 20, each as likely.
    "r-bptt": (RBPTT(unroll_length=N20), (0, 10.5, 0)),
    # 2 .. 14, each as likely.
    "rat-bptt": (RaTBPTT(unroll_length=N20, window_length=W6, min_window_start=2), (8, 6, 0)),
    "forward": (
        ForwardCurriculum(unroll_length=N20, window_length=W6, min_window_start=2, patience=1),
        (8, 6, 0),
    ),
    # N 20 .. 58 with mean 39, W 1 .. 20 with mean 10.5; half of what is left is burn-in.
    "scheduled": (
        RaTBPTT(
            unroll_length=Linear(start=20, end=58, steps=20), window_length=Linear(start=1, end=20, steps=20)
        ),
        (14.25, 10.5, 0),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_the_mean_unroll_is_the_rules(name: str) -> None:
    rule, expected = RULES[name]
    assert tuple(mean_steps(rule, 20, None)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["r-bptt", "rat-bptt"])
def test_the_mean_unroll_is_that_of_the_draws(name: str) -> None:
    """4,000 draws: starts and lengths on 13 and 20 places have standard deviations of 3.7 and 5.8, so the means are
    off by less than 0.4 with all but certainty."""
    rule, (burn_in, window, _) = RULES[name]
    drawn = [rule.draw(Stream(seed=0, name="window", outer_step=s)) for s in range(4000)]
    assert sum(w.start for w in drawn) / 4000 == pytest.approx(burn_in, abs=0.4)
    assert sum(w.length for w in drawn) / 4000 == pytest.approx(window, abs=0.4)


def test_replayed_windows_count_their_steps_twice() -> None:
    """Ten steps in room for 7 states: segments of 5 take 2 + 5, so the first 5 steps are taken twice. In room for
    10: none are."""
    assert (replayed_steps(10, 7), stored_states(10, 7)) == (5, 7)
    assert (replayed_steps(10, 10), stored_states(10, 10)) == (0, 10)
    # Lengths 1 .. 7 fit; 8, 9 and 10 in segments of 4 + 2, 5 + 2 and 5 + 2 or larger: see segment_length.
    replayed = sum(replayed_steps(length, 7) for length in (8, 9, 10)) / 10
    assert mean_steps(RBPTT(unroll_length=Constant(10)), 3, 7).replayed == pytest.approx(replayed)


@pytest.mark.parametrize("max_states", [None, 7])
def test_an_outer_step_takes_as_many_gradients_as_a_plan_counts(bench: Make, max_states: int | None) -> None:
    """Burn-in, window, replayed steps and the outer loss: one gradient each; one product for each window step."""
    b = bench(truncation={"rule": "rat-bptt", "unroll_length": 14, "window_length": 10}, replicas=1)
    inner, calls = replace(b.experiment.inner, max_states=max_states), {"gradients": 0, "products": 0}

    def counted(name: str) -> Callable[..., object]:
        function = getattr(inner.functions, name)

        def call(*arguments: object) -> object:
            calls[name] += 1
            return function(*arguments)

        return call

    for name in calls:
        setattr(inner.functions, name, counted(name))
    draws = [draw_inner(inner, 0, 0, 0, 14, b.initial)]
    real = [draw_real_batch(b.experiment, b.train, 0, 0)]
    adjoint_metagradients(inner, b.initial, draws, Window(4, 10), real)
    assert calls == {"gradients": 4 + 10 + replayed_steps(10, max_states) + 1, "products": 10}


def test_the_bytes_of_a_state_are_those_that_a_window_keeps(bench: Make) -> None:
    """Parameters, two moments and the gradient, of two replicas at once."""
    b = bench()
    inner = b.experiment.inner
    draws = [draw_inner(inner, 0, 0, r, 1, b.initial) for r in range(2)]
    kept = run_window(inner, b.initial, draws, initial_state(inner, draws), 1)
    (state,), (grad,) = kept.states, kept.grads
    tensors = [state.theta_P, *state.moments, grad]
    expected = sum(x.numel() * x.element_size() for x in tensors)
    assert bytes_per_state(b.config, inner.network, 2, group_size=2) == expected


IMAGES = ImageInfo(shape=(3, 32, 32), num_classes=10, num_train=900, num_validation=100, known_by="made up")


def probed(config: Config, memory_gib: float = 100.0, at_once: int = 1, **changes: int) -> ProbeResults:
    """A burn-in step takes 1 s, a window step 3 s, draws 0.5 s, a pass of 10 real images 2 s; 50 scores 5 s; a group of
    two as long as one. States of 0.01 GiB; parts that take 1 GiB unless said."""
    sizes = {"pass_bytes": GIB, "draw_bytes": GIB, "held_bytes": GIB, "score_bytes": GIB} | changes
    steps = StepProbe(1.0, 3.0, GIB // 100, sizes["pass_bytes"], 10, 0.0, "")
    batch = BatchProbe(0.5, 4.0, 20, sizes["draw_bytes"], sizes["held_bytes"])
    rule, _ = settings.truncation_rule(config)
    most = int(config.compute.state_memory_gib * 100)
    group = GroupCost(
        steps=steps,
        batch=batch,
        mean=mean_steps(rule, config.outer.steps, most),
        states=stored_states(settings.longest_window(config), most),
    )
    in_twos = [2] * (config.replicas // 2) + [1] * (config.replicas % 2)
    return ProbeResults(
        config=config,
        images=IMAGES,
        sizes=in_twos if at_once == 2 else [1] * config.replicas,
        groups={1: group, 2: group},
        validation=ValidationProbe(5.0, 50, sizes["score_bytes"], GIB // 2),
        memory_bytes=int(memory_gib * GIB),
    )


def test_seconds_are_shared_out_like_replicas() -> None:
    """Unroll 6, window 3: 1.5 burn-in steps. A group: 1.5 + 9 + 0.5 + 2 x 40 / 10 = 19 s. Three replicas one by one: three
    groups on one worker, two on two, one on four, of which one has none. In twos: two groups, as long as two, whichever
    number of workers there is.

    A network of a validation: 6 burn-in steps + 5 s x 100 / 50 = 16 s; two of them; 20 steps with 4 validations.
    """
    config = tiny_config(replicas=3, outer={"batch_size": 40})
    by_workers = {r.workers: r for r in table_rows(probed(config))}
    assert list(by_workers) == [1, 2, 4, 8]
    assert [r.outer_step_s for r in by_workers.values()] == [57.0, 38.0, 19.0, 19.0]
    assert [r.validation_s for r in by_workers.values()] == [32.0, 16.0, 16.0, 16.0]
    assert [r.idle for r in by_workers.values()] == [0, 0, 1, 5]
    assert [r.replicas_each for r in by_workers.values()] == [3, 2, 1, 1]
    assert by_workers[2].run_s == 20 * 38.0 + 4 * 16.0
    assert by_workers[4].device_s == 4 * (20 * 19.0 + 4 * 16.0)
    elastic = tiny_config(replicas=6, cluster={"num_workers": 6, "min_workers": 3})
    assert [r.workers for r in table_rows(probed(elastic))] == [1, 2, 3, 4, 6, 8]
    in_twos = table_rows(probed(config, at_once=2))
    assert [(r.outer_step_s, r.replicas_each, r.idle) for r in in_twos] == [
        (38.0, 3, 0),
        (19.0, 2, 0),
        (19.0, 2, 2),
        (19.0, 2, 6),
    ]


def test_compiling_counts_for_every_size_of_group() -> None:
    """In twos: a worker compiles for two replicas at once and for one, which validation needs; one by one for one."""
    for at_once, expected in ((2, 120.0), (1, 60.0)):
        p = probed(tiny_config(replicas=4), at_once=at_once)
        groups = {n: replace(g, steps=g.steps._replace(compile_s=60.0)) for n, g in p.groups.items()}
        for workers in (1, 2):
            took = plan_row(replace(p, groups=groups), workers).run_s - plan_row(p, workers).run_s
            assert took == pytest.approx(expected)


@pytest.mark.parametrize(("steps", "every", "expected"), [(20, 5, 4), (21, 5, 5), (3, 5, 1)])
def test_the_last_step_is_validated_too(steps: int, every: int, expected: int) -> None:
    assert num_validations(tiny_config(outer={"steps": steps}, validation={"every": every})) == expected


def test_a_machine_has_the_driver_and_all_workers() -> None:
    """A worker has its libraries and the window's 3 states, a pass and the real batch; images are mapped and do not count."""
    p = probed(tiny_config(replicas=2))
    assert p.memory.total == GIB // 2 + 3 * (GIB // 100) + 2 * GIB
    assert plan_row(p, 2).needed_bytes == GIB // 2 + 2 * p.memory.total


def test_a_gpu_counts_its_own_memory() -> None:
    """Whatever the number of workers: its context, the real images as they are stored, and the work of one worker. Images
    that would fill more than half of it stay where they are."""
    p = probed(tiny_config(replicas=2, cluster={"use_gpu": True}))
    work = 3 * (GIB // 100) + 2 * GIB
    assert plan_row(p, 2).needed_bytes == p.memory.total == GIB // 2 + 1000 * 3072 + work
    assert plan_row(p, 1).needed_bytes == plan_row(p, 2).needed_bytes
    whitened = probed(tiny_config(replicas=2, cluster={"use_gpu": True}, data={"preprocessing": "zca"}))
    assert whitened.memory.data == 4 * 1000 * 3072
    assert replace(whitened, memory_bytes=2 * 4 * 1000 * 3072 - 1).memory.data == 0


LONG = {"truncation": {"rule": "t-bptt", "unroll_length": 300, "window_length": 300}}
TWO = {"replicas": 2, "cluster": {"num_workers": 2}}
SHORT_OF_MEMORY = {
    # 3 GiB of states, 2 of a pass and the batch: 5, and there are 4.9 - 1.
    "states": (LONG, {}, 4.9, ("compute.state_memory_gib", 4.0, 1.89)),
    # Fits with 10 x (2 - 1.03) / 3 images.
    "pass": ({}, {"pass_bytes": 3 * GIB}, 3.0, ("compute.images_per_pass", 10, 3)),
    # Drawing 32 takes 6 GiB, and there are 3.5; holding them would allow 19.
    "batch": (
        {},
        {"held_bytes": 4 * GIB, "draw_bytes": 6 * GIB},
        4.5,
        ("outer.batch_size", 32, 18),
    ),
    # Scoring 50 takes 3 GiB, and there are 2.6: 43 of the 1,000 images.
    "scoring": ({}, {"score_bytes": 3 * GIB}, 3.6, ("data.validation_fraction", 0.2, 0.043)),
    # Two workers take 0.5 + 2 x 2.53 GiB, and each of their parts is more than there is room for.
    "workers": (TWO, {}, 3.2, ("cluster.num_workers", 2, 1)),
    "hopeless": ({}, {}, 0.6, None),
    "enough": ({}, {}, 3.1, None),
}


@pytest.mark.parametrize("name", SHORT_OF_MEMORY)
def test_the_setting_to_lower_is_named_with_a_value_that_fits(name: str) -> None:
    """The libraries of driver and worker take 1 GiB of what there is."""
    sections, sizes, memory_gib, expected = SHORT_OF_MEMORY[name]
    p = probed(tiny_config(**({"precision": "float32", "replicas": 1} | sections)), memory_gib, **sizes)
    lever = setting_to_lower(p)
    assert (lever and (lever.key, lever.now, lever.to)) == expected
    assert plan_row(p, p.config.cluster.num_workers).fits == (name == "enough")


def test_lowered_states_are_what_a_plan_then_counts() -> None:
    """With 1.89 GiB for states the run fits; with 0.06 more it does not."""
    for gib, fits in ((1.89, True), (1.94, False)):
        config = tiny_config(
            precision="float32", replicas=1, compute={"state_memory_gib": gib}, truncation=LONG["truncation"]
        )
        assert plan_row(probed(config, 4.9), 1).fits == fits


def test_known_datasets_need_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    assert known_images("tiny-imagenet").shape == (3, 64, 64)
    assert known_images("imagenet", 32).shape == (3, 32, 32)
    assert (known_images("cifar100").num_classes, known_images("cifar100").num_train) == (100, 50_000)
    some = known_images("cifar100", classes=[3, 5, "whale"])
    assert (some.num_classes, some.num_train) == (3, 1_500)
    monkeypatch.setitem(planning_images._KNOWN, "digits", (3, 16, 7, 1000))
    images = image_info(tiny_config(data={"limit": None, "validation_fraction": 0.1}))
    assert (images.shape, images.num_classes) == ((3, 16, 16), 7)
    assert (images.num_train, images.num_validation) == (900, 100)
    few = image_info(tiny_config(data={"limit": 200, "validation_fraction": 0.1}))
    assert (few.num_train, few.num_validation) == (180, 20)


def test_other_sources_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files of 30 images of 5 classes: 6 are decoded, of which the last has colour; all are counted, and a fifth is
    held out. The cache stays empty."""
    monkeypatch.setattr(planning_images, "_NUM_INSPECTED", 6)
    grey, colour = (encode(np.zeros(shape, np.uint8)) for shape in ((4, 6), (4, 6, 3)))
    for name in ("train-0.parquet", "train-1.parquet"):
        write_images(tmp_path / name, [grey] * 5 + [colour] * 25, [i % 5 for i in range(30)])
    monkeypatch.setenv("RAY_DISTILL_CACHE", str(tmp_path / "cache"))
    images = image_info(tiny_config(data={"source": f"parquet:{tmp_path}", "limit": None}))
    assert (images.shape, images.num_classes) == ((3, 4, 6), 5)
    assert (images.num_train, images.num_validation) == (48, 12)
    assert not (tmp_path / "cache").exists()


def die(setting: ProbeSettings) -> int:
    os._exit(9)


def test_a_probe_that_is_killed_is_not_waited_for() -> None:
    setting = ProbeSettings(config={}, images=IMAGES, group_size=1, compiled=False)
    with pytest.raises(RunError, match="was killed, probably for lack of memory"):
        run_probe(die, setting)


runner = CliRunner()


def test_a_plan_is_probed_printed_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One replica: every number of workers takes what one takes. Nothing but the record is written. With 0.1 GiB nothing
    fits, and that is no error: it is what was asked."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(tiny_config(replicas=1).to_yaml())
    result = runner.invoke(app, ["plan", "tiny.yaml", "--json", "plan.json", "--memory", "0.1"])
    assert result.exit_code == 0, result.output
    plan = json.loads(Path("plan.json").read_text())
    assert [r["workers"] for r in plan["rows"]] == [1, 2, 4, 8]
    steps, batch = plan["groups"]["1"]["steps"], plan["groups"]["1"]["batch"]
    assert 0 < steps["burn_in_step_s"] <= steps["window_step_s"] < 1
    assert batch["images"] == 32
    assert plan["images"]["shape"] == [1, 8, 8]
    assert (plan["images"]["num_train"], plan["images"]["num_validation"]) == (160, 40)
    assert plan["validation"]["library_bytes"] > 100 * 2**20
    first, *others = plan["rows"]
    expected = 1.5 * steps["burn_in_step_s"] + 3 * steps["window_step_s"] + batch["draws_s"] + batch["loss_s"]
    assert first["outer_step_s"] == pytest.approx(expected)
    assert {r["outer_step_s"] for r in others} == {first["outer_step_s"]}
    assert not first["fits"]
    assert "does NOT fit" in result.output
    assert "not compiled" in result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plan.json", "tiny.yaml"]
    again = runner.invoke(app, ["plan", "tiny.yaml", "--json", "plan.json"])
    assert (again.exit_code, "exists" in again.stderr) == (2, True)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("engine=higher", "engine: only `adjoint` can be planned"),
        ("outer.batch_size=500", "outer.batch_size: must be at most the 160 training images (got 500)"),
        ("cluster.use_gpu=true", "cluster.use_gpu: a plan is measured on this machine"),
        ("inner.classes_per_batch=11", "inner.classes_per_batch: must be at most the 10 classes"),
        ("data.source=parquet:nowhere", "nowhere"),
    ],
)
def test_what_cannot_be_planned_is_one_message(
    override: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "tiny.yaml").write_text(tiny_config().to_yaml())
    result = runner.invoke(app, ["plan", str(tmp_path / "tiny.yaml"), "--set", override])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert says in result.stderr.replace("\n", " ")


def test_what_does_not_go_is_said() -> None:
    """Three replicas on this machine's two cores, one for each worker; 5 GiB hold 0.5 of the driver and one
    worker of 2.53."""
    p = probed(tiny_config(replicas=3, precision="float32"), memory_gib=5.0)
    assert plan_record(p, setting_to_lower(p))["setting_to_lower"] is None
    table = _table(p, table_rows(p))
    assert [list(column.cells)[2] for column in table.columns[:1]] == ["4 (1 idle)"]
    assert [f"{r.needed_bytes / GIB:.2f}" for r in table_rows(p)] == list(table.columns[-1].cells)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.cpu_count", lambda: 2)
        idle, cores, memory = _limits(p, table_rows(p))
    assert idle.startswith("4, 8 workers: not allowed, more than the 3 group(s)")
    assert cores.startswith("4, 8 workers: need more than this machine's 2 cores")
    assert memory.startswith("2, 4, 8 workers: do not fit in the memory")
