"""Named sources of real data, and what a distillation may see of them: everything but the test split.

| source | development data | test data (see `held_out`) |
|---|---|---|
| `digits` | four fifths of scikit-learn's 1,797 grey 8x8 digits | the other fifth |
| `parquet:FOLDER` | `train*.parquet` in it | `test*.parquet` in it |
| `parquet:FILE`, `parquet:PATTERN` | the file, the files that match | named separately |

That nothing here returns a test image: of a folder only the files `train*.parquet` are opened, a file
whose name begins with `test` is refused, and of the digits the test rows are dropped before the function
that reads them returns. `held_out` has its own reading of both.
"""

from pathlib import Path

import torch

from ray_distill.data.digits_file import development_rows, read_digits
from ray_distill.data.labelled_images import DataError, LabelledImages
from ray_distill.data.parquet_images import LIMIT_STREAM, Progress, read_parquet_images
from ray_distill.data.strata import balanced_rows

__all__ = ["DataError", "LabelledImages", "Progress", "load_development"]

"""Constant: the test rows are the same in every run, whatever its seed."""


def load_development(
    source: str, *, limit: int | None = None, progress: Progress | None = None
) -> LabelledImages:
    """All real data of a source that a distillation may see: train and validation, never test.

    Args:
        source: `digits`, `parquet:FOLDER`, `parquet:FILE` or `parquet:PATTERN`.
        limit: keep only that many images, with class counts as equal as can be; the same in every run.
        progress: called with (images decoded, images in all).

    Raises: DataError for an unknown source, or data that cannot be used.
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}; it must be at least 1, or absent to keep all images")
    path = parquet_path(source)
    if path is None:
        images = _digits()
        if limit is not None:
            images = images.take(balanced_rows(images.labels_N, limit, LIMIT_STREAM))
        if progress is not None:
            progress(len(images), len(images))
    else:
        images = read_parquet_images(_development_files(path), limit=limit, progress=progress)
    _check_every_class(source, images)
    return images


def parquet_path(source: str) -> Path | None:
    """The PATH of `parquet:PATH`, None for `digits`. Raises: DataError for any other source."""
    if source == "digits":
        return None
    kind, _, path = source.partition(":")
    if kind != "parquet" or not path:
        raise DataError(
            f"unknown source of data {source!r}; known: digits, parquet:PATH (a folder or a file)"
        )
    return Path(path).expanduser()


def files_of(path: Path, pattern: str) -> list[Path]:
    """The files that a path names, sorted: those that match `pattern` in a folder, itself, or its matches.

    Raises: DataError if there is none.
    """
    if path.is_dir():
        files = sorted(path.glob(pattern))
        if not files:
            there = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
            raise DataError(f"the folder {path} has no {pattern}; in it: {there}")
        return files
    files = [path] if path.is_file() else sorted(path.parent.glob(path.name))
    if not files:
        raise DataError(f"there is no file or folder {path}, and nothing matches it as a pattern")
    return files


def _development_files(path: Path) -> list[Path]:
    """Raises: DataError for files that are test data by their name."""
    files = files_of(path, "train*.parquet")
    for file in files:
        if file.name.startswith("test"):
            raise DataError(f"{file} is test data by its name; a distillation may not see it")
    return files


def _digits() -> LabelledImages:
    digits = read_digits()
    return digits.take(development_rows(digits.labels_N))


def _check_every_class(source: str, images: LabelledImages) -> None:
    """Raises: DataError for a class without images: nothing could be distilled for it."""
    counts = torch.bincount(images.labels_N, minlength=images.num_classes)
    empty = [images.class_names[k] for k in torch.nonzero(counts == 0).flatten().tolist()]
    if empty:
        raise DataError(
            f"{source}: no image of the class(es) {', '.join(empty[:8])}; labels must cover 0 .. K-1"
        )
