"""Pictures: what is drawn where."""

import torch

from ray_distill.artifacts.contact_sheet import GAP, contact_sheet, stretch_contrast


def test_stretching_spreads_each_image_over_the_greys() -> None:
    """Values 0.4 .. 0.5 become 0 .. 1 in order; an image of one value becomes mid-grey."""
    ramp = torch.linspace(0.4, 0.5, 64).view(1, 1, 8, 8)
    both = stretch_contrast(torch.cat([ramp, torch.full_like(ramp, 0.2)]))
    assert both[0].min() == 0
    assert both[0].max() == 1
    assert (both[0].flatten().diff() >= 0).all()
    assert (both[1] == 0.5).all()


def test_a_contact_sheet_has_a_column_for_each_class() -> None:
    """Three classes with 2, 1 and 1 images of 8x8, enlarged to 64: 3 columns, 2 rows; a half-white image is
    white in its upper half at its own place."""
    images = torch.zeros(4, 1, 8, 8)
    images[1, :, :4] = 1.0
    sheet = contact_sheet(images, [0, 0, 1, 2], ["zero", "one", "two"])
    assert sheet.size == (3 * (64 + GAP) + GAP, 16 + 2 * (64 + GAP) + GAP)
    second_of_first_class = (GAP + 32, 16 + 64 + GAP)
    assert sheet.getpixel((second_of_first_class[0], second_of_first_class[1] + 16)) == (255, 255, 255)
    assert sheet.getpixel((second_of_first_class[0], second_of_first_class[1] + 48)) == (0, 0, 0)


def test_colour_stays_colour() -> None:
    """A red image with a black corner: red on the sheet."""
    images = torch.zeros(1, 3, 32, 32)
    images[:, 0, 4:, 4:] = 0.6
    sheet = contact_sheet(images, [0], ["red"])
    assert sheet.getpixel((GAP + 50, 16 + 50)) == (255, 0, 0)
