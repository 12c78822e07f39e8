"""Commands stopped by a scheduler: SIGTERM is an interrupt, and results do not go to a folder that will be deleted."""

import os
import signal
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from ray_distill.cli.console import exit_codes
from ray_distill.cli.main import app
from ray_distill.cli.signals import Terminated, sigterm_as_interrupt
from ray_distill.errors import UserError
from ray_distill.storage.job_scratch import refuse_job_scratch

DIGITS = str(Path(__file__).parents[2] / "experiments" / "digits_ipc1.yaml")


def test_sigterm_is_an_interrupt_once() -> None:
    """The first one raises, a second one does not disturb the cleaning up, and the handler before comes back."""
    before = signal.getsignal(signal.SIGTERM)
    done = []

    def work() -> None:
        with sigterm_as_interrupt():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("more work")
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("cleaned up")

    with pytest.raises(Terminated):
        work()
    assert done == ["cleaned up"]
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_gives_an_exit_code_and_advice(
    number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """128 + the signal's number, as in shells."""
    # What a shell starts in the background ignores Ctrl-C, these tests too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(typer.Exit) as ended, exit_codes("resume like this"):
            os.kill(os.getpid(), number)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.exit_code == code == 128 + number
    assert capsys.readouterr().err == "interrupted; resume like this\n"


def unpacked(tmp_path: Path) -> Path:
    """A folder where Ray would unpack what was submitted."""
    folder = tmp_path / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    folder.mkdir(parents=True)
    return folder


def test_results_in_a_jobs_own_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, by a relative path, by a link: exit code 2, what to do, and nothing written."""
    folder = unpacked(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    for out in ([], ["--out", "runs/mine"], ["--out", str(tmp_path / "link" / "mine")]):
        result = CliRunner().invoke(app, ["distill", DIGITS, *out])
        assert result.exit_code == 2
        assert "folder that Ray made for this job" in result.stderr
        assert "--out /shared/runs/NAME" in result.stderr
    assert list(folder.iterdir()) == []


def test_results_elsewhere_are_not(tmp_path: Path) -> None:
    """Beside the folder; and in folders of those names that are not one in the other."""
    unpacked(tmp_path)
    for elsewhere in ("mine", "working_dir_files/mine", "runtime_resources/a/working_dir_files/mine"):
        refuse_job_scratch(tmp_path / elsewhere, "--out")
    with pytest.raises(UserError):
        refuse_job_scratch(tmp_path / "runtime_resources" / "working_dir_files" / "mine", "--out")
