"""The operating system's errors: the user's mistake or a failure, with what to do; and no partial files."""

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import typer

from ray_distill.cli.console import exit_codes
from ray_distill.distillation import checkpoint
from ray_distill.utils.atomic import write_text


@pytest.mark.parametrize(
    ("number", "code", "text"),
    [
        (errno.ENOENT, 2, "error: "),
        (errno.ENOTDIR, 2, "error: "),
        (errno.EACCES, 2, "error: "),
        (errno.EROFS, 2, "error: "),
        (errno.ENAMETOOLONG, 2, "error: "),
        (errno.ENOSPC, 1, "Free disk space; resume like this"),
        (errno.EDQUOT, 1, "Free disk space; resume like this"),
        (errno.EIO, 1, "failed: "),
        (errno.ECONNREFUSED, 1, "failed: "),
        (errno.ETIMEDOUT, 1, "failed: "),
        (None, 1, "failed: "),
    ],
)
def test_a_wrong_path_is_a_user_error_and_a_failing_system_is_not(
    number: int | None, code: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By errno, which pyarrow's object stores do not set. The message names the path."""
    error = OSError("the bucket is away") if number is None else OSError(number, "so", str(tmp_path / "a"))
    with pytest.raises(typer.Exit) as ended, exit_codes("resume like this"):
        raise error
    assert ended.value.exit_code == code
    message = capsys.readouterr().err
    assert message.startswith("error: " if code == 2 else "failed: ")
    assert text in message
    assert str(error) in message
    assert ("MiB free of" in message) == (number in (errno.ENOSPC, errno.EDQUOT))


@contextmanager
def small_files(num_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond this size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_on_a_full_disk_the_old_file_stays(tmp_path: Path) -> None:
    """A text and a checkpoint larger than the limit: the error names the file, which is unchanged, and nothing is left
    beside it."""
    text, state = tmp_path / "run.json", tmp_path / "state.arrow"
    write_text(text, "old")
    checkpoint.save_tensors(state, {"a": torch.zeros(3)}, {"step": 1})
    with small_files(3000):
        for path, write in (
            (text, lambda: write_text(text, 4000 * "x")),
            (state, lambda: checkpoint.save_tensors(state, {"a": torch.zeros(1000)}, {"step": 2})),
        ):
            with pytest.raises(OSError, match="File too large") as raised:
                write()
            assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(path))
    assert text.read_text() == "old"
    assert checkpoint.load_tensors(state)[1] == {"step": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "state.arrow"]
