"""The file of handwritten digits that comes with scikit-learn: 1,797 8x8 images of 17 greys, and their classes.

Read from the package's folder without importing it, which would take seconds. `sources` (development) and `test_split` say
which rows are used.
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch

from ray_distill.core.rng import Stream
from ray_distill.data.labelled_images import DataError
from ray_distill.data.listing import Listing, array_listing
from ray_distill.data.paths import existing_file, fs_path
from ray_distill.data.strata import stratified_split

WHITE = 16
TEST_FRACTION = 0.2
_STREAM = Stream(seed=0, name="digits: test rows")


def read_digits() -> Listing:
    """All digits in the file's order. Raises: DataError if scikit-learn is not installed or lacks the file."""
    spec = importlib.util.find_spec("sklearn")
    places = spec.submodule_search_locations if spec is not None else None
    path = Path(places[0], "datasets", "data", "digits.csv.gz") if places else Path("scikit-learn")
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.int64)
    except OSError as e:
        raise DataError(
            f"digits: the file that comes with scikit-learn cannot be read ({e}); install scikit-learn"
        ) from e
    images = table[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8)
    names = tuple(map(str, range(10)))
    return array_listing(images, table[:, -1], names, [existing_file(fs_path(str(path)))], white=WHITE)


def development_rows(labels_N: torch.Tensor) -> torch.Tensor:
    """The rows that are not test rows: the same in every run, independent of its seed."""
    return stratified_split(labels_N, TEST_FRACTION, _STREAM)[0]
