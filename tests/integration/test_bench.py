"""The benchmarks of the orchestration as a person runs them: real processes, real Ray; no times asserted."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.processes import descendants_named
from tests.helpers.tiny import tiny_config

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-c", "from ray_distill.cli.main import main; main()", "bench"]
OURS = Path("/tmp")


def left_behind() -> set[str]:
    return {path.name for path in OURS.glob("rd-*")}


def runs(pid: int) -> bool:
    """Whether there is such a process, other than as an entry that nobody has collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


WAYS = {"overhead": [("bare", 1), ("ray", 1)], "workers": [("ray", 1), ("ray", 2)]}


@pytest.mark.parametrize("verb", WAYS)
def test_both_ways_arrive_at_the_same_set(verb: str, tmp_path: Path) -> None:
    """It ends with 0, which it does only if its runs agree; one record per run, whose seconds add up; no files
    but the one that was asked for."""
    (tmp_path / "tiny.yaml").write_text(tiny_config().to_yaml())
    before = left_behind()
    arguments = [verb, "tiny.yaml", "--seconds", "1", "--repeats", "1", "--json", "records.json"]
    done = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "replicas/s" in done.stdout
    records = json.loads((tmp_path / "records.json").read_text())
    assert [(r["route"], r["workers"]) for r in records] == WAYS[verb]
    assert len({(r["outer_steps"], r["config_hash"]) for r in records}) == 1
    for r in records:
        assert (r["benchmark"], r["repeat"], r["replicas"]) == (verb, 1, 2)
        assert r["steady_s"] == pytest.approx(r["steps_s"] + r["validations_s"] + r["between_s"])
        assert min(r["startup_s"], r["steps_s"], r["validations_s"]) > 0
        assert r["startup_s"] + r["steady_s"] < r["total_s"]
        assert r["versions"].keys() == {"python", "torch", "ray", "mlflow"}
        assert r["machine"]["cores"] >= 1
    assert left_behind() <= before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["records.json", "tiny.yaml"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_ends_early_leaves_no_processes(tmp_path: Path, sent: signal.Signals) -> None:
    """Ctrl-C while Ray's workers train: exit code 130, one line, no record. However it ends: no processes,
    neither the run's own nor its cluster's."""
    (tmp_path / "tiny.yaml").write_text(tiny_config().to_yaml())
    before = left_behind()
    process = subprocess.Popen(
        [*COMMAND, "workers", "tiny.yaml", "--seconds", "200", "--json", "never.json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 200
    while not descendants_named("ray::RayTrainWorker", process.pid):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    started = descendants_named("", process.pid)
    process.send_signal(sent)
    _, err = process.communicate(timeout=120)
    if sent == signal.SIGINT:
        assert process.returncode == 130
        assert "interrupted; nothing was written" in err
        assert "Traceback" not in err
        assert left_behind() <= before
    deadline = time.monotonic() + 60
    while alive := [pid for pid in started if runs(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.2)
    assert not (tmp_path / "never.json").exists()
    for name in left_behind() - before:
        # A command that was killed cannot clean up after itself.
        subprocess.run(["rm", "-r", str(OURS / name)], check=True)
