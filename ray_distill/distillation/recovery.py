"""Which checkpoint in Ray Train's storage a run resumes from, and what the next one is called.

Train hands a worker the last checkpoint of its snapshot file, whatever state that is in; here all ranks agree on the
newest one that each of them can read. Two things about Train (2.60) to know: it deletes by name, so a new checkpoint under
the name of an old one is deleted with it; and it does not start with a snapshot file that it cannot read, or that lists a
checkpoint that does not exist.
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
from ray_distill.distillation.reporting import CHECKPOINT_FILE
from ray_distill.errors import RunError, disk_free_message, is_disk_full

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Train's list of checkpoints, beside their folders."""
_NAME = re.compile(r"step_(\d{8,})(?:-(\d+))?")
LoadedT = TypeVar("LoadedT")


class NoValidCheckpointError(CheckpointError):
    """A run has checkpoints, and none of them can be read."""


class CheckpointDiskFullError(RunError):
    """A checkpoint could not be written because a disk is full."""


class ResumePoint(NamedTuple):
    """Where the workers start."""

    saved: SavedRun | None
    """None for a run without checkpoints."""
    in_snapshot: bool
    """Whether Train knows the checkpoint."""
    damaged: str
    """What is wrong with newer checkpoints; empty if there are none."""
    names: frozenset[str]
    """Of all existing checkpoints."""


def checkpoint_name(outer_step: int, taken: frozenset[str]) -> str:
    """The folder name of a checkpoint after this outer step; not one of those taken."""
    plain = f"step_{outer_step:08d}"
    numbered = (f"{plain}-{n}" for n in range(2, len(taken) + 3))
    return next(name for name in (plain, *numbered) if name not in taken)


def _name(checkpoint: ray.train.Checkpoint) -> str:
    return PurePosixPath(checkpoint.path).name


def _age(name: str) -> tuple[int, int]:
    match = _NAME.fullmatch(name)
    assert match is not None
    return int(match[1]), int(match[2] or 1)


def _stored_checkpoints(fs: pyarrow.fs.FileSystem, folder: str) -> list[ray.train.Checkpoint]:
    """The checkpoints in Train's folder of the run, oldest first."""
    infos = fs.get_file_info(pyarrow.fs.FileSelector(folder, allow_not_found=True))
    names = [i.base_name for i in infos if not i.is_file and _NAME.fullmatch(i.base_name)]
    return [ray.train.Checkpoint(f"{folder}/{name}", fs) for name in sorted(names, key=_age)]


def listed_checkpoints() -> list[ray.train.Checkpoint]:
    """The checkpoints in Train's snapshot of this Ray Train worker's run, oldest first."""
    committed = ray.train.CheckpointConsistencyMode.COMMITTED
    return [r.checkpoint for r in ray.train.get_all_reported_checkpoints(consistency_mode=committed)]


def latest_valid(config_hash: str, device: torch.device, world: Communicator) -> ResumePoint:
    """The newest checkpoint of this Ray Train worker's run that every rank can read; every rank must call it.

    Without a snapshot (`quarantine_snapshot`), of all in the storage. Raises: NoValidCheckpointError.
    """
    if listed := listed_checkpoints():
        return choose_resume_point(listed, config_hash, device, world)
    storage = ray.train.get_context().get_storage()
    stored = _stored_checkpoints(storage.storage_filesystem, storage.experiment_fs_path)
    return choose_resume_point(stored, config_hash, device, world)._replace(in_snapshot=False)


def choose_resume_point(
    checkpoints: Sequence[ray.train.Checkpoint], config_hash: str, device: torch.device, world: Communicator
) -> ResumePoint:
    """The newest of these checkpoints, given oldest first, that every rank can read. Raises: NoValidCheckpointError."""
    names = frozenset(map(_name, checkpoints))
    saved, errors = load_latest(
        checkpoints, lambda folder: load_state(folder / CHECKPOINT_FILE, config_hash, device), device, world
    )
    damaged = "; ".join(errors)
    if saved is not None:
        damaged = damaged and f"{damaged}; the run resumes from outer step {saved.state.outer_step}"
        return ResumePoint(saved, True, damaged, names)
    if damaged:
        raise NoValidCheckpointError(
            f"no checkpoint of this run can be read: {damaged}. Restore one of them from a backup and use --resume, or "
            "start again with --force or another --out"
        )
    return ResumePoint(None, True, "", names)


def load_latest(
    checkpoints: Sequence[ray.train.Checkpoint],
    load: Callable[[Path], LoadedT],
    device: torch.device,
    world: Communicator,
) -> tuple[LoadedT | None, list[str]]:
    """The newest of these checkpoints, given oldest first, that every rank can load; and the errors of newer ones.

    Args:
        load: loads a checkpoint's folder; raises CheckpointError for a damaged one.
    """
    errors: list[str] = []
    for checkpoint in reversed(checkpoints):
        loaded, error = _load(checkpoint, load)
        # Ranks that resumed from different checkpoints would compute nonsense.
        num_loaded = world.sum(torch.tensor([loaded is not None], dtype=torch.float64, device=device))
        if loaded is not None and int(num_loaded) == world.size:
            return loaded, errors
        errors.append(error or f"{_name(checkpoint)} can be read by some workers and not by others")
    return None, errors


def _load(checkpoint: ray.train.Checkpoint, load: Callable[[Path], LoadedT]) -> tuple[LoadedT | None, str]:
    """A checkpoint's contents, or else the error."""
    try:
        with checkpoint.as_directory() as folder:
            return load(Path(folder)), ""
    except (CheckpointError, FileNotFoundError) as e:
        return None, f"{_name(checkpoint)}: {e}"


def quarantine_snapshot(storage_path: str, filesystem: pyarrow.fs.FileSystem | None, run: str) -> str:
    """Rename Train's snapshot file if Train would refuse it; in the driver, before the run begins.

    Args:
        storage_path, filesystem: Train's, as it takes them; `run`, the name of the run there.

    Returns: what was wrong with the file, or "".
    """
    fs = filesystem or pyarrow.fs.LocalFileSystem()
    folder = f"{storage_path}/{run}"
    snapshot = f"{folder}/{SNAPSHOT}"
    if fs.get_file_info(snapshot).type == pyarrow.fs.FileType.NotFound:
        return ""
    with fs.open_input_stream(snapshot, compression=None) as file:
        error = _snapshot_error(
            file.read(), {_name(checkpoint) for checkpoint in _stored_checkpoints(fs, folder)}
        )
    if error:
        fs.move(snapshot, f"{snapshot}.damaged")
        return f"{snapshot}: {error}; it was set aside, and the checkpoints beside it were searched instead"
    return ""


def _snapshot_error(content: bytes, stored: set[str]) -> str:
    try:
        listed = {str(result["checkpoint_dir_name"]) for result in json.loads(content)["checkpoint_results"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return "Ray Train's list of checkpoints is truncated or corrupt"
    missing = sorted(listed - stored)
    return (
        f"Ray Train's list of checkpoints names {', '.join(missing)}, which does not exist" if missing else ""
    )


def disk_full_message(error: OSError, place: Path | str, what: str) -> str:
    """The message for a checkpoint that could not be written to a full disk. Raises: the error, if it is another one."""
    if not is_disk_full(error):
        raise error
    assert error.errno is not None
    free = f" ({disk_free_message(place)})" if isinstance(place, Path) else ""
    return (
        f"{place}: not enough disk space for {what}: {os.strerror(error.errno)}{free}. Earlier checkpoints are intact: "
        "free some space and use --resume"
    )


def train_storage_path() -> Path | str:
    """Where the checkpoints of this Ray Train worker's run go."""
    storage = ray.train.get_context().get_storage()
    local = isinstance(storage.storage_filesystem, pyarrow.fs.LocalFileSystem)
    return Path(storage.experiment_fs_path) if local else str(storage.experiment_fs_path)


def remove_partial_checkpoint(name: str) -> None:
    """Remove what was written of a checkpoint that Train does not know."""
    storage = ray.train.get_context().get_storage()
    with suppress(OSError):
        storage.storage_filesystem.delete_dir(f"{storage.experiment_fs_path}/{name}")
