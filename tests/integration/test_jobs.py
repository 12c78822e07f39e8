"""`ray job submit` on a cluster of two nodes with a token: as the README says it, each word of the command real."""

import json
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from ray_distill.config.config import Config
from ray_distill.tuning.journal import SearchJournal
from ray_distill.tuning.sampler import planned_values
from ray_distill.tuning.search_dir import SearchDir
from tests.helpers.nodes import BIN, Nodes, cluster_of_two
from tests.helpers.processes import last_checkpoint, steps_shown, wait_until
from tests.helpers.search_events import Interrupted, events, logs_of, well_under_way
from tests.helpers.tiny import TINY, tiny_config
from tests.helpers.tiny_search import tiny_search
from tests.helpers.undisturbed import Undisturbed, status

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STOP_WAIT_S = 60
"""Ray gives 3 by default: enough, but not on a machine that others use too."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with cluster_of_two() as (nodes, _):
        yield nodes


def ray_job(nodes: Nodes, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`ray job ..` from the root of this repository."""
    environment = nodes.environment | {"RAY_API_SERVER_ADDRESS": nodes.jobs_address}
    command = [str(BIN / "ray"), "job", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False
    )


def submit(nodes: Nodes, name: str, *arguments: str, wait: bool = True) -> subprocess.CompletedProcess[str]:
    """`ray job submit`: with `wait`, returns when the job has ended, and says how."""
    options = ["--working-dir", ".", "--submission-id", name, *([] if wait else ["--no-wait"])]
    options += [
        "--runtime-env-json",
        json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}}),
    ]
    return ray_job(nodes, "submit", *options, "--", "ray-distill", *arguments)


def about(nodes: Nodes, name: str) -> dict[str, Any]:
    """What Ray says of a job."""
    said: dict[str, Any] = nodes.ask(f"/api/jobs/{name}")
    return said


def logs(nodes: Nodes, name: str) -> list[str]:
    """The job's lines: nothing that moves a cursor or colours, no trace, each line said once."""
    text = ray_job(nodes, "logs", name).stdout
    own = text.partition("Running entrypoint")[2]
    for noise in ("\r", "\x1b", "Traceback"):
        assert noise not in own, own
    lines = [line for line in own.splitlines()[1:] if line.strip()]
    assert len(set(lines)) == len(lines), own
    return lines


def written(tmp_path: Path, **sections: object) -> tuple[Config, str]:
    """A tiny experiment for both nodes, and its file."""
    config = tiny_config(**sections, cluster={"num_workers": 2})
    file = tmp_path / "tiny.yaml"
    file.write_text(config.to_yaml())
    return config, str(file)


def test_a_mistake_fails_the_job_with_one_message(nodes: Nodes, tmp_path: Path) -> None:
    """Results that would go with the job's own folder, and more workers than there are CPUs: FAILED with exit code 2, and
    nothing but the message in the logs."""
    _, file = written(tmp_path)
    for number, (arguments, says) in enumerate(
        [
            (["--out", "runs/mine"], "--out runs/mine: lies in the folder that Ray made for this job"),
            (["--out", str(tmp_path / "run"), "--set", "outer.steps=0"], "outer.steps: "),
        ]
    ):
        name = f"mistake-{number}"
        submitted = submit(nodes, name, "distill", file, *arguments)
        assert submitted.returncode == 1
        end = about(nodes, name)
        assert (end["status"], end["driver_exit_code"]) == ("FAILED", 2)
        (line,) = logs(nodes, name)
        assert line.startswith(f"error: {says}")
    assert not (tmp_path / "run").exists()


def test_a_job_that_is_stopped_goes_on_when_it_is_submitted_again(
    nodes: Nodes, draw: random.Random, tmp_path: Path
) -> None:
    """`ray job stop` at a moment in the first half of the training, then the same with --resume: the first leaves a
    checkpoint, a run marked KILLED and a line that says how to go on; the second ends with the D and the measurements of an
    undisturbed run, in the same MLflow run. Then `evaluate` as a job, on the artefact."""
    sections = {"outer": {"steps": 400}, "validation": {"every": 100}, "checkpoint": {"every": 10}}
    config, file = written(tmp_path, **sections)
    folder = tmp_path / "run"
    distill = ("distill", file, "--out", str(folder))
    assert submit(nodes, "first", *distill, wait=False).returncode == 0
    at = draw.randrange(10, 200)
    wait_until(
        lambda: last_checkpoint(folder) >= at or about(nodes, "first")["status"] == "FAILED",
        f"the job comes to outer step {at}",
    )
    time.sleep(draw.random())
    ray_job(nodes, "stop", "first")
    assert about(nodes, "first")["status"] == "STOPPED"
    *progress, advice = logs(nodes, "first")
    assert advice.startswith("interrupted; ")
    assert "--resume" in advice
    assert any(line.startswith("distilling ") for line in progress)
    assert status(folder) == "KILLED"
    at = last_checkpoint(folder)
    assert at < 400

    again = submit(nodes, "again", *distill, "--resume")
    assert again.returncode == 0, again.stdout + again.stderr
    assert about(nodes, "again")["status"] == "SUCCEEDED"
    shown = steps_shown("\n".join(logs(nodes, "again")))
    assert (shown[0] >= at, shown[-1]) == (True, 400)
    Undisturbed(config).check(folder, folder / "mlflow.db")

    judged = submit(
        nodes, "judged", "evaluate", str(folder / "distilled.parquet"), "--set", "evaluation.seeds=3"
    )
    assert judged.returncode == 0, judged.stdout + judged.stderr
    rows = json.loads((folder / "distilled.evaluation" / "evaluation.json").read_text())["rows"]
    assert {row["n"] for row in rows if row["kind"] == "distilled"} == {3}
    assert any(line.startswith("evaluating ") for line in logs(nodes, "judged"))


def test_a_search_that_is_stopped_goes_on_when_it_is_submitted_again(nodes: Nodes, tmp_path: Path) -> None:
    """`ray job stop` when one trial has ended and others are under way: the search's run in MLflow is KILLED, as are
    those of the latter, and the journal is there. The same with --resume: the same trials, none begun anew and no
    outer step taken again; MLflow has one run for each, FINISHED. The time in between is none of the search's."""
    base = TINY | {"outer": TINY["outer"] | {"steps": 100}}
    search = tiny_search(base=base, scheduler={"name": "none"}, budget={"trials": 3})
    file, folder = tmp_path / "search.yaml", SearchDir(tmp_path / "s")
    file.write_text(search.to_yaml())
    command = ("search", str(file), "--out", str(folder.path))
    assert submit(nodes, "search", *command, wait=False).returncode == 0
    wait_until(
        lambda: well_under_way(folder) or about(nodes, "search")["status"] == "FAILED",
        "a third trial's report",
    )
    ray_job(nodes, "stop", "search")
    assert about(nodes, "search")["status"] == "STOPPED"
    *_, advice = logs(nodes, "search")
    assert advice.startswith("interrupted; ")
    assert "--resume" in advice
    interrupted = Interrupted(folder)
    ended = {
        log.name: "FINISHED" if log.status == "finished" else "KILLED" for log in logs_of(folder).values()
    }
    assert statuses(folder) == ("KILLED", ended)
    stopped = SearchJournal(folder.journal).time

    again = submit(nodes, "search-again", *command, "--resume")
    assert again.returncode == 0, again.stdout + again.stderr
    assert about(nodes, "search-again")["status"] == "SUCCEEDED"
    interrupted.check_resumed(planned_values(search))
    assert statuses(folder) == ("FINISHED", dict.fromkeys(logs_of(folder), "FINISHED"))
    (done,) = events(folder, "done")
    first, second = events(folder, "attempt")
    took = json.loads(folder.summary.read_text())
    assert took["wall_s"] == pytest.approx(stopped.wall_s + done["unix_s"] - second["began_unix_s"])
    assert took["wall_s"] < done["unix_s"] - first["began_unix_s"]
    assert any(
        line.startswith(f"took {took['wall_s']:.0f} s, in 2 commands; ")
        for line in logs(nodes, "search-again")
    )


def statuses(folder: SearchDir) -> tuple[str, dict[str, str]]:
    """What MLflow says of the search and of its trials."""
    identity = json.loads(folder.identity.read_text())
    client = MlflowClient(identity["uri"])
    parent = client.get_run(identity["run_id"])
    below = f"tags.`mlflow.parentRunId` = '{identity['run_id']}'"
    runs = client.search_runs([parent.info.experiment_id], below)
    by_name = {run.info.run_name: run.info.status for run in runs}
    assert len(by_name) == len(runs)
    return parent.info.status, by_name
