"""Contact sheets of distilled or real images."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ray_distill.core.distilled import class_labels

CELL = 64
"""Small images are enlarged until their longer side has at least this many pixels."""
GAP = 4
MAX_COLUMNS = 20


def to_image(pixels_CHW: Tensor) -> Image.Image:
    """A grey or RGB image with values in [0, 1] as a PIL image of the same size."""
    array = (pixels_CHW.clamp(0, 1) * 255).round().to(torch.uint8)
    if len(array) == 1:
        return Image.fromarray(array[0].numpy(), mode="L").convert("RGB")
    return Image.fromarray(array.permute(1, 2, 0).contiguous().numpy(), mode="RGB")


def stretch_contrast(pixels_NCHW: Tensor) -> Tensor:
    """Stretch each image's values between its 1% and 99% quantile to [0, 1], all channels alike.

    Distilled images often use a narrow range of values, and a sheet of them would be plain grey. A constant image becomes
    mid-grey.
    """
    flat_ND = pixels_NCHW.flatten(1).float()
    low_N, high_N = torch.quantile(flat_ND, torch.tensor([0.01, 0.99]).to(flat_ND), dim=1)
    span_N = high_N - low_N
    flat_ND = (flat_ND - low_N[:, None]) / span_N.clamp_min(1e-6)[:, None]
    flat_ND[span_N < 1e-6] = 0.5
    stretched: Tensor = flat_ND.clamp(0, 1).view(pixels_NCHW.shape)
    return stretched


def intended_classes(labels_NK: Tensor) -> list[int]:
    """The class that each image of a distilled set was made for, by its row.

    Where labels are learnt, the most probable class may be another one.
    """
    num_images, num_classes = labels_NK.shape
    classes: list[int] = class_labels(num_classes, num_images // num_classes, labels_NK.device).tolist()
    return classes


def contact_sheet(pixels_NCHW: Tensor, classes_N: Sequence[int], class_names: Sequence[str]) -> Image.Image:
    """All images under their class names, one column per class, with stretched contrast.

    Args:
        pixels_NCHW: values in [0, 1], grey or RGB.
        classes_N: the class of each image.
    """
    by_class: dict[int, list[Tensor]] = {}
    for pixels, k in zip(stretch_contrast(pixels_NCHW.cpu()), classes_N, strict=True):
        by_class.setdefault(int(k), []).append(pixels)
    scale = max(1, -(-CELL // max(pixels_NCHW.shape[2:])))
    height, width = pixels_NCHW.shape[2] * scale, pixels_NCHW.shape[3] * scale
    font = ImageFont.load_default(12)
    text_height = 16
    columns = min(MAX_COLUMNS, len(by_class))
    most = max(len(images) for images in by_class.values())
    block_height = text_height + most * (height + GAP) + GAP
    bands = -(-len(by_class) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, bands * block_height), "white")
    draw = ImageDraw.Draw(sheet)
    for block, k in enumerate(sorted(by_class)):
        left, top = GAP + (block % columns) * (width + GAP), (block // columns) * block_height
        draw.text((left, top + 1), class_names[k], fill="black", font=font)
        for i, pixels in enumerate(by_class[k]):
            picture = to_image(pixels).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, top + text_height + i * (height + GAP)))
    return sheet
