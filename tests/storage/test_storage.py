"""A run's storage on the local disk: what is mirrored, who may work in it, what is refused."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ray_distill.cli.main import app
from ray_distill.config.config import Config, ConfigError
from ray_distill.config.load import load_config
from ray_distill.storage import lease, run_dir
from ray_distill.storage.lease import LEASE, Lease, LostLeaseError
from ray_distill.storage.remote import Storage, StorageError
from ray_distill.storage.run_dir import RunDir
from ray_distill.tracking.tracker import Tracker

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
DIGITS = EXPERIMENTS / "digits_ipc1.yaml"
TRACKER = Tracker("sqlite:////there/mlflow.db", "abc")


def run_in(folder: Path, storage: Path) -> RunDir:
    return RunDir(folder, Storage.open(f"file://{storage}"))


@pytest.fixture
def config() -> Config:
    return load_config(DIGITS)


@pytest.fixture
def begun(tmp_path: Path, config: Config) -> RunDir:
    """A run that is under way, with a checkpoint and a part of an evaluation in its storage."""
    place = run_in(tmp_path / "here", tmp_path / "store")
    place.claim(config, TRACKER)
    place.evaluation.mkdir()
    (place.evaluation / "records.jsonl").write_text("{}\n")
    place.store(place.evaluation)
    (tmp_path / "store" / "train" / "run").mkdir(parents=True)
    (tmp_path / "store" / "train" / "run" / "state.arrow").write_text("precious")
    return place


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("HEARTBEAT_S", 0.05), ("EXPIRY_S", 0.6), ("SETTLE_S", 0.1)):
        monkeypatch.setattr(lease, name, seconds)


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("timed out")


def test_the_storage_does_not_change_the_hash(config: Config) -> None:
    kept = load_config(DIGITS, ["cluster.storage=s3://bucket/prefix"])
    assert kept.hash == config.hash
    assert "bucket" not in json.dumps(kept.experiment())


@pytest.mark.parametrize("as_uri", [True, False])
def test_files_are_written_atomically_read_listed_and_deleted(as_uri: bool, tmp_path: Path) -> None:
    """Probing a storage does not create it."""
    folder = tmp_path / "a" / "b"
    storage = Storage.open(f"file://{folder}" if as_uri else str(folder))
    assert list(tmp_path.iterdir()) == []
    assert (storage.names(), storage.files("x"), storage.read("x/y")) == (set(), [], None)
    storage.put("x/y", b"1")
    storage.put("x/z/w", b"2")
    storage.put("x/y", b"3")
    assert (storage.names(), storage.files("x"), storage.read("x/y")) == ({"x"}, ["x/y", "x/z/w"], b"3")
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == ["w", "y"]
    inside = storage / "x"
    assert (str(inside), inside.read("y")) == (f"{storage}/x", b"3")
    storage.delete("x")
    storage.delete("x")
    assert storage.names() == set()


def test_another_folder_resumes_from_the_storage(begun: RunDir, config: Config, tmp_path: Path) -> None:
    """The same experiment and MLflow run; what was evaluated; checkpoints stay where Ray Train finds them."""
    other = run_in(tmp_path / "there", tmp_path / "store")
    assert other.tracker_to_resume(config) == TRACKER
    assert not other.path.exists()
    other.fetch()
    assert other.identity.read_bytes() == begun.identity.read_bytes()
    assert other.config.read_text() == config.to_yaml()
    assert (other.evaluation / "records.jsonl").read_text() == "{}\n"
    assert not other.train.exists()
    assert other.ray_storage()[0] == str(tmp_path / "store" / "train")
    assert other.tracker_to_resume(config) == begun.tracker_to_resume(config) == TRACKER


@pytest.mark.usefixtures("short_delays")
def test_an_evaluation_is_mirrored_as_it_grows(
    begun: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New lines and new files reach the storage while it is under way; half-written ones do not."""
    monkeypatch.setattr(run_dir, "MIRROR_EVERY_S", 0.02)
    there = tmp_path / "store" / begun.evaluation.name
    with begun.lock(), begun.mirror_evaluation():
        (begun.evaluation / ".of.json.tmp").write_text("{")
        (begun.evaluation / "of.json").write_text("{}")
        with (begun.evaluation / "records.jsonl").open("a") as records:
            records.write("[]\n")
        wait_until(
            lambda: (there / "of.json").exists() and (there / "records.jsonl").read_text() == "{}\n[]\n"
        )
    assert {path.name for path in there.iterdir()} == {"of.json", "records.jsonl"}


def test_a_different_run_is_refused(begun: RunDir, config: Config, tmp_path: Path) -> None:
    """Another experiment, run or storage, none at all, or a finished run."""
    store, free = tmp_path / "store", tmp_path / "free"
    for place, of, says in (
        (run_in(free, store), load_config(DIGITS, ["seed=5"]), "holds a run of another configuration"),
        (RunDir(begun.path), config, rf"add --set cluster\.storage=file://{store}"),
        (run_in(begun.path, free), config, r"free: holds no run \(no readable run.json\)"),
        (run_in(tmp_path, tmp_path), config, "is the run's folder, which holds everything anyway"),
        (run_in(store / "x", store), config, "the run's folder .* is in the other"),
    ):
        with pytest.raises(ConfigError, match=says):
            place.tracker_to_resume(of)
    alone = RunDir(tmp_path / "alone")
    alone.claim(config, Tracker(TRACKER.uri, "xyz"))
    with pytest.raises(ConfigError, match=r"MLflow run xyz, not abc.*, which has none"):
        run_in(alone.path, store).tracker_to_resume(config)
    free.mkdir()
    (free / "diary.txt").write_text("precious")
    with pytest.raises(ConfigError, match="free: exists and is not empty"):
        run_in(free, store).tracker_to_resume(config)
    begun.summary.write_text("{}")
    assert begun.tracker_to_resume(config) == TRACKER
    begun.store(begun.summary)
    with pytest.raises(ConfigError, match="holds a run that is finished"):
        begun.tracker_to_resume(config)


def test_a_storage_in_use_is_only_written_to_with_force(begun: RunDir, tmp_path: Path) -> None:
    """--force deletes a run from the storage as it does from a folder, and nothing else."""
    store = tmp_path / "store"
    other = run_in(tmp_path / "there", store)
    with pytest.raises(
        ConfigError,
        match=r"store: is not empty; nothing was written. Use --resume, or another cluster.storage\.",
    ):
        other.check_empty("Use --resume, or another --out.")
    (store / "diary.txt").write_text("precious")
    for act in (other.check_replaceable, other.clear):
        with pytest.raises(ConfigError, match=r"holds diary\.txt, which no run wrote; nothing was deleted"):
            act()
    (store / "diary.txt").unlink()
    (store / "run.json").rename(store / "run.txt")
    with pytest.raises(ConfigError, match=r"store: holds no run \(no readable run.json\)"):
        other.check_replaceable()
    (store / "run.txt").rename(store / "run.json")
    assert (store / "train" / "run" / "state.arrow").read_text() == "precious"
    begun.check_replaceable()
    begun.clear()
    begun.check_empty("")
    assert not list(store.iterdir())


@pytest.mark.usefixtures("short_delays")
def test_a_second_driver_is_refused_until_the_first_has_ended(begun: RunDir, tmp_path: Path) -> None:
    """While the lease is renewed; once it is released there is nothing to wait for."""
    other = run_in(tmp_path / "there", tmp_path / "store")
    with begun.lock():
        begun.check_lease()
        with (
            pytest.raises(StorageError, match=r"another driver is at work in it \(process \d+ on "),
            other.lock(),
        ):
            pass
        assert LEASE in begun.storage.names() if begun.storage else False
    assert not (tmp_path / "store" / LEASE).exists()
    with other.lock():
        other.check_lease()


@pytest.mark.usefixtures("short_delays")
def test_a_dead_driver_is_taken_over_and_notices_when_it_comes_back(tmp_path: Path) -> None:
    """A lease that is not renewed expires. The first holder's next heartbeat finds the new lease, writes nothing, and
    its release leaves the new lease alone."""
    storage = Storage.open(str(tmp_path))
    gone, new = Lease(storage), Lease(storage)
    gone.acquire()
    gone._stop.set()
    gone._heartbeat.join()
    began = time.monotonic()
    new.acquire()
    assert time.monotonic() - began >= 0.6
    gone._stop.clear()
    threading.Thread(target=gone._renew, daemon=True).start()
    wait_until(lambda: gone._lost_to is not None)
    with pytest.raises(LostLeaseError, match="another driver has taken it over"):
        gone.check()
    gone.release()
    beats = lease.read_lease(storage)
    wait_until(lambda: lease.read_lease(storage) not in (None, beats))
    new.check()
    new.release()
    assert storage.names() == set()


@pytest.mark.usefixtures("short_delays")
def test_of_two_drivers_at_the_same_moment_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one writes its lease between the first one's write and its check."""
    storage = Storage.open(str(tmp_path))
    first, second = Lease(storage), Lease(storage)
    monkeypatch.setattr(lease.time, "sleep", lambda _: second._write())
    with pytest.raises(StorageError, match="another driver has begun to work in it"):
        first.acquire()
    assert second._other_holder() is None


@pytest.mark.parametrize(
    ("storage", "says"),
    [
        ("ftp://host/x", "cluster.storage: must be a path, or a URI that starts with one of file://, s3://"),
        ("s3:bucket/x", "cluster.storage: must be a path, or a URI that starts with one of file://, s3://"),
        ("s3://key:geheim@bucket/x", "cluster.storage: contains a password"),
        ("s3://bucket/x?secret_key=geheim", "cluster.storage: contains a password"),
        (
            "s3://bucket/x?quatsch=1",
            "cannot be used as storage: Unexpected query parameter in S3 URI: 'quatsch'",
        ),
        ("file://host/x", "cannot be used as storage: Unsupported hostname"),
        ("{here}/file/x", "cannot be used as storage: "),
        ("{here}/full", "full: is not empty; nothing was written. Use --resume"),
        ("{here}/out", "is the run's folder, which holds everything anyway; remove the key"),
        ("{here}/runtime_resources/working_dir_files/x", "lies in the folder that Ray made for this job"),
    ],
)
def test_a_wrong_storage_is_reported_before_any_work(storage: str, says: str, tmp_path: Path) -> None:
    """Exit code 2, one message, and nothing written; without a cluster, which would take seconds."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    place = storage.format(here=tmp_path)
    command = ["distill", str(DIGITS), "--out", str(tmp_path / "out"), "--set", f"cluster.storage={place}"]
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, sorted(tmp_path.rglob("*")) == before) == (2, True), result.output
    assert says in result.stderr
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.output
    assert "geheim" not in result.output


def test_a_run_whose_mlflow_store_is_on_another_machine_is_not_resumed(
    config: Config, tmp_path: Path
) -> None:
    """Its MLflow store is a file of the other machine: no empty one is created in its place."""
    lost = tmp_path / "lost" / "mlflow.db"
    run_in(tmp_path / "here", tmp_path / "store").claim(config, Tracker(f"sqlite:///{lost}", "abc"))
    place = f"cluster.storage=file://{tmp_path}/store"
    command = ["distill", str(DIGITS), "--out", str(tmp_path / "new"), "--resume", "--set", place]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2, result.output
    assert f"MLflow at sqlite:///{lost}: no such file on this machine" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"here", "store"}
