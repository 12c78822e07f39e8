"""A search's storage on the local disk: what is uploaded when, what another folder resumes from, what is refused."""

import logging
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ray_distill.cli.main import app
from ray_distill.config.config import ConfigError
from ray_distill.storage import lease
from ray_distill.storage.lease import LEASE, LostLeaseError
from ray_distill.storage.remote import Storage, StorageError, StorageUnavailableError
from ray_distill.tracking.tracker import Tracker
from ray_distill.tuning import run, search_dir
from ray_distill.tuning.config import SearchConfig
from ray_distill.tuning.journal import SearchJournal
from ray_distill.tuning.run import open_search
from ray_distill.tuning.search_dir import SearchDir
from ray_distill.utils.jsonl import OutboxFile
from tests.helpers.tiny_search import tiny_search

TRACKER = Tracker("sqlite:////there/mlflow.db", "abc")
SEARCH = tiny_search()


def search_in(folder: Path, storage: Path) -> SearchDir:
    return SearchDir(folder, Storage.open(f"file://{storage}"))


@pytest.fixture
def begun(tmp_path: Path) -> SearchDir:
    """A search under way, with a trial's checkpoint in its storage, and one of two records acknowledged by MLflow."""
    place = search_in(tmp_path / "here", tmp_path / "store")
    place.claim(SEARCH, TRACKER)
    record = OutboxFile(place.path / "mlflow_journal.jsonl")
    record.ack(record.append({"n": 0}))
    record.append({"n": 1})
    journal = SearchJournal(place.journal, place.store_journals)
    journal.write("trial", trial="trial-000", values={})
    kept = tmp_path / "store" / "tune" / "attempt-1" / "trial-000" / "checkpoint_000000"
    kept.mkdir(parents=True)
    (kept / "state.arrow").write_text("precious")
    return place


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("HEARTBEAT_S", 0.05), ("EXPIRY_S", 0.6), ("SETTLE_S", 0.1)):
        monkeypatch.setattr(lease, name, seconds)
    monkeypatch.setattr(search_dir, "RETRY_DELAYS_S", (0.0, 0.0))


def test_another_folder_resumes_from_the_storage(begun: SearchDir, tmp_path: Path) -> None:
    """The same search, in the same MLflow run, with what that has not acknowledged; the checkpoints stay where Tune finds
    them, and a new attempt has a new name."""
    other = search_in(tmp_path / "there", tmp_path / "store")
    assert other.tracker_to_resume(SEARCH) == TRACKER
    assert not other.path.exists()
    other.path.mkdir()
    other.fetch()
    for file in (other.identity, other.config, other.journal):
        assert file.read_bytes() == (begun.path / file.name).read_bytes()
    assert [entry.record for entry in OutboxFile(other.path / "mlflow_journal.jsonl").pending] == [{"n": 1}]
    assert list(SearchJournal(other.journal).trials) == ["trial-000"]
    assert (other.ray_storage()[0], other.new_attempt()) == (str(tmp_path / "store" / "tune"), "attempt-2")
    name = "tune/attempt-1/trial-000/checkpoint_000000"
    assert other.checkpoint_path(name) == str(tmp_path / "store" / name)
    with other.open_checkpoint(name) as path:
        assert (path / "state.arrow").read_text() == "precious"
    with other.open_checkpoint("tune/attempt-1/trial-000/checkpoint_000001") as path:
        assert not path.exists()
    assert other.tracker_to_resume(SEARCH) == begun.tracker_to_resume(SEARCH) == TRACKER
    other.delete("tune/attempt-1")
    assert not (tmp_path / "store" / "tune" / "attempt-1").exists()


def test_which_journal_wins(begun: SearchDir, tmp_path: Path) -> None:
    """A folder that the search was in keeps its journals if they begin with what the storage has, as after a failed upload;
    if the search was resumed in another folder since, it takes the stored ones, and has nothing pending of its own."""
    ahead = SearchJournal(begun.journal)
    ahead.write("trial", trial="trial-001", values={})
    stored = (tmp_path / "store" / "journal.jsonl").read_bytes()
    begun.fetch()
    assert list(SearchJournal(begun.journal).trials) == ["trial-000", "trial-001"]
    other = search_in(tmp_path / "there", tmp_path / "store")
    other.path.mkdir()
    other.fetch()
    SearchJournal(other.journal, other.store_journals).write("trial", trial="trial-002", values={})
    record = OutboxFile(other.path / "mlflow_journal.jsonl")
    record.ack(record.pending[-1])
    other.store_journals()
    for content in (begun.journal.read_bytes(), stored):
        begun.journal.write_bytes(content)
        begun.fetch()
        assert list(SearchJournal(begun.journal).trials) == ["trial-000", "trial-002"]
        assert OutboxFile(begun.path / "mlflow_journal.jsonl").pending == []


def test_a_different_search_is_refused(begun: SearchDir, tmp_path: Path) -> None:
    """Another search, storage or folder, or none at all."""
    store, free = tmp_path / "store", tmp_path / "free"
    seed = tiny_search(seed=1)
    for place, of, says in (
        (
            search_in(free, store),
            seed,
            "holds a search of another configuration .* compare yours with .*store/search.yaml",
        ),
        (SearchDir(begun.path), SEARCH, rf"add --set base\.cluster\.storage=file://{store}"),
        (search_in(begun.path, free), SEARCH, r"free: holds no search \(no readable search.json\)"),
        (search_in(tmp_path, tmp_path), SEARCH, "is the search's folder, which holds everything anyway"),
        (search_in(store / "x", store), SEARCH, "the search's folder .* is in the other"),
    ):
        with pytest.raises(ConfigError, match=says):
            place.tracker_to_resume(of)
    alone = SearchDir(tmp_path / "alone")
    alone.claim(SEARCH, Tracker(TRACKER.uri, "xyz"))
    with pytest.raises(ConfigError, match=r"MLflow run xyz, not abc.*, which has none"):
        search_in(alone.path, store).tracker_to_resume(SEARCH)
    free.mkdir()
    (free / "diary.txt").write_text("precious")
    with pytest.raises(ConfigError, match="free: exists and is not empty"):
        search_in(free, store).tracker_to_resume(SEARCH)
    with pytest.raises(
        ConfigError,
        match=r"store: is not empty; nothing was written. Use --resume to go on, or another base.cluster.storage\.",
    ):
        search_in(tmp_path / "there", store).check_empty("Use --resume to go on, or another --out.")


class Places:
    """How often a storage is away, and what it takes in which order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away: list[bool] = []
        self.taken: list[str] = []
        put = Storage.put

        def asked(storage: Storage, name: str, content: bytes) -> None:
            if name in ("mlflow_journal.jsonl", "journal.jsonl"):
                if self.away and self.away.pop(0):
                    raise StorageUnavailableError(f"{storage}: away")
                self.taken.append(name)
            put(storage, name, content)

        monkeypatch.setattr(Storage, "put", asked)


@pytest.mark.usefixtures("short_delays")
def test_the_search_waits_for_its_storage_and_then_ends(
    begun: SearchDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What MLflow has not been told is put before the search's memory of it, which is then as whole as before. Away once:
    both are put again, and it is said. Away for longer: the search ends with that error, and its own disk has the line."""
    places, journal = Places(monkeypatch), SearchJournal(begun.journal, begun.store_journals)
    stored = begun.storage
    assert stored is not None
    before = stored.read("journal.jsonl")
    places.away = [False, True]
    with caplog.at_level(logging.WARNING):
        journal.write("attempt", began_unix_s=0.0, places=1, cores=1)
    assert places.taken == ["mlflow_journal.jsonl"] * 2 + ["journal.jsonl"]
    assert "the search waits for its storage" in caplog.text
    kept = stored.read("journal.jsonl")
    assert kept == begun.journal.read_bytes() != before
    places.away = [False, True] * 3
    with pytest.raises(StorageUnavailableError, match="away"):
        journal.write("done")
    assert isinstance(journal.sync_error, StorageUnavailableError)
    assert stored.read("journal.jsonl") == kept
    assert begun.journal.read_bytes().startswith(kept or b"?")
    assert len(begun.journal.read_bytes()) > len(kept or b"")


@pytest.mark.usefixtures("short_delays")
def test_one_driver_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one, in a folder of its own, is refused while the first renews its lease, and leaves no MLflow run; of a
    search that another has taken over nothing more is put."""
    runs, uri = [TRACKER], TRACKER.uri
    monkeypatch.setattr(run, "_open_run", lambda *_: runs.pop())
    first, second = (search_in(tmp_path / name, tmp_path / "store") for name in ("one", "two"))
    with open_search(SEARCH, first, uri, resume=False) as tracker:
        for resume in (True, False):
            attempt = search_in(second.path, tmp_path / "store")
            with (
                pytest.raises(StorageError, match="another driver is at work in it"),
                open_search(SEARCH, attempt, uri, resume=resume),
            ):
                pass
        journal = SearchJournal(first.journal, first.store_journals)
        assert first.storage is not None
        first._lease._lost_to = "somebody"
        with pytest.raises(LostLeaseError, match="another driver has taken it over"):
            journal.write("done")
        assert b"done" not in (first.storage.read("journal.jsonl") or b"")
    assert not (tmp_path / "store" / LEASE).exists()
    with open_search(SEARCH, second, uri, resume=True) as again:
        assert again == tracker
        assert second.identity.read_bytes() == first.identity.read_bytes()


@pytest.mark.parametrize(
    ("storage", "arguments", "says"),
    [
        (
            "ftp://host/x",
            (),
            "base.cluster.storage: must be a path, or a URI that starts with one of file://",
        ),
        ("s3://key:geheim@bucket/x", (), "base.cluster.storage: contains a password"),
        ("file://host/x", (), "cannot be used as storage: Unsupported hostname"),
        (
            "{here}/full",
            (),
            "full: is not empty; nothing was written. Use --resume to continue the search in it, or another base.cluster.storage.",
        ),
        ("{here}/out", (), "is the search's folder, which holds everything anyway; remove the key"),
        ("{here}/free", ("--resume",), "free: holds no search (no readable search.json)"),
        (
            "{here}/runtime_resources/working_dir_files/x",
            (),
            "lies in the folder that Ray made for this job",
        ),
    ],
)
def test_a_wrong_storage_is_reported_before_any_work(
    storage: str, arguments: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    """Exit code 2, one message, and nothing written; without a cluster, which would take seconds."""
    file = tmp_path / "search.yaml"
    file.write_text(SEARCH.to_yaml())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    place = storage.format(here=tmp_path)
    command = ["search", str(file), "--out", str(tmp_path / "out"), "--set", f"base.cluster.storage={place}"]
    result = CliRunner().invoke(app, [*command, *arguments])
    assert (result.exit_code, sorted(tmp_path.rglob("*")) == before) == (2, True), result.output
    assert says in result.stderr
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.output
    assert "geheim" not in result.output


def test_a_search_whose_mlflow_store_is_on_another_machine_is_not_resumed(tmp_path: Path) -> None:
    """Its MLflow store is a file of the other machine: no empty one is created in its place."""
    lost, file = tmp_path / "lost" / "mlflow.db", tmp_path / "search.yaml"
    file.write_text(SEARCH.to_yaml())
    search_in(tmp_path / "here", tmp_path / "store").claim(SEARCH, Tracker(f"sqlite:///{lost}", "abc"))
    place = f"base.cluster.storage=file://{tmp_path}/store"
    command = ["search", str(file), "--out", str(tmp_path / "new"), "--resume", "--set", place]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2, result.output
    assert f"MLflow at sqlite:///{lost}: no such file on this machine" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"here", "store", "search.yaml"}


def test_the_storage_does_not_change_the_hash() -> None:
    """Its trials are the same."""
    base = dict(SEARCH.base) | {"cluster": {"storage": "s3://bucket/prefix"}}
    kept: SearchConfig = tiny_search(base=base)
    assert kept.hash == SEARCH.hash
