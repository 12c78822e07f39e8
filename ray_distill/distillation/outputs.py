"""From the end of a distillation to its artefact and contact sheet."""

import torch
from PIL import Image

from ray_distill.artifacts.contact_sheet import contact_sheet, intended_classes
from ray_distill.artifacts.dataset import DistilledDataset, build_dataset
from ray_distill.config.config import Config
from ray_distill.core.state import RunState
from ray_distill.data.splits import DevelopmentData


def to_dataset(config: Config, data: DevelopmentData, state: RunState, run_id: str) -> DistilledDataset:
    """The best set on validation, as a dataset that describes itself."""
    assert state.best is not None, "the last outer step is always validated"
    best = state.best
    return build_dataset(
        config,
        data,
        best.data.images_NCHW.to(torch.float32),
        best.data.labels_NK.to(torch.float32),
        outer_step=best.outer_step,
        outer_steps=state.outer_step,
        validation_accuracy=best.accuracy,
        seed=config.seed,
        mlflow_run_id=run_id,
    )


def contact_sheet_of(dataset: DistilledDataset) -> Image.Image:
    """The contact sheet of a set."""
    return contact_sheet(dataset.to_pixels(), intended_classes(dataset.labels_NK), dataset.class_names)
