"""How the benches that need torch alone begin and end: arguments, a table that grows, records in a file, exit code."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ray_distill.core.networks.network import ImageShape
from ray_distill.errors import UserError
from ray_distill.utils.atomic import write_json


def base_parser(
    name: str, about: str, *, ipc: Sequence[int], epilog: str | None = None
) -> argparse.ArgumentParser:
    """The arguments that all have: the images, the machine, and where the records go."""
    result = argparse.ArgumentParser(prog=f"ray-distill bench {name}", description=about, epilog=epilog)
    cuda = torch.cuda.is_available()
    result.add_argument("--ipc", type=int, nargs="+", default=list(ipc), help="images per class")
    result.add_argument(
        "--width", type=int, default=128, help="(default %(default)s; a vgg or resnet as published: 64)"
    )
    result.add_argument(
        "--image", default="3x32x32", help="channels x height x width of an image (default %(default)s)"
    )
    result.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if cuda else "cpu")
    result.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="threads of one measurement (default: all cores)"
    )
    result.add_argument(
        "--repeats",
        type=int,
        default=1,
        help="the median of this many runs is reported (default %(default)s)",
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="write a list of records there")
    return result


def check_arguments(parsed: argparse.Namespace, *numbers: str) -> ImageShape:
    """The shape of an image. Raises: UserError if one of the arguments of all, or of these, is no good."""
    for name in (*numbers, "ipc", "width", "threads", "repeats"):
        found = getattr(parsed, name)
        if min(found) < 1 if isinstance(found, list) else found < 1:
            raise UserError(f"--{name.replace('_', '-')}: must be at least 1 (got {found})")
    if parsed.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu")
    if parsed.json is not None and parsed.json.exists():
        raise UserError(f"--json: {parsed.json} exists already; name another file or remove it")
    try:
        return image_shape(parsed.image)
    except ValueError:
        raise UserError(f"--image: must be like 3x32x32 (got {parsed.image})") from None


def image_shape(text: str) -> ImageShape:
    """`3x32x32` -> (3, 32, 32). Raises: ValueError."""
    channels, height, width = (int(side) for side in text.split("x"))
    if min(channels, height, width) < 1:
        raise ValueError(text)
    return channels, height, width


def report(
    header: str,
    row: Callable[[dict[str, Any]], str],
    measured: Iterable[dict[str, Any]],
    file: Path | None,
    notes: Sequence[str] = (),
) -> None:
    """A line for each record as it is measured; all records so far in the file, if there is one; the notes."""
    print(header, flush=True)
    records = []
    for record in measured:
        records.append(record)
        print(row(record), flush=True)
        if file is not None:
            write_json(file, records)
    for note in notes:
        print(note)
    if file is not None:
        print(f"records: {file}")


def run_standalone(main: Callable[[], None]) -> None:
    """The command of a module that is run by itself: a mistake is a message and exit code 2."""
    try:
        main()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
