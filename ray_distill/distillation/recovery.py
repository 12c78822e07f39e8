"""The checkpoints of a run in Ray Train's storage: which one the workers go on from, and what the next is called.

Train keeps a book of them, and hands a worker the last one, whatever became of its file. Here the newest one that is
whole is taken, by all ranks the same. Two things about Train (2.60) to know: it deletes by name, so a checkpoint kept
under the name of an older one goes with it; and it does not start with a book that it cannot read, or that names a
checkpoint which is not there.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

import pyarrow.fs
import ray.train
import torch

from ray_distill.core.distributed import Communicator
from ray_distill.distillation.checkpoint import CheckpointError, SavedRun, load_state
from ray_distill.distillation.recorder import CHECKPOINT_FILE
from ray_distill.errors import RunError, disk_free_message, is_disk_full

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Train's, beside the checkpoints' folders."""
_NAME = re.compile(r"step_(\d{8,})(?:-(\d+))?")
ReadT = TypeVar("ReadT")


class NoWholeCheckpointError(CheckpointError):
    """A run has checkpoints, and none of them can be read."""


class NoRoomError(RunError):
    """A checkpoint could not be written because a disk is full."""


class FoundCheckpoint(NamedTuple):
    """Where the workers go on from."""

    kept: SavedRun | None
    """None if the run has no checkpoint: it begins."""
    booked: bool
    """Whether Train knows of it."""
    damaged: str
    """What is wrong with the newer ones; empty if there are none."""
    names: frozenset[str]
    """Of all checkpoints that are there."""


def name_of(outer_step: int, taken: frozenset[str]) -> str:
    """The folder of a checkpoint after so many outer steps: none of those that are taken."""
    plain = f"step_{outer_step:08d}"
    again = (f"{plain}-{n}" for n in range(2, len(taken) + 3))
    return next(name for name in (plain, *again) if name not in taken)


def _name(checkpoint: ray.train.Checkpoint) -> str:
    return PurePosixPath(checkpoint.path).name


def _age(name: str) -> tuple[int, int]:
    match = _NAME.fullmatch(name)
    assert match is not None
    return int(match[1]), int(match[2] or 1)


def _lying(fs: pyarrow.fs.FileSystem, folder: str) -> list[ray.train.Checkpoint]:
    """What lies in Train's folder of the run, the oldest first."""
    infos = fs.get_file_info(pyarrow.fs.FileSelector(folder, allow_not_found=True))
    names = [i.base_name for i in infos if not i.is_file and _NAME.fullmatch(i.base_name)]
    return [ray.train.Checkpoint(f"{folder}/{name}", fs) for name in sorted(names, key=_age)]


def booked() -> list[ray.train.Checkpoint]:
    """What Train's book has of the run that this Ray Train worker belongs to, the oldest first."""
    committed = ray.train.CheckpointConsistencyMode.COMMITTED
    return [r.checkpoint for r in ray.train.get_all_reported_checkpoints(consistency_mode=committed)]


def latest_valid(config_hash: str, device: torch.device, world: Communicator) -> FoundCheckpoint:
    """The newest whole checkpoint of the run that this Ray Train worker belongs to; every rank must call it.

    Without a book (`quarantine_snapshot`), of all that lie there. Raises: NoWholeCheckpointError.
    """
    if known := booked():
        return newest_whole(known, config_hash, device, world)
    storage = ray.train.get_context().get_storage()
    lying = _lying(storage.storage_filesystem, storage.experiment_fs_path)
    return newest_whole(lying, config_hash, device, world)._replace(booked=False)


def newest_whole(
    checkpoints: Sequence[ray.train.Checkpoint], config_hash: str, device: torch.device, world: Communicator
) -> FoundCheckpoint:
    """The last of these, the oldest first, that every rank can read. Raises: NoWholeCheckpointError."""
    names = frozenset(map(_name, checkpoints))
    kept, damaged = newest_read(
        checkpoints, lambda folder: load_state(folder / CHECKPOINT_FILE, config_hash, device), device, world
    )
    said = "; ".join(damaged)
    if kept is not None:
        return FoundCheckpoint(
            kept, True, said and f"{said}; the run goes on from outer step {kept.state.outer_step}", names
        )
    if damaged:
        raise NoWholeCheckpointError(
            f"no checkpoint of this run can be read: {said}. Bring one of them back from a copy and go on with "
            "--resume; or begin again, with --force or with another --out"
        )
    return FoundCheckpoint(None, True, "", names)


def newest_read(
    checkpoints: Sequence[ray.train.Checkpoint],
    read: Callable[[Path], ReadT],
    device: torch.device,
    world: Communicator,
) -> tuple[ReadT | None, list[str]]:
    """What the last of these holds, the oldest first, that every rank can read; and what is wrong with those after it.

    Args:
        read: reads a checkpoint's folder; raises CheckpointError for a damaged one.
    """
    damaged: list[str] = []
    for checkpoint in reversed(checkpoints):
        found, trouble = _read(checkpoint, read)
        # Ranks that went on from different ones would compute, and say, nonsense.
        num_whole = world.sum(torch.tensor([found is not None], dtype=torch.float64, device=device))
        if found is not None and int(num_whole) == world.size:
            return found, damaged
        damaged.append(trouble or f"{_name(checkpoint)} can be read by some workers and not by others")
    return None, damaged


def _read(checkpoint: ray.train.Checkpoint, read: Callable[[Path], ReadT]) -> tuple[ReadT | None, str]:
    """What a checkpoint holds, or else what is wrong with it."""
    try:
        with checkpoint.as_directory() as folder:
            return read(Path(folder)), ""
    except (CheckpointError, FileNotFoundError) as e:
        return None, f"{_name(checkpoint)}: {e}"


def quarantine_snapshot(storage_path: str, filesystem: pyarrow.fs.FileSystem | None, run: str) -> str:
    """Set Train's book aside if Train would refuse it; in the driver, before the run begins.

    Args:
        storage_path, filesystem: Train's, as it takes them; `run`, the name of the run there.

    Returns: what was wrong with the book, empty if nothing was.
    """
    fs = filesystem or pyarrow.fs.LocalFileSystem()
    folder = f"{storage_path}/{run}"
    book = f"{folder}/{SNAPSHOT}"
    if fs.get_file_info(book).type == pyarrow.fs.FileType.NotFound:
        return ""
    with fs.open_input_stream(book, compression=None) as file:
        trouble = _trouble(file.read(), {_name(checkpoint) for checkpoint in _lying(fs, folder)})
    if trouble:
        fs.move(book, f"{book}.damaged")
        return f"{book}: {trouble}; the checkpoints that lie beside it were looked through"
    return ""


def _trouble(content: bytes, there: set[str]) -> str:
    try:
        booked = {str(kept["checkpoint_dir_name"]) for kept in json.loads(content)["checkpoint_results"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return "Ray Train's list of checkpoints was cut or altered"
    lost = sorted(booked - there)
    return f"Ray Train's list of checkpoints names {', '.join(lost)}, which is not there" if lost else ""


def no_room(error: OSError, place: Path | str, what: str) -> str:
    """What to say of a checkpoint that found no room. Raises: the error, if it is another one."""
    if not is_disk_full(error):
        raise error
    assert error.errno is not None
    room = f" ({disk_free_message(place)})" if isinstance(place, Path) else ""
    return (
        f"{place}: no room for {what}: {os.strerror(error.errno)}{room}. The checkpoints before it are whole: make "
        "room there, and go on with --resume"
    )


def storage_path() -> Path | str:
    """Where the checkpoints of the run go that this Ray Train worker belongs to."""
    storage = ray.train.get_context().get_storage()
    local = isinstance(storage.storage_filesystem, pyarrow.fs.LocalFileSystem)
    return Path(storage.experiment_fs_path) if local else str(storage.experiment_fs_path)


def remove_part(name: str) -> None:
    """Remove what was written of a checkpoint that Train knows nothing of."""
    storage = ray.train.get_context().get_storage()
    with suppress(OSError):
        storage.storage_filesystem.delete_dir(f"{storage.experiment_fs_path}/{name}")
