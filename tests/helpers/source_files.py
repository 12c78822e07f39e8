"""Small sources in the exact layout of the real archives, made on the spot: development and test apart.

Every development image has values below 100, every test image values of 100 or more: one look tells them apart.
"""

import gzip
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tests.helpers.hub_files import encode, write_images

Array = NDArray[np.uint8]


def grey(count: int, side: int, first: int) -> Array:
    """Images [N, side, side]; the value of image i is first + i."""
    return np.broadcast_to(
        np.arange(first, first + count, dtype=np.uint8)[:, None, None], (count, side, side)
    )


def colour(count: int, side: int, first: int) -> Array:
    """Images [N, 3, side, side]: red holds first + i, green one more, blue two more."""
    return np.stack([grey(count, side, first + c) for c in range(3)], axis=1)


def classes_of(count: int, num_classes: int) -> list[int]:
    """0, 1, .. K-1, 0, 1, .."""
    return [i % num_classes for i in range(count)]


def write_idx(path: Path, values: Array) -> None:
    """An IDX file, packed if the name says so."""
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">u4").tobytes()
    content = header + np.ascontiguousarray(values).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def mnist(root: Path, folder: str = "MNIST", packed: str = ".gz") -> None:
    """20 development and 10 test images of 28x28; class i mod 10."""
    raw = root / folder / "raw"
    for name, count, first in (("train", 20, 0), ("t10k", 10, 100)):
        write_idx(raw / f"{name}-images-idx3-ubyte{packed}", grey(count, 28, first))
        write_idx(raw / f"{name}-labels-idx1-ubyte{packed}", np.array(classes_of(count, 10), np.uint8))


def _records(labels: list[list[int]], images: Array) -> bytes:
    return b"".join(
        bytes(of) + image.tobytes() for of, image in zip(labels, np.ascontiguousarray(images), strict=True)
    )


CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar10(root: Path) -> None:
    """Five batches of 4 images, numbered through, and a test batch of 10; class i mod 10."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    labels, images = [[k] for k in classes_of(20, 10)], colour(20, 32, 0)
    for i in range(5):
        rows = slice(4 * i, 4 * i + 4)
        (folder / f"data_batch_{i + 1}.bin").write_bytes(_records(labels[rows], images[rows]))
    (folder / "test_batch.bin").write_bytes(_records([[k] for k in range(10)], colour(10, 32, 100)))
    (folder / "batches.meta.txt").write_text("\n".join([*CIFAR10_NAMES, "", ""]))
    (folder / "readme.html").write_text("")


def cifar100(root: Path) -> None:
    """60 + 40 images of 100 fine classes (image i is of class i; coarse class 7): all in train; 30 in test."""
    folder = root / "cifar-100-binary"
    folder.mkdir(parents=True)
    train = colour(100, 32, 0) % 90
    (folder / "train.bin").write_bytes(_records([[7, k] for k in range(100)], train))
    (folder / "test.bin").write_bytes(_records([[7, k] for k in range(30)], colour(30, 32, 100)))
    (folder / "fine_label_names.txt").write_text("\n".join(f"fine{k}" for k in range(100)) + "\n\n")
    (folder / "coarse_label_names.txt").write_text("\n".join(f"coarse{k}" for k in range(20)) + "\n\n")


WNIDS = ("n02124075", "n01443537", "n04067472")
"""As in the archive's list: not in order."""


def picture(value: int, height: int = 64, width: int = 64) -> bytes:
    """A uniform colour image, as a PNG (whatever its name): its values survive."""
    return encode(np.full((height, width, 3), value, np.uint8))


def tiny_imagenet(root: Path) -> None:
    """Four images of each class in train, values 10 * class + i; two of each in val; test without labels."""
    folder = root / "tiny-imagenet-200"
    folder.mkdir(parents=True)
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (folder / "words.txt").write_text("n01443537\tgoldfish, Carassius auratus\n")
    for k, wnid in enumerate(sorted(WNIDS)):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t63\n")
        for i in range(4):
            (images / f"{wnid}_{i}.JPEG").write_bytes(picture(10 * k + i))
    val = folder / "val" / "images"
    val.mkdir(parents=True)
    lines = []
    for i in range(6):
        (val / f"val_{i}.JPEG").write_bytes(picture(100 + i))
        lines.append(f"val_{i}.JPEG\t{sorted(WNIDS)[(i + 1) % 3]}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    (folder / "test" / "images").mkdir(parents=True)
    (folder / "test" / "images" / "test_0.JPEG").write_bytes(picture(200))


BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross")


def cub200(root: Path) -> None:
    """Five images of each bird, wider than high; the first three are train, value 10 * class + i."""
    folder = root / "CUB_200_2011"
    rows = [(k, i) for k in range(2) for i in range(5)]
    names = [f"{BIRDS[k]}/{BIRDS[k][4:]}_{i:04}.jpg" for k, i in rows]
    for (k, i), name in zip(rows, names, strict=True):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(10 * k + i + (0 if i < 3 else 100), 40, 60))

    def write(name: str, values: list[object]) -> None:
        (folder / name).write_text("".join(f"{n + 1} {v}\n" for n, v in enumerate(values)))

    write("images.txt", list(names))
    write("image_class_labels.txt", [k + 1 for k, _ in rows])
    write("train_test_split.txt", [int(i < 3) for _, i in rows])
    write("classes.txt", list(BIRDS))
    (folder / "bounding_boxes.txt").write_text("1 60.0 27.0 325.0 304.0\n")


def class_folders(folder: Path, first: int, names: tuple[str, ...] = ("cat", "dog"), side: int = 4) -> None:
    """Three images of each class, values first + 10 * class + i."""
    for k, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            (folder / name / f"{i}.png").write_bytes(picture(first + 10 * k + i, side, side))


def imagenet(root: Path) -> None:
    """Class folders in train and val, images of 80x100."""
    for split, first in (("train", 0), ("val", 100)):
        for k, wnid in enumerate(sorted(WNIDS)):
            folder = root / "imagenet" / split / wnid
            folder.mkdir(parents=True)
            for i in range(3):
                (folder / f"{split}_{k}_{i}.JPEG").write_bytes(picture(first + 10 * k + i, 80, 100))


def folder(root: Path) -> None:
    """PATH/train and PATH/test."""
    class_folders(root / "train", 0)
    class_folders(root / "test", 100)


def parquet(root: Path) -> None:
    """PATH/train.parquet and PATH/test.parquet."""
    root.mkdir(parents=True, exist_ok=True)
    for name, first in (("train", 0), ("test", 100)):
        images = [encode(image) for image in grey(6, 4, first)]
        write_images(root / f"{name}.parquet", images, classes_of(6, 2))


def npz(root: Path) -> None:
    """A grey 5x4 set: x_train, y_train, x_test, y_test."""
    root.mkdir(parents=True, exist_ok=True)
    np.savez(
        root / "set.npz",
        x_train=np.ascontiguousarray(grey(6, 5, 0)[:, :, :4]),
        y_train=np.array(classes_of(6, 2)),
        x_test=np.ascontiguousarray(grey(4, 5, 100)[:, :, :4]),
        y_test=np.array([[k] for k in classes_of(4, 2)], np.uint8),
    )


def torch_file(root: Path) -> None:
    """Five channels, [N, C, H, W], with named classes."""
    root.mkdir(parents=True, exist_ok=True)
    stored = {
        "x_train": torch.from_numpy(np.stack([grey(6, 4, 0)] * 5, axis=1)),
        "y_train": torch.tensor(classes_of(6, 2)),
        "x_test": torch.from_numpy(np.stack([grey(4, 4, 100)] * 5, axis=1)),
        "y_test": torch.tensor(classes_of(4, 2)),
        "class_names": ["left", "right"],
    }
    torch.save(stored, root / "set.pt")


SOURCES: dict[str, tuple[Callable[[Path], None], str, int | None]] = {
    "mnist": (mnist, "mnist", None),
    "fashion-mnist": (lambda root: mnist(root, "FashionMNIST", ""), "fashion-mnist", None),
    "cifar10": (cifar10, "cifar10", None),
    "cifar100": (cifar100, "cifar100", None),
    "tiny-imagenet": (tiny_imagenet, "tiny-imagenet", None),
    "cub200": (cub200, "cub200", 32),
    "imagenet": (imagenet, "imagenet", 64),
    "folder": (folder, "folder:{root}", None),
    "parquet": (parquet, "parquet:{root}", None),
    "npz": (npz, "npz:{root}/set.npz", None),
    "torch": (torch_file, "torch:{root}/set.pt", None),
}
"""How to make each, its source, and the image size that it needs."""


def packed(root: Path, archive: str) -> Path:
    """The folder's contents as a .tar.gz beside it; the folder is emptied."""
    import shutil

    path = root.parent / archive
    with tarfile.open(path, "w:gz") as tar:
        for entry in sorted(root.iterdir()):
            tar.add(entry, arcname=entry.name)
            shutil.rmtree(entry)
    return path
