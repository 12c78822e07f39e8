"""Options and arguments that several verbs share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_distill.artifacts.types import Layout, Space
from ray_distill.config.load import load_config
from ray_distill.errors import UserError

if TYPE_CHECKING:
    from ray_distill.artifacts.importer import ExternalSpec

Experiment = Annotated[
    Path, typer.Argument(metavar="CONFIG.yaml", help="The experiment; see experiments/ for examples.")
]
Artifact = Annotated[Path, typer.Argument(metavar="ARTEFACT", help="A distilled.parquet.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a value of the configuration, e.g. `outer.lr=0.01`. Repeatable.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder for all results, the MLflow store included. Default: runs/NAME, with one store in runs/ for all.",
    ),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Resume the run or search in the folder from its last checkpoints.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would run, and exit; write nothing.")]
JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Also write the results to a new file, as JSON."),
]

EXTERNAL_PANEL = "Sets of other methods"
Like = Annotated[
    Path | None,
    typer.Option(
        "--like",
        metavar="CONFIG.yaml",
        help="The experiment whose data source, preprocessing, network and training to use.",
        rich_help_panel=EXTERNAL_PANEL,
    ),
]
SpaceOption = Annotated[
    Space | None,
    typer.Option(
        "--space",
        help="`whitened`: values already preprocessed as by `data.preprocessing`. `pixels`: values in 0..1 or 0..255, "
        "to be preprocessed.",
        rich_help_panel=EXTERNAL_PANEL,
    ),
]
LayoutOption = Annotated[
    Layout | None,
    typer.Option(
        "--layout",
        help="The order of the image axes, if the shape is ambiguous.",
        rich_help_panel=EXTERNAL_PANEL,
    ),
]
ImagesKey = Annotated[
    str | None,
    typer.Option(
        "--images",
        metavar="KEY",
        help="The images, in a file of several arrays.",
        rich_help_panel=EXTERNAL_PANEL,
    ),
]
LabelsKey = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="KEY",
        help="The labels: an array in the file, or a file of their own; `none` for images sorted by class.",
        rich_help_panel=EXTERNAL_PANEL,
    ),
]


def external_spec(
    like: Path | None,
    space: Space | None,
    layout: Layout | None,
    images: str | None,
    labels: str | None,
    overrides: list[str],
) -> "ExternalSpec | None":
    """How to read a set of another method, from the options; None without `--like`.

    Args:
        overrides: for the configuration of `--like`.

    Raises: ConfigError, UserError for options that need `--like`, or `--like` without `--space`.
    """
    others = {"--space": space, "--layout": layout, "--images": images, "--labels": labels}
    if like is None:
        given = [f"{name} {value}" for name, value in others.items() if value is not None]
        given += [f"--set {override}" for override in overrides]
        if given:
            raise UserError(f"{given[0]}: has no effect without --like CONFIG.yaml; add it")
        return None
    if space is None:
        raise UserError(
            f"--like {like}: needs --space: whitened, if the file's values are preprocessed as by data.preprocessing, or "
            "pixels"
        )
    config = load_config(like, overrides)
    from ray_distill.artifacts.importer import ExternalSpec

    return ExternalSpec(config=config, space=space, layout=layout, images=images, labels=labels)
