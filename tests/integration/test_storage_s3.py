"""A run that is kept in an object store: moto's server, on loopback, which speaks S3's protocol."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from processes import descendants_named
from pyarrow import fs
from tiny import tiny_config
from undisturbed import Undisturbed

pytestmark = pytest.mark.slow
BUCKET = "ray-distill-tests"
PLANTED = "geheimwort"
COMMAND = [sys.executable, "-c", "from ray_distill.cli import main; main()"]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with one bucket, which it keeps in memory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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

    def last_checkpoint(self) -> int:
        """The outer step that Ray Train would go on from; 0 if there is none."""
        name = f"{self._path}/train/run/checkpoint_manager_snapshot.json"
        try:
            known = self._s3.open_input_stream(name).read()
        except FileNotFoundError:
            return 0
        return max((int(step) for step in re.findall(rb"step_(\d+)", known)), default=0)


def start(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    left_out = ("AWS_", "MLFLOW_TRACKING_URI")
    return subprocess.Popen(
        [*COMMAND, "distill", "tiny.yaml", *arguments],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith(left_out)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_run_goes_on_in_another_folder_from_the_store_alone(endpoint: str, tmp_path: Path) -> None:
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
    environment = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": PLANTED,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
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
    for pid in [first.pid, *descendants_named("", first.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    first.communicate()
    assert 20 <= place.last_checkpoint() < 120
    assert {"config.yaml", "run.json", ".driver.json"} <= place.files().keys()
    identity = (tmp_path / "here" / "run.json").read_bytes()
    assert not (tmp_path / "here" / "train").exists()
    shutil.rmtree(tmp_path / "here")

    made = prepared.files()
    environment["RAY_DISTILL_CACHE"] = str(tmp_path / "other")
    out, err = start(tmp_path, environment, "--out", "there", "--resume", *kept).communicate(timeout=280)
    assert f"kept in       {place.uri}" in out, out + err
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


@pytest.mark.parametrize(
    ("uri", "environment", "says"),
    [
        ("s3://no-such-bucket/x", {}, "NO_SUCH_BUCKET"),
        # moto lets everybody in, but garbles what nobody has signed.
        (
            "s3://{bucket}/x",
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            "do its credentials",
        ),
        ("s3://{bucket}/x?scheme=http&endpoint_override=127.0.0.1:9", {}, "Could not connect to server"),
    ],
)
def test_a_store_that_cannot_be_used_is_told_at_once(
    uri: str, environment: dict[str, str], says: str, endpoint: str, tmp_path: Path
) -> None:
    """A bucket that is not there, no credentials, nobody at the endpoint: exit code 2, a line, nothing written."""
    (tmp_path / "tiny.yaml").write_text(tiny_config().to_yaml())
    environment = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": PLANTED,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
    } | environment
    place = uri.format(bucket=BUCKET)
    process = start(tmp_path, environment, "--out", "here", "--set", f"cluster.storage={place}")
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (2, ""), err
    assert err.startswith(f"error: {place}: cannot be used as storage: ")
    assert says in err
    assert err.count("\n") == 1
    assert PLANTED not in err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
