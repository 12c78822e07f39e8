"""Shared by the benchmarks that need only torch: workloads, arguments, the printed table, JSON records, exit code."""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ray_distill.core.networks.network import ImageShape, Network, NetworkSpec, build_network
from ray_distill.errors import UserError
from ray_distill.utils.atomic import write_json
from ray_distill.utils.timing import device_name, median_seconds

NUM_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a benchmark measures; subclasses add their own fields."""

    device: str
    image_shape: ImageShape
    ipc: int
    network: str
    width: int
    threads: int
    repeats: int

    def build(self) -> Network:
        """The network. Raises: ValueError if there is no such network."""
        return build_network(NetworkSpec(name=self.network, width=self.width), self.image_shape, NUM_CLASSES)

    def record(self) -> dict[str, Any]:
        """The workload and the versions it runs on, as fields of a JSON record."""
        fields = asdict(self)
        width = fields.pop("width")
        return fields | {
            "device": device_name(self.device),
            "network": f"{self.network} width {width}",
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }

    def compare(self, one_by_one: Callable[[], object], grouped: Callable[[], object]) -> dict[str, float]:
        """Time two ways to compute the same, alternating; the seconds and the speedup as fields of a record."""
        separate_s, grouped_s = median_seconds(self.device, one_by_one, grouped, repeats=self.repeats)
        return {
            "seconds_one_by_one": separate_s,
            "seconds_at_once": grouped_s,
            "speedup": separate_s / grouped_s,
        }


W = TypeVar("W", bound=Workload)


def base_parser(
    name: str, description: str, *, ipc: Sequence[int], epilog: str | None = None
) -> argparse.ArgumentParser:
    """A parser with the shared arguments: images, network width, device, output file."""
    result = argparse.ArgumentParser(prog=f"ray-distill bench {name}", description=description, epilog=epilog)
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
    result.add_argument("--json", type=Path, metavar="FILE", help="write the records to this new file")
    return result


def check_arguments(parsed: argparse.Namespace, *numbers: str) -> ImageShape:
    """The image shape. Raises: UserError if a shared argument, or one of `numbers`, is invalid."""
    for name in (*numbers, "ipc", "width", "threads", "repeats"):
        value = getattr(parsed, name)
        if min(value) < 1 if isinstance(value, list) else value < 1:
            raise UserError(f"--{name.replace('_', '-')}: must be at least 1 (got {value})")
    if parsed.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu")
    if parsed.json is not None and parsed.json.exists():
        raise UserError(f"--json: {parsed.json} exists already; name another file or remove it")
    try:
        return image_shape(parsed.image)
    except ValueError:
        raise UserError(f"--image: must be like 3x32x32 (got {parsed.image})") from None


def workloads(
    kind: type[W], parsed: argparse.Namespace, networks: str, numbers: Sequence[str], **fields: Any
) -> list[W]:
    """A workload for each network and --ipc.

    Args:
        networks: the option that names one network or several.
        numbers: further options that must be at least 1.
        fields: the fields that `kind` adds to Workload.

    Raises: UserError for an invalid argument, an unknown network, or an output file that exists.
    """
    shape = check_arguments(parsed, *numbers)
    names = getattr(parsed, networks)
    fields |= {name: getattr(parsed, name) for name in ("device", "width", "threads", "repeats")}
    result = [
        kind(image_shape=shape, ipc=ipc, network=name, **fields)
        for name in ([names] if isinstance(names, str) else names)
        for ipc in parsed.ipc
    ]
    for work in result:
        try:
            work.build()
        except ValueError as e:
            raise UserError(f"--{networks}: {e}") from None
    return result


def image_shape(text: str) -> ImageShape:
    """`3x32x32` -> (3, 32, 32). Raises: ValueError."""
    channels, height, width = (int(side) for side in text.split("x"))
    if min(channels, height, width) < 1:
        raise ValueError(text)
    return channels, height, width


def report(
    header: str,
    row: Callable[[dict[str, Any]], str],
    records: Iterable[dict[str, Any]],
    file: Path | None,
    notes: Sequence[str] = (),
) -> None:
    """Print a row for each record as it is measured, write all records so far to the file, print the notes."""
    print(header, flush=True)
    written = []
    for record in records:
        written.append(record)
        print(row(record), flush=True)
        if file is not None:
            write_json(file, written)
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
