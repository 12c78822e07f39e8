"""The verbs `import` and `export`: distilled sets of other methods as ours, and ours in the forms of others."""

from pathlib import Path
from typing import Annotated

import typer

from ray_distill.artifacts.types import Form, Space
from ray_distill.cli.console import Set, bar, check_target, exit_codes, stdout
from ray_distill.cli.options import (
    ImagesKey,
    LabelsKey,
    LayoutOption,
    Like,
    SpaceOption,
    external_set_options,
)
from ray_distill.errors import UserError


def import_(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="An .npz, .npy, .pt, .h5 or .parquet file, or a folder of images."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE.parquet", help="Where the set goes, in our format.")
    ],
    like: Like = None,
    space: SpaceOption = None,
    layout: LayoutOption = None,
    images: ImagesKey = None,
    labels: LabelsKey = None,
    set_: Set = None,
) -> None:
    """Turn a distilled set that another method saved into a self-describing file of ours.

    What it does not say of itself is stated: `--like` and `--space`. What is still open is asked for, and what was
    taken for what is said.
    """
    with exit_codes("nothing was written"):
        if out.suffix != ".parquet":
            raise UserError(f"--out {out}: the name of a set ends in .parquet")
        check_target(out)
        statement = external_set_options(like, space, layout, images, labels, set_ or [])
        from ray_distill.artifacts.importer import is_ours, load_set
        from ray_distill.utils.progress import percent

        if is_ours(file):
            raise UserError(f"{file} is a distilled set of ours already; use it as it is")
        with bar("real images", 100) as update:
            dataset = load_set(file, statement, percent(update))
        dataset.save(out)
        lines = [
            dataset.describe(),
            f"written: {out}; to look at it: ray-distill show {out}",
        ]
        stdout.print("\n".join(lines), markup=False, highlight=False)


def export(
    artifact: Annotated[Path, typer.Argument(metavar="ARTEFACT", help="A distilled.parquet.")],
    to: Annotated[
        Form,
        typer.Option("--to", help="Pictures in class folders, arrays, tensors, or the hubs' image layout."),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="PATH", help="A file, or for png a folder, that is not there yet."),
    ],
    space: Annotated[
        Space | None,
        typer.Option(
            "--space",
            help="Values as networks train on them (whitened: the default of npz and pt), or pixels to look at (the "
            "default of png and parquet).",
        ),
    ] = None,
) -> None:
    """Write a distilled set in a form that other programs read."""
    with exit_codes("nothing was written"):
        from ray_distill.artifacts.dataset import DistilledDataset
        from ray_distill.artifacts.export import export as write

        exported = write(DistilledDataset.load(artifact), to, out, space)
        lines = [*exported.said, "to load it:", *(f"  {line}" for line in exported.code)]
        stdout.print("\n".join(lines), markup=False, highlight=False)
