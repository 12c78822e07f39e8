"""Results must not go into the folder that Ray unpacks a submitted job into, and deletes after it."""

from itertools import pairwise
from pathlib import Path

from ray_distill.errors import UserError

UNPACKED = ("runtime_resources", "working_dir_files")
"""Where Ray unpacks what was submitted with --working-dir, inside a cluster's own temporary folder."""


def refuse_job_scratch(target: Path, option: str) -> None:
    """Raises: UserError for a path inside a job's unpacked working directory."""
    parts = target.resolve().parts
    if UNPACKED in pairwise(parts):
        raise UserError(
            f"{option} {target}: lies in the folder that Ray made for this job and deletes after it; nothing was "
            f"written. Give an absolute path, on a disk that all nodes share if there are several: {option} "
            "/shared/runs/NAME"
        )
