"""Export of a distilled set to common formats: a folder of PNGs, .npz, .pt, and Parquet in the layout of dataset hubs.

| | values | contents |
|---|---|---|
| `png` | pixels | a picture of each image, in a folder for each class |
| `npz`, `pt` | preprocessed, or pixels | see `to_arrays` |
| `parquet` | pixels, as PNGs | columns `image` (struct<bytes, path>) and `label`, which dataset viewers show |

Pixels are for viewing: whitening removes each image's brightness and contrast, which are replaced by those of a mean
training image, and values outside [0, 1] are clipped. Networks trained on pixels get a different set.
"""

import io
import json
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ray_distill.artifacts.contact_sheet import intended_classes
from ray_distill.artifacts.dataset import DistilledDataset
from ray_distill.artifacts.types import ExportFormat, Space
from ray_distill.errors import UserError
from ray_distill.utils.atomic import atomic_write

_SUFFIXES: dict[ExportFormat, str] = {"png": "", "npz": ".npz", "pt": ".pt", "parquet": ".parquet"}
_FOLDER_NAME = re.compile(r"[^\W_][\w ,'()-]*")
"""Class names that are valid folder names on every system."""


class Exported(NamedTuple):
    """Lines about what was written."""

    summary: list[str]
    code: list[str]
    """Python that loads it."""


def resolve_space(form: ExportFormat, space: Space | None) -> Space:
    """The values that a format stores. Raises: UserError for pictures of whitened values."""
    pictures = form in ("png", "parquet")
    if pictures and space == "whitened":
        raise UserError(
            f"--space whitened: {form} stores pictures with 8 bits per channel; use --to npz or --to pt"
        )
    return space or ("pixels" if pictures else "whitened")


def export(dataset: DistilledDataset, form: ExportFormat, path: Path, space: Space | None = None) -> Exported:
    """Write the set atomically.

    Args:
        path: of a new folder for png, otherwise of a new file with the format's suffix.
        space: default: pixels in pictures, otherwise preprocessed values.

    Raises: UserError for a path that exists, has no parent folder or another suffix, or for images that cannot be
        pictures; OSError.
    """
    space = resolve_space(form, space)
    _check_free(form, path)
    if form in ("png", "parquet") and dataset.images_NCHW.shape[1] not in (1, 3):
        raise UserError(
            f"--to {form}: pictures have 1 or 3 channels, the set has {dataset.images_NCHW.shape[1]}; use npz or pt"
        )
    write: dict[ExportFormat, Callable[[DistilledDataset, Path, Space], list[str]]] = {
        "png": _write_pngs,
        "npz": _write_npz,
        "pt": _write_torch,
        "parquet": _write_parquet,
    }
    code = write[form](dataset, path, space)
    count, shape = len(dataset), "x".join(map(str, dataset.images_NCHW.shape[1:]))
    summary = [
        f"{path}: {count} images of {shape}, {len(dataset.class_names)} classes, {_describe_values(dataset, space)}"
    ]
    return Exported(summary + _describe_losses(dataset, form, space), code)


def _describe_values(dataset: DistilledDataset, space: Space) -> str:
    if space == "pixels":
        return (
            "pixels in 0 .. 1" if dataset.preprocessing.kind == "none" else "pixels, preprocessing inverted"
        )
    return f"preprocessed values ({dataset.preprocessing.kind})"


def _describe_losses(dataset: DistilledDataset, form: ExportFormat, space: Space) -> list[str]:
    """What the format loses, in numbers."""
    if space == "whitened":
        return []
    pixels = dataset.preprocessing.unclamped_pixels(dataset.images_NCHW)
    outside = (pixels < 0) | (pixels > 1)
    clipped = float(outside.float().mean())
    lines = [
        f"clipped: {100 * clipped:.2f}% of the values, in {int(outside.flatten(1).any(dim=1).sum())} of "
        f"{len(pixels)} images; they ranged from {float(pixels.min()):.3g} to {float(pixels.max()):.3g}"
    ]
    if dataset.preprocessing.kind == "zca":
        lines.append(
            "for viewing only: each image has the brightness and contrast of a mean training image. To train on the set, "
            "export npz or pt"
        )
    if form in ("png", "parquet") and _has_learnt_labels(dataset):
        lines.append("not stored: the learnt labels; each image has the class that it was made for")
    return lines


def _has_learnt_labels(dataset: DistilledDataset) -> bool:
    classes_N = torch.tensor(intended_classes(dataset.labels_NK))
    hard_NK = torch.nn.functional.one_hot(classes_N, len(dataset.class_names))
    return not torch.equal(dataset.labels_NK, hard_NK.to(torch.float32))


def _check_free(form: ExportFormat, path: Path) -> None:
    if path.suffix != _SUFFIXES[form] and form != "png":
        raise UserError(f"--out {path}: a {form} file must end in {_SUFFIXES[form]}")
    if path.exists():
        raise UserError(f"{path}: exists; nothing was written. Use another --out, or remove it.")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")


def to_arrays(dataset: DistilledDataset, space: Space) -> dict[str, Tensor | str | list[str]]:
    """The contents of .npz and .pt by key, in types that need no unpickling.

    `images` float32 [N, C, H, W], `labels` float32 [N, K] (cross-entropy targets), `classes` int64 [N] (the class that
    each image was made for), `class_names`, `space`, and the JSON `preprocessing` and `protocol`; for preprocessed
    images also `preprocessing_*`, the tensors that real images need.
    """
    description, tensors = dataset.preprocessing.to_record()
    whitened = space == "whitened"
    return {
        "images": (dataset.images_NCHW if whitened else dataset.to_pixels()).detach().cpu().contiguous(),
        "labels": dataset.labels_NK.detach().cpu().contiguous(),
        "classes": torch.tensor(intended_classes(dataset.labels_NK)),
        "class_names": list(dataset.class_names),
        "space": space,
        "preprocessing": json.dumps(description),
        "protocol": json.dumps(dataset.protocol),
        **({f"preprocessing_{name}": tensor for name, tensor in tensors.items()} if whitened else {}),
    }


def _write_npz(dataset: DistilledDataset, path: Path, space: Space) -> list[str]:
    arrays: dict[str, Any] = {
        name: value.numpy() if isinstance(value, Tensor) else np.array(value)
        for name, value in to_arrays(dataset, space).items()
    }
    with atomic_write(path) as file:
        np.savez(file, **arrays)
    return [
        "import numpy",
        f'arrays = numpy.load("{path}", allow_pickle=False)  # {", ".join(arrays)}',
    ]


def _write_torch(dataset: DistilledDataset, path: Path, space: Space) -> list[str]:
    contents = to_arrays(dataset, space)
    with atomic_write(path) as file:
        torch.save(contents, file)
    return ["import torch", f'contents = torch.load("{path}", weights_only=True)  # {", ".join(contents)}']


def _png_images(dataset: DistilledDataset) -> list[bytes]:
    """Each image as a PNG, grey or RGB."""
    from PIL import Image

    pictures = []
    bytes_NHWC = (dataset.to_pixels() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
    for array in bytes_NHWC.numpy():
        buffer = io.BytesIO()
        plain: NDArray[np.uint8] = np.ascontiguousarray(array[..., 0] if array.shape[-1] == 1 else array)
        Image.fromarray(plain).save(buffer, format="png")
        pictures.append(buffer.getvalue())
    return pictures


def _relative_paths(dataset: DistilledDataset) -> list[str]:
    """CLASS/NUMBER.png of each image; classes by name, or by index where names are not valid folder names."""
    names = dataset.class_names
    usable = all(_FOLDER_NAME.fullmatch(name) and name == name.rstrip() for name in names)
    distinct = len({name.lower() for name in names}) == len(names)
    width = len(str(len(names) - 1))
    folders = names if usable and distinct else [f"{k:0{width}}" for k in range(len(names))]
    classes = intended_classes(dataset.labels_NK)
    digits = len(str(len(dataset) - 1))
    return [f"{folders[k]}/{row:0{digits}}.png" for row, k in enumerate(classes)]


def _write_pngs(dataset: DistilledDataset, path: Path, _space: Space) -> list[str]:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        for name, picture in zip(_relative_paths(dataset), _png_images(dataset), strict=True):
            file = temporary / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [
        "from torchvision.datasets import ImageFolder",
        f'pictures = ImageFolder("{path}")  # its classes are sorted by name: {", ".join(_sorted_folders(dataset))}',
    ]


def _sorted_folders(dataset: DistilledDataset) -> list[str]:
    folders = sorted({name.partition("/")[0] for name in _relative_paths(dataset)})
    return [*folders[:10], *([".."] if len(folders) > 10 else [])]


def _write_parquet(dataset: DistilledDataset, path: Path, _space: Space) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [
        {"bytes": picture, "path": name.replace("/", "-")}
        for picture, name in zip(_png_images(dataset), _relative_paths(dataset), strict=True)
    ]
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": list(dataset.class_names)},
    }
    schema = pa.schema(
        [pa.field("image", image_type), pa.field("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    columns = [pa.array(rows, image_type), pa.array(intended_classes(dataset.labels_NK), pa.int64())]
    with atomic_write(path) as file:
        pq.write_table(pa.table(columns, schema=schema), file)
    return [
        "import pyarrow.parquet",
        f'table = pyarrow.parquet.read_table("{path}")  # image.bytes are PNGs; label',
    ]
