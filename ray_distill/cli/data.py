"""The verbs under `data`: prepare a dataset ahead of a run, and inspect it."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_distill.cli.console import bar, check_new_png, exit_codes, print_lines
from ray_distill.cli.options import Set
from ray_distill.config.config import Config, DataRequest
from ray_distill.config.load import apply_overrides, load_config, parse_data_request

if TYPE_CHECKING:
    from ray_distill.data.labelled_images import LabelledImages
    from ray_distill.data.splits import DevelopmentData

app = typer.Typer(help="Prepare and inspect datasets.", no_args_is_help=True, rich_markup_mode="markdown")

MAX_CLASSES_LISTED = 20
MAX_CLASSES_DRAWN = 100
SAMPLES_PER_CLASS = 8
"""In the picture; a quarter as many if there are more than MAX_CLASSES_LISTED classes."""


@app.callback()
def _subcommands() -> None:
    """Makes typer keep `prepare` as a subcommand while it is the only one."""


class _PhaseTimer:
    """Seconds of each phase of the work, from its progress reports."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._phase, self._last = "", time.monotonic()

    def __call__(self, phase: str, done: int, total: int) -> None:
        """A phase starts with a report of 0 done; the time until then was the previous phase's."""
        elapsed_by = self._phase if done == 0 and self._phase else phase
        now = time.monotonic()
        self.seconds[elapsed_by] = self.seconds.get(elapsed_by, 0.0) + now - self._last
        self._phase, self._last = phase, now

    def stop(self) -> None:
        """Count the time since the last report to its phase."""
        if self._phase:
            self(self._phase, 1, 1)


@app.command()
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A data source, e.g. `cifar10`, `folder:PATH` or `parquet:s3://bucket/folder`; or an experiment's CONFIG.yaml.",
        ),
    ],
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture", metavar="FILE.png", help="Where to save a picture of samples. Default: in the cache."
        ),
    ] = None,
    set_: Set = None,
) -> None:
    """Decode, split and preprocess a dataset into the cache, for all runs with the same settings.

    The settings are those of a run: `--set data.preprocessing=zca`, `--set data.image_size=32`, `--set
    data.classes=[cat,dog]`, ...
    """
    with exit_codes("finished files stay in the cache"):
        request = _request(source, set_ or [])
        if picture is not None:
            check_new_png(picture, "--picture")
        _prepare(request, picture)


def _request(source: str, overrides: list[str]) -> Config | DataRequest:
    if source.endswith((".yaml", ".yml")):
        return load_config(Path(source), overrides)
    return parse_data_request(apply_overrides({"data": {"source": source}}, overrides))


def _prepare(request: Config | DataRequest, picture: Path | None) -> None:
    from ray_distill.builders.data import data_spec
    from ray_distill.data.arrow_file import open_images
    from ray_distill.data.splits import prepare_development
    from ray_distill.utils.progress import percent

    spec, timer, started = data_spec(request), _PhaseTimer(), time.monotonic()
    with bar("real images", 100) as update:
        show = percent(update)

        def progress(phase: str, done: int, total: int) -> None:
            timer(phase, done, total)
            show(phase, done, total)

        data = prepare_development(spec, None, progress)
        test, paths = _prepare_test(spec, data, progress)
    timer.stop()
    total_s = time.monotonic() - started
    images = open_images(data.handle.pixels_path)
    target = picture or images.path.with_suffix(".png")
    if not target.exists():
        _samples(images, data).save(target)
    lines = [
        *_contents(spec.source, data, test),
        _times(timer.seconds, total_s),
        *_files([*data.files, *paths]),
        f"  {'samples':<15}{target}",
    ]
    print_lines(*lines)


def _prepare_test(spec: Any, data: "DevelopmentData", progress: Any) -> tuple[str, list[Path]]:
    """A description of the test split, and its files."""
    from ray_distill.data.labelled_images import DataError
    from ray_distill.data.splits import create_handle
    from ray_distill.data.test_split import check_test, load_test

    def test_progress(phase: str, done: int, total: int) -> None:
        progress(f"{phase} test", done, total)

    try:
        check_test(spec)
    except DataError as e:
        return f"none: {e}", []
    test = load_test(spec, test_progress)
    handle, _ = create_handle(spec, test, data.preprocessing, test_progress)
    return f"{len(test):,}", [handle.pixels_path, handle.images_path]


def _contents(source: str, data: "DevelopmentData", test: str) -> list[str]:
    import torch

    shape = "x".join(map(str, data.image_shape))
    labels_N = torch.cat([data.train.labels_N, data.validation.labels_N])
    counts = torch.bincount(labels_N, minlength=data.num_classes).tolist()
    lines = [
        f"{source}: {len(labels_N):,} development images of {shape}, {data.num_classes} classes",
        f"  {'train':<15}{data.train.num_images:,}",
        f"  {'validation':<15}{data.validation.num_images:,}",
        f"  {'test':<15}{test}",
        f"  {'preprocessing':<15}{data.preprocessing.describe()}",
    ]
    if data.broken:
        lines.append(f"  {'skipped':<15}{len(data.broken)} broken image(s): {'; '.join(data.broken[:3])}")
    by_class = dict(zip(data.class_names, counts, strict=True))
    smallest, largest = min(by_class, key=by_class.__getitem__), max(by_class, key=by_class.__getitem__)
    if len(set(counts)) == 1:
        per_class = f"{counts[0]:,}"
    elif len(counts) <= MAX_CLASSES_LISTED:
        per_class = ", ".join(f"{name} {count:,}" for name, count in by_class.items())
    else:
        per_class = f"{by_class[smallest]:,} ({smallest}) to {by_class[largest]:,} ({largest})"
    return [*lines, f"  {'per class':<15}{per_class}"]


def _times(phases: dict[str, float], total_s: float) -> str:
    parts = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in phases.items())
    return f"  {'time':<15}{total_s:.1f} s: {parts or 'everything was cached'}"


def _files(paths: list[Path]) -> list[str]:
    distinct = list(dict.fromkeys(paths))
    total = sum(path.stat().st_size for path in distinct)
    lines = [f"  {'on disk':<15}{total / 1e6:,.1f} MB in {distinct[0].parent}"]
    return lines + [f"  {'':<15}{path.stat().st_size / 1e6:>9,.1f} MB  {path.name}" for path in distinct]


def _samples(images: "LabelledImages", data: "DevelopmentData") -> Any:
    """A contact sheet of the first training images of each class, a PIL image."""
    import torch

    from ray_distill.artifacts.contact_sheet import contact_sheet

    classes = min(data.num_classes, MAX_CLASSES_DRAWN)
    each = SAMPLES_PER_CLASS if classes <= MAX_CLASSES_LISTED else SAMPLES_PER_CLASS // 4
    rows_N = torch.cat([(data.train.labels_N == k).nonzero().flatten()[:each] for k in range(classes)])
    pixels = images.pixels(data.train.rows_N[rows_N])
    if pixels.shape[1] not in (1, 3):
        pixels = pixels.mean(dim=1, keepdim=True)
    return contact_sheet(pixels, data.train.labels_N[rows_N].tolist(), data.class_names)
