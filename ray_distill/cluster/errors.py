"""What an error says that came out of an actor: in a line, for people, and whether it was about memory."""

import re

from ray.exceptions import RayActorError, RayError, RayTaskError

_AMOUNT = re.compile(r"allocate ([\d.,]+ ?\w+)")
"""In errors of torch, on CPUs and GPUs, and of numpy."""
_USED = re.compile(r"Memory on the node \(.*?\) was (\S+) used / (\S+) limit")
"""In Ray's, of what it has killed."""


def out_of_memory(error: BaseException) -> bool:
    """Whether work might succeed where there is more memory: torch has errors of its own for that, and so has Ray."""
    return isinstance(error, MemoryError) or any(
        words in f"{type(error).__name__}: {error}"
        for words in ("OutOfMemoryError", "can't allocate memory", "low on memory")
    )


def short_reason(error: BaseException) -> str:
    """What happened, without Ray's traceback and addresses."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if out_of_memory(error):
        if amount := _AMOUNT.search(str(error)):
            return f"out of memory: {amount[1]} more could not be had"
        if used := _USED.search(str(error)):
            return f"out of memory: {used[1]} of its machine's {used[2]} were in use, so Ray killed it"
    if not isinstance(error, RayError):
        return f"{type(error).__name__}: {' '.join(lines)}"
    if isinstance(error, RayTaskError) or (
        isinstance(error, RayActorError) and "creation task" in str(error)
    ):
        return lines[-1]
    told = [line for line in lines if "died" in line]
    return " ".join(dict.fromkeys(told[:1] or lines[:1] or [type(error).__name__]))
