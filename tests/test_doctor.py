"""`doctor`: each check reports what is there and what is not, and none stops the others."""

import http.server
import io
import json
import threading
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from ray_distill import doctor
from ray_distill.cli.doctor import table
from ray_distill.cli.main import app
from ray_distill.doctor import Finding
from ray_distill.utils.timeout import call_with_timeout


def checked(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def test_every_check_is_run_and_reported(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a real Ray cluster and a real MLflow store, which has no run afterwards; nor has the folder a file."""
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    result = CliRunner().invoke(app, ["doctor", "--json", "d.json"])
    assert result.exit_code == 0, result.output
    found = {row["check"]: row for row in json.loads((tmp_path / "d.json").read_text())}
    assert {"Python", "torch", "compiler", "memory", "storage", "disk", "MLflow", "Ray", "Ray's GPUs"} <= set(
        found
    )
    assert "1 node(s), 2 CPUs" in found["Ray"]["found"]
    assert "a run was written and deleted" in found["MLflow"]["found"]
    assert result.stdout.isascii()
    assert "ready to run" in result.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"store.db", "d.json"}
    client = MlflowClient(f"sqlite:///{tmp_path}/store.db")
    assert client.search_runs([client.get_experiment_by_name("ray_distill-doctor").experiment_id]) == []


def test_what_is_missing_is_named_and_the_rest_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store of no kind, a place that cannot be written to, no compiler, no cluster: exit code 1, and all of it said."""
    (tmp_path / "text").write_text("x")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://me:geheim@a")
    monkeypatch.setenv("CXX", "no-such-compiler")
    result = CliRunner().invoke(app, ["doctor", "--out", str(tmp_path / "text" / "x")])
    assert result.exit_code == 1
    assert "checks failed: storage, MLflow, Ray" in result.stderr
    for part in (
        "no-such-compiler",
        "install g++",
        "fix MLFLOW_TRACKING_URI",
        "fix RAY_ADDRESS",
        "Connection refused",
    ):
        assert part in " ".join(result.stdout.split()), part
    assert "geheim" not in result.output


def test_a_storage_is_left_as_it_was(tmp_path: Path) -> None:
    """A folder that is there or not, by its path or as a URI."""
    for storage in (tmp_path, f"file://{tmp_path}", tmp_path / "new"):
        assert checked(doctor.check_storage(str(storage)))["storage"].state == "good"
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_hangs_times_out() -> None:
    (found,) = doctor._catch(
        "MLflow", lambda: call_with_timeout(lambda: threading.Event().wait() or [], 0.05)
    )
    assert (found.state, found.found) == ("bad", "no answer in 0.05 s")


@pytest.fixture
def server_with_a_slow_clock() -> Iterator[str]:
    """An HTTP server that refuses access, with a clock 100 s slow."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(401)
            self.send_header("Date", formatdate(doctor.time.time() - 100, usegmt=True))
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://me:geheim@127.0.0.1:{server.server_port}"
        server.shutdown()


def test_clock_skew_is_reported(server_with_a_slow_clock: str) -> None:
    """The server sends whole seconds: -100 to -99 s, of which the middle is taken."""
    offset_s = doctor._server_clock_offset_s(server_with_a_slow_clock)
    assert offset_s == pytest.approx(-100, abs=1.5)
    found = doctor._clock_skew("clock", offset_s, 1.0)
    assert (found.state, "differs from this machine's by -" in found.found) == ("note", True)
    assert doctor._clock_skew("clock", 2.9, 1.0).state == "good"


def test_the_table_shows_advice_where_something_is_wrong() -> None:
    """Ticks on a terminal, words elsewhere; brackets in a result are not markup."""
    findings = [Finding("a", "good", "[red]x", "p"), Finding("b", "bad", "y", "q", "fix it")]
    said = {}
    for terminal in (True, False):
        console = Console(width=80, force_terminal=terminal, file=io.StringIO())
        console.print(table(findings, terminal=terminal))
        assert isinstance(console.file, io.StringIO)
        said[terminal] = console.file.getvalue()
    assert "✓" in said[True]
    assert "✗" in said[True]
    assert said[False].isascii()
    assert "[red]x" in said[False]
    assert "-> fix it" in said[False]
    assert said[False].count("->") == 1
