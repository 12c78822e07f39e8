"""Common parts of the benchmarks that need only torch: arguments, printed table, JSON records, exit code."""

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
    """A parser with the common arguments: images, machine, output file."""
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
    """The shape of an image. Raises: UserError if a common argument, or one of `numbers`, is invalid."""
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
    """Print a row for each record as it is measured, write all records so far to the file, print the notes."""
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
    """Run a module's `main`; a UserError prints a message and exits with code 2."""
    try:
        main()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
