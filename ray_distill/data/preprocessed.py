"""Fitted preprocessing and whitened images, cached.

Normalised images are not cached: normalising a batch takes less time than reading four times the bytes. Whitening a batch
of 5,000 CIFAR images is a product with a 3,072 x 3,072 matrix (0.1 TFLOP, a second or more on a few cores), at every outer
step and in every worker; so whitened images are cached as float32 (CIFAR-10: 614 MB, mapped and shared like the pixels).
The cache keys are digests of contents, not of paths: files that were moved or touched are only decoded again.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ray_distill.data.arrow_file import ArrowImageWriter, open_images
from ray_distill.data.cache import build_or_fetch
from ray_distill.data.decoding import Progress
from ray_distill.data.labelled_images import CHUNK_IMAGES, LabelledImages
from ray_distill.data.preprocessing import (
    Preprocessing,
    fit_preprocessing,
    load_preprocessing,
    save_preprocessing,
)
from ray_distill.data.spec import DataSpec
from ray_distill.data.whitening import check_fitting_memory, fitting_note

FIT_VERSION = 1
"""Incremented with every change by which the same images give another preprocessing or other whitened images."""


def cached_preprocessing(
    images: LabelledImages, train_rows_N: Tensor, spec: DataSpec, progress: Progress | None = None
) -> tuple[Preprocessing, Path]:
    """The spec's preprocessing, fitted on the training rows, and its file in the cache; fitted first if necessary.

    Raises: DataError for images that it cannot be fitted on, or too little memory to fit it.
    """
    kind, shrinkage = spec.preprocessing, spec.zca_shrinkage if spec.preprocessing == "zca" else None
    # The rows, not the seed: how they are drawn may change.
    key = _key(FIT_VERSION, images.digest, kind, shrinkage, train_rows_N)
    path = spec.cache / f"fitted-{kind}-{key}.arrow"

    def fit(part: Path) -> None:
        activity = f"fitting {kind}"
        if kind == "zca":
            check_fitting_memory(images.image_shape)
            activity += fitting_note(images.image_shape)
        chunks = _with_progress(images.pixel_chunks(train_rows_N), activity, len(train_rows_N), progress)
        save_preprocessing(part, fit_preprocessing(kind, chunks, zca_shrinkage=spec.zca_shrinkage))

    build_or_fetch(path, spec.shared, fit, _on_wait(progress))
    return load_preprocessing(path), path


def cached_images(
    images: LabelledImages, preprocessing: Preprocessing, spec: DataSpec, progress: Progress | None = None
) -> tuple[LabelledImages, Preprocessing | None]:
    """The images that batches are taken from, and the preprocessing of each batch: pixels and `preprocessing`, or
    whitened images and None.
    """
    if preprocessing.kind != "zca":
        return images, preprocessing
    path = whitened_path(images.digest, preprocessing, spec.cache)

    def whiten(part: Path) -> None:
        writer, rows_N = ArrowImageWriter(part), torch.arange(len(images))
        try:
            for chunk in _with_progress(images.pixel_chunks(rows_N), "whitening", len(images), progress):
                writer.add(preprocessing.apply(chunk).numpy())
            writer.finish(images.labels_N, {"class_names": images.class_names, "white": 1})
        finally:
            writer.close()

    build_or_fetch(path, spec.shared, whiten, _on_wait(progress))
    return open_images(path), None


def whitened_path(digest: str, preprocessing: Preprocessing, cache: Path) -> Path:
    """The file of the images with this digest, whitened."""
    description, tensors = preprocessing.to_record()
    return cache / f"whitened-{_key(FIT_VERSION, digest, description, *tensors.values())}.arrow"


def _key(*parts: object) -> str:
    key = hashlib.blake2b(digest_size=8)
    for part in parts:
        key.update(part.numpy().tobytes() if isinstance(part, Tensor) else json.dumps(part).encode())
    return key.hexdigest()


def _with_progress(
    chunks: Iterator[Tensor], activity: str, total: int, progress: Progress | None
) -> Iterator[Tensor]:
    """The chunks, reporting progress before each and at the end."""
    done = 0
    for chunk in chunks:
        if progress is not None:
            progress(activity, done, total)
        yield chunk
        done = min(done + CHUNK_IMAGES, total)
    if progress is not None:
        progress(activity, done, total)


def _on_wait(progress: Progress | None) -> Callable[[], None] | None:
    if progress is None:
        return None
    return lambda: progress("waiting for another process", 0, 1)
