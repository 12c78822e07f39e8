"""The two kinds of errors that end a command with a message instead of a traceback, and which of them the system's are."""

import errno
import shutil
from pathlib import Path

USERS = {
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP),
}
"""What the system says to a path that the user can give otherwise."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What it says where there is no room: on the disk, in the user's share of it, for a file of this size."""


class UserError(ValueError):
    """The user can mend it: what was wrong, the value found, what is allowed. Exit code 2."""


class RunError(RuntimeError):
    """The work could not be brought to its end although the input was right. Exit code 1."""


def first_line(error: BaseException) -> str:
    """What an error says, without the traces that some libraries add."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_user_error(error: OSError) -> bool:
    """Whether another path would mend it; otherwise the world has failed: a full disk, a lost connection."""
    return error.errno in USERS


def is_disk_full(error: BaseException) -> bool:
    """Whether there was no room to write."""
    return isinstance(error, OSError) and error.errno in FULL


def disk_free_message(path: Path) -> str:
    """How much room the disk has on which a path lies or would lie, in words; empty if nobody knows."""
    there = next((p for p in (path, *path.absolute().parents) if p.exists()), None)
    if there is None:
        return ""
    usage = shutil.disk_usage(there)
    return f"{usage.free / 2**20:.2f} MiB free of {usage.total / 2**20:.2f} MiB"
