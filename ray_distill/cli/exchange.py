"""The verbs about one distilled set's file: `show`, `import` and `export`."""

from pathlib import Path
from typing import Annotated

import typer

from ray_distill.artifacts.types import ExportFormat, Space
from ray_distill.cli.console import (
    NOTHING_WRITTEN,
    bar,
    check_new_file,
    check_new_png,
    exit_codes,
    print_lines,
)
from ray_distill.cli.options import (
    Artifact,
    ImagesKey,
    LabelsKey,
    LayoutOption,
    Like,
    Set,
    SpaceOption,
    external_spec,
)
from ray_distill.errors import UserError


def show(
    artifact: Artifact,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE.png", help="Where to save the contact sheet. Default: beside the artefact."
        ),
    ] = None,
) -> None:
    """Describe a distilled set and how to use it, and draw its contact sheet."""
    with exit_codes(NOTHING_WRITTEN):
        from ray_distill.artifacts.dataset import DistilledDataset
        from ray_distill.distillation.outputs import contact_sheet_of

        dataset = DistilledDataset.load(artifact)
        target = out or artifact.with_suffix(".sheet.png")
        check_new_png(target)
        print_lines(dataset.describe())
        contact_sheet_of(dataset).save(target)
        print_lines(f"contact sheet: {target}")


def import_(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="An .npz, .npy, .pt, .h5 or .parquet file, or a folder of images."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.parquet", help="Where to save the imported set.")
    ],
    like: Like = None,
    space: SpaceOption = None,
    layout: LayoutOption = None,
    images: ImagesKey = None,
    labels: LabelsKey = None,
    set_: Set = None,
) -> None:
    """Convert a distilled set of another method to a self-describing Parquet file.

    `--like` and `--space` supply what the file lacks. An ambiguous file is an error that names the option to add; the
    description that is printed shows how the file was read.
    """
    with exit_codes(NOTHING_WRITTEN):
        if out.suffix != ".parquet":
            raise UserError(f"--out {out}: must end in .parquet")
        check_new_file(out)
        spec = external_spec(like, space, layout, images, labels, set_ or [])
        from ray_distill.artifacts.importer import is_artifact, load_set
        from ray_distill.utils.progress import percent

        if is_artifact(file):
            raise UserError(f"{file}: already in this format; use it as it is")
        with bar("real images", 100) as update:
            dataset = load_set(file, spec, percent(update))
        dataset.save(out)
        print_lines(dataset.describe(), f"written to {out}; draw it with: ray-distill show {out}")


def export(
    artifact: Artifact,
    to: Annotated[
        ExportFormat,
        typer.Option(
            "--to",
            help="png: images in class folders; npz: arrays; pt: tensors; parquet: Hugging Face's image layout.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="PATH", help="A new file, or for png a new folder.")],
    space: Annotated[
        Space | None,
        typer.Option(
            "--space",
            help="`whitened`: the values that networks train on (default of npz and pt). `pixels`: images to look at "
            "(default of png and parquet).",
        ),
    ] = None,
) -> None:
    """Export a distilled set to a format that other programs read."""
    with exit_codes(NOTHING_WRITTEN):
        from ray_distill.artifacts.dataset import DistilledDataset
        from ray_distill.artifacts.export import export as write

        exported = write(DistilledDataset.load(artifact), to, out, space)
        print_lines(*exported.summary, "to load it:", *(f"  {line}" for line in exported.code))
