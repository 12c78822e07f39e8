"""A run and a search with an object store as storage: moto's server, on loopback, which speaks S3's protocol."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from pyarrow import fs

from ray_distill.config.load import load_config
from ray_distill.tuning.sampler import planned_values
from ray_distill.tuning.search_dir import SearchDir
from ray_distill.tuning.trial import read_state
from tests.helpers.processes import descendants_named, free_port
from tests.helpers.search_events import Interrupted, bare, logs_of, well_under_way
from tests.helpers.tiny import TINY, tiny_config
from tests.helpers.tiny_search import tiny_search
from tests.helpers.undisturbed import Undisturbed

pytestmark = pytest.mark.slow
BUCKET = "ray-distill-tests"
PLANTED = "geheimwort"
COMMAND = [sys.executable, "-c", "from ray_distill.cli.main import main; main()"]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with one bucket, which it keeps in memory."""
    port = free_port()
    at = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("moto") / "server.log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 120
        while True:
            with suppress(OSError):
                urllib.request.urlopen(urllib.request.Request(f"{at}/{BUCKET}", method="PUT"), timeout=5)
                break
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.3)
        yield at
    finally:
        server.kill()
        server.wait()


class Place:
    """A prefix in the bucket, as somebody with other tools sees it."""

    def __init__(self, endpoint: str, prefix: str) -> None:
        self.uri = f"s3://{BUCKET}/{prefix}"
        self._path = f"{BUCKET}/{prefix}"
        host = endpoint.removeprefix("http://")
        self._s3 = fs.S3FileSystem(
            endpoint_override=host, scheme="http", access_key="a", secret_key="b", region="us-east-1"
        )

    def files(self) -> dict[str, bytes]:
        """All that is there, by its name."""
        found = self._s3.get_file_info(fs.FileSelector(self._path, recursive=True, allow_not_found=True))
        return {
            info.path.removeprefix(f"{self._path}/"): self._s3.open_input_stream(info.path).read()
            for info in found
            if info.is_file
        }

    def read(self, name: str) -> bytes:
        """A file; empty if there is none."""
        try:
            return bytes(self._s3.open_input_stream(f"{self._path}/{name}").read())
        except FileNotFoundError:
            return b""

    def last_checkpoint(self) -> int:
        """The outer step that Ray Train would resume from; 0 if there is none."""
        planned_values = self.read("train/run/checkpoint_manager_snapshot.json")
        return max((int(step) for step in re.findall(rb"step_(\d+)", planned_values)), default=0)


def start(
    folder: Path, environment: dict[str, str], *arguments: str, verb: str = "distill"
) -> subprocess.Popen[str]:
    left_out = ("AWS_", "MLFLOW_TRACKING_URI")
    return subprocess.Popen(
        [*COMMAND, verb, "tiny.yaml", *arguments],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith(left_out)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL for it and all that it started."""
    for pid in [process.pid, *descendants_named("", process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def credentials(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": PLANTED,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def test_a_run_resumes_in_another_folder_from_the_storage_alone(endpoint: str, tmp_path: Path) -> None:
    """SIGKILL for the driver and all that it started, and its folder is lost. Another folder resumes from what is in
    the bucket: D bit-equal to a run that was never disturbed, in the same MLflow run, each measurement once. In the end
    the bucket holds what the folder holds, and no file of the run, of Ray or of MLflow the secret key. Prepared images
    are in the bucket too, from where the second machine has them: the very same files."""
    config = tiny_config(
        outer={"steps": 120},
        validation={"every": 40},
        checkpoint={"every": 10},
        evaluation={"networks": ["mlp1"], "seeds": 1, "random_real_draws": 1},
    )
    (tmp_path / "tiny.yaml").write_text(config.to_yaml())
    place, store = Place(endpoint, "runs/tiny"), tmp_path / "mlflow.db"
    ray = Path(f"/tmp/rd-s3-{os.getpid()}")
    ray.mkdir()
    environment = credentials(endpoint) | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{store}",
        "RAY_TMPDIR": str(ray),
    }
    prepared = Place(endpoint, "prepared")
    kept = ("--set", f"cluster.storage={place.uri}", "--set", f"data.cache={prepared.uri}")
    first = start(
        tmp_path, environment | {"RAY_DISTILL_CACHE": str(tmp_path / "one")}, "--out", "here", *kept
    )
    deadline = time.monotonic() + 200
    while place.last_checkpoint() < 20:
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    kill_all(first)
    assert 20 <= place.last_checkpoint() < 120
    assert {"config.yaml", "run.json", ".driver.json"} <= place.files().keys()
    identity = (tmp_path / "here" / "run.json").read_bytes()
    assert not (tmp_path / "here" / "train").exists()
    shutil.rmtree(tmp_path / "here")

    made = prepared.files()
    environment["RAY_DISTILL_CACHE"] = str(tmp_path / "other")
    out, err = start(tmp_path, environment, "--out", "there", "--resume", *kept).communicate(timeout=280)
    assert f"stored in     {place.uri}" in out, out + err
    assert "Traceback" not in err
    folder = tmp_path / "there"
    Undisturbed(config).check(folder, store)
    assert (folder / "run.json").read_bytes() == identity
    assert json.loads(identity)["storage"] == place.uri
    local = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }
    assert {"distilled.parquet", "distilled.png", "summary.json", "config.yaml"} <= local.keys()
    assert {
        name: content for name, content in place.files().items() if not name.startswith("train/")
    } == local
    assert made
    there = prepared.files()
    assert {name: there[name] for name in made} == made
    assert {p.name: p.read_bytes() for p in (tmp_path / "other/prepared").glob("*.arrow")} == there
    files = [path for root in (tmp_path, ray) for path in root.rglob("*") if path.is_file()]
    assert len(files) > 30
    assert [str(path) for path in files if PLANTED.encode() in path.read_bytes()] == []
    assert PLANTED not in out + err


def test_a_search_resumes_in_another_folder_from_the_storage_alone(endpoint: str, tmp_path: Path) -> None:
    """SIGKILL for the driver and all that it started, when one trial has ended and others are under way, and its folder is
    lost. Another folder resumes from what is in the bucket: the same trials, those that had ended untouched, those under way
    from their checkpoints, and each arrives at the D of a trial that nothing disturbed. MLflow has one run for each, with
    each outer step once. In the end the bucket holds what the folder holds, the trials' checkpoints, and no secret."""
    search = tiny_search(
        base=TINY | {"outer": TINY["outer"] | {"steps": 60}},
        scheduler={"name": "none"},
        budget={"trials": 3},
    )
    (tmp_path / "tiny.yaml").write_text(search.to_yaml())
    place, store = Place(endpoint, "searches/tiny"), tmp_path / "mlflow.db"
    environment = credentials(endpoint) | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
    kept_in = ("--set", f"base.cluster.storage={place.uri}")
    here, there, known_of = (SearchDir(tmp_path / name) for name in ("here", "there", "known"))
    first = start(tmp_path, environment, "--out", "here", *kept_in, verb="search")
    deadline = time.monotonic() + 400
    known_of.path.mkdir()
    while True:
        known_of.journal.write_bytes(place.read("journal.jsonl"))
        if well_under_way(known_of):
            break
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    kill_all(first)
    identity = here.identity.read_bytes()
    assert not (here.path / "tune").exists()
    shutil.rmtree(here.path)
    known_of.journal.write_bytes(place.read("journal.jsonl"))
    interrupted = Interrupted(known_of)

    second = start(tmp_path, environment, "--out", "there", "--resume", *kept_in, verb="search")
    out, err = second.communicate(timeout=400)
    assert second.returncode == 0, out + err
    assert f"stored in     {place.uri}" in out
    assert "Traceback" not in err
    assert there.identity.read_bytes() == identity
    interrupted.check_resumed(planned_values(search), there)
    files = place.files()
    for log in logs_of(there).values():
        assert [m.outer_step for m in log.curve] == list(range(5, 61, 5))
        assert log.checkpoint is not None
        for name in ("state.arrow", "trial.json"):
            (tmp_path / log.name).mkdir(exist_ok=True)
            (tmp_path / log.name / name).write_bytes(files[f"{log.checkpoint}/{name}"])
        state, _ = read_state(tmp_path / log.name, search.hash)
        assert torch.equal(bare(search, log)[0].data.images_NCHW, state.data.images_NCHW)
    check_record(store, json.loads(identity)["run_id"], list(logs_of(there)), 60)
    local = {p.name: p.read_bytes() for p in there.path.iterdir() if p.is_file() and p.name != ".lock"}
    local.pop("mlflow_journal.jsonl.said")
    assert files.pop("mlflow_journal.jsonl") == b""
    local.pop("mlflow_journal.jsonl")
    assert {"best.yaml", "best.parquet", "summary.json", "leaderboard.md", "search.yaml"} <= local.keys()
    assert {name: content for name, content in files.items() if not name.startswith("tune/")} == local
    assert load_config(there.best).cluster.storage is None
    assert not any(PLANTED.encode() in content for content in (*files.values(), *local.values()))
    assert PLANTED not in out + err


def check_record(store: Path, search: str, trials: list[str], last: int) -> None:
    """Asserts that MLflow has one finished run for each trial below the search's, with each outer step once."""
    client = MlflowClient(f"sqlite:///{store}")
    parent = client.get_run(search)
    assert parent.data.tags["storage"].startswith("s3://")
    runs = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{search}'")
    assert sorted(run.info.run_name for run in runs) == trials
    for run in (parent, *runs):
        assert run.info.status == "FINISHED"
    for run in runs:
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "outer_loss")]
        assert sorted(steps) == list(range(1, last + 1))


@pytest.mark.parametrize(
    ("uri", "environment", "says"),
    [
        ("s3://no-such-bucket/x", {}, "NO_SUCH_BUCKET"),
        # moto lets everybody in, but garbles what nobody has signed.
        (
            "s3://{bucket}/x",
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            "that the environment has its credentials",
        ),
        ("s3://{bucket}/x?scheme=http&endpoint_override=127.0.0.1:9", {}, "Could not connect to server"),
    ],
)
def test_an_unusable_store_is_reported_at_once(
    uri: str, environment: dict[str, str], says: str, endpoint: str, tmp_path: Path
) -> None:
    """No such bucket, no credentials, no server at the endpoint: exit code 2, one line, nothing written."""
    (tmp_path / "tiny.yaml").write_text(tiny_config().to_yaml())
    environment = credentials(endpoint) | environment
    place = uri.format(bucket=BUCKET)
    process = start(tmp_path, environment, "--out", "here", "--set", f"cluster.storage={place}")
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (2, ""), err
    assert err.startswith(f"error: {place}: cannot be used as storage: ")
    assert says in err
    assert err.count("\n") == 1
    assert PLANTED not in err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
