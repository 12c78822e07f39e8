"""Searches by real Tune trials: early stopping, resuming, replaying a winner, and that nothing is left behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from ray_distill.artifacts.dataset import DistilledDataset
from ray_distill.builders.experiment import load_development_data
from ray_distill.config.load import load_config
from ray_distill.storage.remote import Storage
from ray_distill.tuning.config import SearchConfig
from ray_distill.tuning.journal import TrialLog
from ray_distill.tuning.run import SearchOutcome, config_values, run_search
from ray_distill.tuning.sampler import planned_values, trial_number
from ray_distill.tuning.search_dir import SearchDir
from ray_distill.tuning.tuner import SearchError
from ray_distill.utils.progress import silent
from tests.helpers.processes import descendants_named
from tests.helpers.search_events import bare, events, kept, logs_of
from tests.helpers.tiny import TINY
from tests.helpers.tiny_search import SPACE, tiny_search

pytestmark = pytest.mark.slow
LOOK = [
    sys.executable,
    "-c",
    """
import json, time
from pathlib import Path
import ray
from ray.util.state import list_actors
from ray_distill.cli.main import main

def left():
    actors = list_actors(ray.get_runtime_context().gcs_address, limit=1000)
    groups = ray.util.placement_group_table().values()
    return [a.class_name for a in actors if a.state != "DEAD"] + [g["state"] for g in groups if g["state"] != "REMOVED"]

def end():
    deadline = time.monotonic() + 60
    while left() != ["_AutoscalingCoordinatorActor"] and time.monotonic() < deadline:
        time.sleep(0.5)
    free = ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]
    Path("left.json").write_text(json.dumps([left(), free]))
    shutdown()

shutdown, ray.shutdown = ray.shutdown, end
main()
""",
    "search",
]
"""The command, which before it ends its cluster waits until nothing is left in it, and then writes what is: living actors and
placement groups, and whether all cores are free. Ray's own coordinator of the cluster's size stays, one for a cluster."""

LEARNING = TINY | {"inner": {"lr": 0.03}, "outer": TINY["outer"] | {"lr": 0.1}}
"""A base that reaches 0.5 at its first validation and 0.7 at its last; with an outer.lr below 1e-3 none exceeds 0.3."""


def run(search: SearchConfig, folder: SearchDir, *, resume: bool = False) -> SearchOutcome:
    """Run the search in this process, on the connected cluster, with its own MLflow store."""
    uri = f"sqlite:///{folder.path.parent / 'mlflow.db'}"
    data, began = load_development_data(search.config), time.monotonic()
    return run_search(search, data, folder, uri, silent, resume=resume, began=began)


def runs_of(result: SearchOutcome) -> dict[str, str]:
    """The ids of the trials' MLflow runs, by name."""
    client, parent = MlflowClient(result.tracker.uri), result.tracker.run_id
    experiment = client.get_run(parent).info.experiment_id
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return {run.info.run_name: run.info.run_id for run in runs}


def check_member(
    result: SearchOutcome, run_id: str, folder: SearchDir, log: TrialLog, points: list[dict[str, float]]
) -> None:
    """Asserts that the run of a population's member has each outer step once, the validations that the member reported, and
    since its last exchange the losses of its replay; and that the journal has each exchange after all members' reports."""

    def history(name: str) -> list[tuple[int, float]]:
        return [(m.step, m.value) for m in MlflowClient(result.tracker.uri).get_metric_history(run_id, name)]

    journal = [json.loads(line) for line in folder.journal.read_text().splitlines()]
    reports = [e for e in journal if e["event"] == "report" and e["trial"] == log.name]
    assert history("validation_accuracy") == [(e["outer_step"], e["validation_accuracy"]) for e in reports]
    losses = history("outer_loss")
    assert [step for step, _ in losses] == list(range(1, len(points) + 1))
    since = log.lineage[-1][0] if log.lineage else 0
    own = [loss for step, loss in losses if step > since]
    assert own == pytest.approx([of["outer_loss"] for of in points[since:]], abs=1e-12)
    exchanged = [(place, e) for place, e in enumerate(journal) if e["event"] == "barrier"]
    assert history("cloned_from") == [
        (e["outer_step"], trial_number(clone["parent"]))
        for _, e in exchanged
        for clone in e["clones"]
        if clone["trial"] == log.name
    ]
    for place, e in exchanged:
        (at,) = [
            i
            for i, event in enumerate(journal)
            if event in reports and event["outer_step"] == e["outer_step"]
        ]
        assert at < place


def left_behind() -> list[int]:
    """Processes of trials."""
    return [pid for name in ("ray::ImplicitFunc", "ray::trial") for pid in descendants_named(name)]


@pytest.mark.usefixtures("ray_cluster")
def test_successive_halving_stops_the_worse_and_leaves_nothing(tmp_path: Path) -> None:
    """Eight trials, most of which hardly learn: some are stopped early, none is lost; the best is as good as the base, which is
    trial 0; afterwards there is no process, no placement group, and every core is free. More trials extend the search:
    earlier ones are not run again. MLflow has a run for each. The time in loops is the seconds that all trials report."""
    import ray

    space = SPACE | {"outer.lr": {"choice": [1e-6, 1e-5, 1e-4]}}
    search = tiny_search(base=LEARNING, space=space, budget={"trials": 6})
    folder = SearchDir(tmp_path / "s")
    result = run(search, folder)
    logs = logs_of(folder)
    statuses = [log.status for log in logs.values()]
    assert statuses[0] == "finished"
    assert statuses.count("stopped") >= 3
    assert "failed" not in statuses
    assert [log.values for log in logs.values()] == planned_values(search)
    for log in logs.values():
        assert (log.curve[-1].outer_step == 20) == (log.status == "finished")
        state, best = kept(search, folder, log), log.best
        assert state.outer_step == log.curve[-1].outer_step
        assert state.best is not None
        assert best is not None
        assert state.best.accuracy == best.validation_accuracy
    assert result.rows[0].best_validation_accuracy >= bare(search, logs["trial-000"])[0].best.accuracy

    deadline = time.monotonic() + 30
    while left_behind() or ray.available_resources().get("CPU") != 2:
        assert time.monotonic() < deadline, (left_behind(), ray.available_resources())
        time.sleep(0.2)
    assert {group["state"] for group in ray.util.placement_group_table().values()} <= {"REMOVED"}

    reports = events(folder, "report")
    more = tiny_search(base=LEARNING, space=space, budget={"trials": 8})
    result = run(more, folder, resume=True)
    assert events(folder, "report")[: len(reports)] == reports
    again = {event["trial"] for event in events(folder, "report")[len(reports) :]}
    assert again == {"trial-006", "trial-007"}
    assert [log.values for log in logs_of(folder).values()] == planned_values(more)
    assert load_config(folder.best).name == "tiny_search-best"
    best = DistilledDataset.load(folder.artifact)
    assert best.provenance["validation_accuracy"] == result.rows[0].best_validation_accuracy
    assert set(runs_of(result)) == set(logs_of(folder))
    assert result.warnings == []

    took, summary = result.time, json.loads(folder.summary.read_text())
    assert (took.attempts, summary["orchestration"]) == (2, took.orchestration)
    assert took.loop_core_s == pytest.approx(sum(log.curve[-1].seconds for log in logs_of(folder).values()))
    assert 0 < took.start_core_s < took.core_s - took.loop_core_s
    assert 0 < took.orchestration < 1
    metrics = MlflowClient(result.tracker.uri).get_run(result.tracker.run_id).data.metrics
    assert metrics["orchestration"] == took.orchestration
    assert (folder.path / "leaderboard.md").read_text().endswith(f"\n\n{took}\n")


@pytest.mark.usefixtures("ray_cluster")
def test_a_winner_of_a_population_is_replayed_by_an_ordinary_run(tmp_path: Path) -> None:
    """Four members, two exchanges, all four keys: each member's lineage, written as piecewise schedules, is a run with the same
    window and step sizes at each outer step and the same D, clip average and moments at its end. In MLflow each outer step
    of a member is there once, as it measured it itself, with the exchanges at which it took over another's state."""
    scheduler = {"name": "pbt", "every": 5, "replaced": 0.5}
    space = SPACE | {"inner.lr": {"loguniform": [1e-3, 1e-2]}}
    base = TINY | {
        "outer": TINY["outer"] | {"steps": 15},
        "validation": TINY["validation"] | {"num_networks": 1},
    }
    search = tiny_search(scheduler=scheduler, space=space, base=base)
    folder = SearchDir(tmp_path / "s")
    result = run(search, folder)
    logs = logs_of(folder)
    barriers = events(folder, "barrier")
    assert [barrier["outer_step"] for barrier in barriers] == [5, 10]
    assert all(len(barrier["clones"]) == 2 for barrier in barriers)
    assert any(log.lineage for log in logs.values())
    members = runs_of(result)
    for log in logs.values():
        end, points = bare(search, log)
        check_member(result, members[log.name], folder, log, points)
        state = kept(search, folder, log)
        assert (end.outer_step, end.outer.clip_ema) == (15, state.outer.clip_ema)
        torch.testing.assert_close(end.data.images_NCHW, state.data.images_NCHW, rtol=0, atol=1e-12)
        torch.testing.assert_close(end.outer.images.v, state.outer.images.v, rtol=0, atol=1e-12)
        for step, values in log.lineage:
            for at in range(step, 15):
                held = next(of for first, of in reversed(log.lineage) if first <= at)
                assert points[at]["window_length"] == held["truncation.window_length"]
                assert points[at]["unroll_length"] == held["truncation.unroll_length"]
                assert points[at]["inner_lr"] == held["inner.lr"]
                assert points[at]["outer_lr"] == held["outer.lr"]
            assert points[step]["outer_lr"] == values["outer.lr"]
    replayed = load_config(folder.best)
    assert replayed == search.search_space.full_config(
        config_values(search, logs[result.rows[0].trial])
    ).model_copy(update={"name": "tiny_search-best"})


@pytest.mark.usefixtures("ray_cluster")
def test_hyperband_and_optuna_finish(tmp_path: Path) -> None:
    """Trials that pause for each other, with values from a sampler that learns: each ends, and none waits forever."""
    search = tiny_search(
        algorithm="optuna", scheduler={"name": "hyperband", "reduction": 2}, budget={"trials": 5}
    )
    folder = SearchDir(tmp_path / "s")
    run(search, folder)
    logs = logs_of(folder)
    assert len(logs) == 5
    assert {log.status for log in logs.values()} <= {"finished", "stopped"}


@pytest.mark.usefixtures("ray_cluster")
def test_trials_are_left_where_they_are_when_time_is_up(tmp_path: Path) -> None:
    """A time limit that is over at once: no trial counts as stopped or finished, and the error says why. With more time the
    search is resumed to its end; a trial that diverges has failed, with its reason, and is never the best."""
    space = {"inner.lr": {"choice": [1e300, 0.03]}}
    of = {"base": LEARNING, "space": space, "scheduler": {"name": "none"}}
    folder = SearchDir(tmp_path / "s")
    with pytest.raises(SearchError, match="time was up"):
        run(tiny_search(**of, budget={"trials": 4, "hours": 1e-6}), folder)
    assert {log.status for log in logs_of(folder).values()} <= {"running"}
    search = tiny_search(**of, budget={"trials": 4})
    result = run(search, folder, resume=True)
    logs = logs_of(folder)
    assert [log.values for log in logs.values()] == planned_values(search)
    for log in logs.values():
        diverges = log.values["inner.lr"] == 1e300
        assert log.status == ("failed" if diverges else "finished")
        assert ("not finite" in (log.reason or "")) == diverges
    assert {log.status for log in logs.values()} == {"failed", "finished"}
    assert logs[result.rows[0].trial].status == "finished"


def test_trials_of_two_workers_are_the_same_trials(tmp_path: Path, ray_cluster: None) -> None:
    """Through Ray Train the base, which learns, ends with the D of one process to 1e-10; two trials that hardly change D are
    stopped, and the second of them starts, so the first has released its workers' cores, which is up to Train's cleaner;
    there is a second cluster on the machine, in which it must not look. When the search has ended, nothing of its trials is
    left: no actor, no placement group, no core that is not free. Their checkpoints and the journal are in its storage."""
    storage = tmp_path / "kept"
    search = tiny_search(
        base=LEARNING | {"cluster": {"storage": str(storage)}},
        space={"outer.lr": {"choice": [1e-8, 2e-8]}},
        scheduler={"name": "asha", "grace": 5, "reduction": 2},
        budget={"trials": 3},
        workers=2,
    )
    (tmp_path / "search.yaml").write_text(search.to_yaml())
    command = subprocess.Popen(
        [*LOOK, "search.yaml", "--out", "s"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    out, err = command.communicate(timeout=800)
    assert command.returncode == 0, out + err
    left, free = json.loads((tmp_path / "left.json").read_text())
    assert left == ["_AutoscalingCoordinatorActor"]
    assert free
    folder = SearchDir(tmp_path / "s", Storage.open(str(storage)))
    logs = logs_of(folder)
    assert [log.status for log in logs.values()] == ["finished", "stopped", "stopped"]
    assert [log.checkpoint_step for log in logs.values()] == [20, 5, 5]
    end, _ = bare(search, logs["trial-000"])
    state = kept(search, folder, logs["trial-000"])
    torch.testing.assert_close(state.data.images_NCHW, end.data.images_NCHW, rtol=1e-10, atol=1e-12)
    assert list(storage.glob("tune/*/trial-000/*/state.arrow"))
    assert not list(storage.glob("tune/*/train"))
    assert not (folder.path / "tune").exists()
