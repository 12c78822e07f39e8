"""The options with which a user states what another method's file does not say, for all verbs that read one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_distill.artifacts.types import Layout, Space
from ray_distill.config.load import load_config
from ray_distill.errors import UserError

if TYPE_CHECKING:
    from ray_distill.artifacts.importer import ExternalSpec

Like = Annotated[
    Path | None,
    typer.Option(
        "--like",
        metavar="CONFIG.yaml",
        help="For a set of another method: the source, preprocessing, network and training that go with it.",
    ),
]
SpaceOption = Annotated[
    Space | None,
    typer.Option(
        "--space",
        help="What the file's values are: already as `data.preprocessing` leaves images (whitened or normalised), or "
        "pixels in 0..1 or 0..255, which are then preprocessed.",
    ),
]
LayoutOption = Annotated[
    Layout | None,
    typer.Option("--layout", help="The order of the images' axes, where their shape does not say it."),
]
ImagesKey = Annotated[
    str | None, typer.Option("--images", metavar="KEY", help="The images, in a file of several arrays.")
]
LabelsKey = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="KEY",
        help="The labels, in a file of several arrays; or a file of their own; or `none`: images sorted by class.",
    ),
]


def external_set_options(
    like: Path | None,
    space: Space | None,
    layout: Layout | None,
    images: str | None,
    labels: str | None,
    overrides: list[str],
) -> "ExternalSpec | None":
    """What the options state; None for none of them.

    Args:
        overrides: laid over the configuration of --like.

    Raises: UserError for a part of the statement without the rest; ConfigError.
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
            f"--like {like}: say with --space what the file's values are: whitened (already as data.preprocessing "
            "leaves images) or pixels"
        )
    config = load_config(like, overrides)
    from ray_distill.artifacts.importer import ExternalSpec

    return ExternalSpec(config=config, space=space, layout=layout, images=images, labels=labels)
