"""A fitted preprocessing in a file of its own: an Arrow IPC file with a row for each tensor, the rest as JSON.

The inverse that pictures need is computed from the whitening matrix when it is first wanted (see
`preprocessing`), and so is not kept.
"""

import json
from pathlib import Path

import numpy as np
import torch

from ray_distill.data.labelled_images import DataError
from ray_distill.data.preprocessing import Preprocessing, preprocessing_from_record

FORMAT = 1
_KEY = b"ray_distill"


def save_preprocessing(path: Path, preprocessing: Preprocessing) -> None:
    """Write it."""
    import pyarrow as pa

    description, tensors = preprocessing.to_record()
    header = json.dumps({"format": FORMAT, "preprocessing": description})
    columns = {
        "name": pa.array(list(tensors), pa.string()),
        "shape": pa.array([list(t.shape) for t in tensors.values()], pa.list_(pa.int64())),
        "values": pa.array([t.flatten().numpy() for t in tensors.values()], pa.large_list(pa.float32())),
    }
    table = pa.table(columns).replace_schema_metadata({_KEY: header})
    with path.open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def load_preprocessing(path: Path) -> Preprocessing:
    """What `save_preprocessing` wrote. Raises: DataError for any other file."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as reader:
            table = reader.read_all()
            table.validate(full=True)
        header = json.loads(table.schema.metadata[_KEY])
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']}")
        tensors = {}
        names, shapes = table.column("name").to_pylist(), table.column("shape").to_pylist()
        for name, shape, values in zip(names, shapes, table.column("values"), strict=True):
            # A copy of its own: aligned as any tensor, so that products with it round as before saving.
            flat = np.array(values.values.to_numpy(zero_copy_only=True), copy=True)
            tensors[name] = torch.from_numpy(flat).reshape(shape)
        return preprocessing_from_record(header["preprocessing"], tensors)
    # What a broken file makes Arrow and NumPy raise is many things.
    except Exception as e:
        raise DataError(f"{path} is not a fitted preprocessing ({e}); remove it, to have it made anew") from e
