"""Where the results of a run go: folder, storage and MLflow store, checked before anything is written.

Imports neither torch nor Ray, so that a mistake is reported at once.
"""

from itertools import count
from pathlib import Path

from ray_distill.config.config import Config
from ray_distill.storage.job_scratch import refuse_job_scratch
from ray_distill.storage.remote import Storage
from ray_distill.storage.run_dir import RunDir
from ray_distill.tracking.uri import check_exists, sqlite_file, store_uri

RUNS = Path("runs")
"""Where results go by default: a folder in it for each name, and one MLflow store for all."""


def open_run_folder(
    config: Config,
    out: Path | None,
    *,
    resume: bool = False,
    replace: bool = False,
    unique: bool = False,
    advice: str = "Use another --out.",
) -> tuple[RunDir, str]:
    """The folder of a run, checked before anything is written, and the URI of its MLflow store.

    Args:
        out: default: `runs/NAME`, with one MLflow store for all runs in `runs`.
        resume: the folder must hold an unfinished run of this configuration.
        replace: the folder may hold a run, which will be deleted.
        unique: without `out`, take the first of NAME, NAME-2, NAME-3, .. that does not exist.
        advice: what to do if the folder is not empty.

    Raises: ConfigError, UserError, StoreError, StorageError.
    """
    path = out or (_unused_folder if unique else Path)(RUNS / config.name)
    refuse_job_scratch(path, "--out")
    uri = store_uri(config.tracking.uri, out or RUNS)
    folder = RunDir(path, storage_of(config))
    if resume:
        uri = folder.tracker_to_resume(config).uri
        check_exists(uri)
        folder.check_unlocked()
    elif replace:
        folder.check_replaceable()
    else:
        folder.check_empty(advice)
    return folder, uri


def _unused_folder(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, .. that does not exist."""
    candidates = (folder if n == 1 else folder.with_name(f"{folder.name}-{n}") for n in count(1))
    return next(candidate for candidate in candidates if not candidate.exists())


def storage_of(config: Config) -> Storage | None:
    """`cluster.storage`, tested by a small file. Raises: UserError if it cannot be used, or would be deleted."""
    if config.cluster.storage is None:
        return None
    storage = Storage.open(config.cluster.storage)
    if storage.is_local:
        refuse_job_scratch(Path(storage.path), "cluster.storage")
    return storage


def local_store_warning(storage: Storage | None, uri: str, what: str) -> str | None:
    """A warning if a run (or a search) is stored where other machines reach it, but its MLflow record is not."""
    file = sqlite_file(uri)
    if storage is None or storage.is_local or file is None:
        return None
    return (
        f"MLflow's store is a file, {file}; without it the {what} cannot be resumed on another machine. Set "
        "MLFLOW_TRACKING_URI to a server that both reach"
    )
