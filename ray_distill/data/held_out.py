"""The test split. The only module that can reach it, and only the evaluation imports this module.

`distill`, `search` and `outer_loop` are kept from importing it, directly or through others, by a contract
in pyproject.toml. What they can import returns no test image (see `sources`): the choice of the files
`test*.parquet` and of the test rows of the digits is made here and nowhere else.
"""

from pathlib import Path

import torch

from ray_distill.data.digits_file import development_rows, read_digits
from ray_distill.data.labelled_images import DataError, LabelledImages
from ray_distill.data.parquet_images import read_parquet_images
from ray_distill.data.sources import files_of, parquet_path


def load_test(source: str, test_source: str | None = None) -> LabelledImages:
    """The test split of a source.

    Args:
        source: the source of the development data.
        test_source: `parquet:PATH`, where the source is a file or a pattern and so has no test data of
            its own; or test data to use in place of those in the source's folder.

    Raises: DataError for an unknown source, absent test data, test data that are also development data,
        or data that cannot be used.
    """
    path = parquet_path(source)
    if path is None:
        if test_source is not None:
            raise DataError(
                f"the source digits has its own test data; remove the test source {test_source!r}"
            )
        return _digits()
    return read_parquet_images(_test_files(path, test_source))


def check_test(source: str, test_source: str | None = None) -> None:
    """Raises: DataError if there is no test split to load. Opens none of its files."""
    path = parquet_path(source)
    if path is not None:
        _test_files(path, test_source)


def _test_files(path: Path, test_source: str | None) -> list[Path]:
    if test_source is None:
        if not path.is_dir():
            raise DataError(f"{path} is training data alone; name the test data, as in parquet:test.parquet")
        return files_of(path, "test*.parquet")
    test_path = parquet_path(test_source)
    if test_path is None:
        raise DataError(f"the test source is {test_source!r}; images from files are tested on parquet:PATH")
    files = files_of(test_path, "test*.parquet")
    development = {file.resolve() for file in files_of(path, "train*.parquet")}
    for file in files:
        if file.resolve() in development:
            raise DataError(
                f"{file} is named as test data and as development data; they must be different files"
            )
    return files


def _digits() -> LabelledImages:
    digits = read_digits()
    is_test = torch.ones(len(digits), dtype=torch.bool)
    is_test[development_rows(digits.labels_N)] = False
    return digits.take(is_test.nonzero().flatten())
