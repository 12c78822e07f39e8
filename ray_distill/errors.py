"""The two kinds of errors that end a command with a message instead of a traceback, and how system errors map to them."""

import errno
import shutil
from pathlib import Path

PATH_ERRNOS = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP),
}
"""Errors that another path would avoid."""
DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""The disk is full, the user's quota is used up, the file is too large."""


class UserError(ValueError):
    """What the user can fix; the message has the value got and what is allowed. Exit code 2."""


class RunError(RuntimeError):
    """The work failed although the input was valid. Exit code 1."""


def first_line(error: BaseException) -> str:
    """The message without the traces that some libraries append."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_user_error(error: OSError) -> bool:
    """Whether another path would avoid the error; if not, something failed: a full disk, a lost connection."""
    return error.errno in PATH_ERRNOS


def is_disk_full(error: BaseException) -> bool:
    """Whether there was not enough disk space to write."""
    return isinstance(error, OSError) and error.errno in DISK_FULL_ERRNOS


def disk_free_message(path: Path) -> str:
    """The free space of the disk of a path, which need not exist; empty if unknown."""
    existing = next((p for p in (path, *path.absolute().parents) if p.exists()), None)
    if existing is None:
        return ""
    usage = shutil.disk_usage(existing)
    return f"{usage.free / 2**20:.2f} MiB free of {usage.total / 2**20:.2f} MiB"
