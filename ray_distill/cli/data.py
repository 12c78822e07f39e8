"""The verbs under `data`: preparing real data before a run needs them, and looking at them."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_distill.cli.console import Set, bar, check_picture, exit_codes, stdout
from ray_distill.config.config import Config, DataRequest
from ray_distill.config.load import apply_overrides, load_config, parse_data_request

if TYPE_CHECKING:
    from ray_distill.data.labelled_images import LabelledImages
    from ray_distill.data.splits import DevelopmentData

app = typer.Typer(
    help="Prepare real data, and look at them.", no_args_is_help=True, rich_markup_mode="markdown"
)

MOST_CLASSES_LISTED = 20
MOST_CLASSES_SHOWN = 100
SAMPLES = 8
"""Images of each class in the picture; of many classes a quarter as many."""


@app.callback()
def _verbs() -> None:
    """Keeps `prepare` a verb of its own while it is the only one."""


class _Phases:
    """Seconds of each part of the work, from its progress."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._now, self._last = "", time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """A phase begins with the word that nothing of it is done; what passed until then was the one before."""
        of = self._now if done == 0 and self._now else what
        now = time.monotonic()
        self.seconds[of] = self.seconds.get(of, 0.0) + now - self._last
        self._now, self._last = what, now

    def end(self) -> None:
        """The rest is the last phase's."""
        if self._now:
            self(self._now, 1, 1)


@app.command()
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A source, as `cifar10`, `folder:PATH` or `parquet:s3://bucket/folder`; or an experiment's CONFIG.yaml.",
        ),
    ],
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE.png", help="Where the samples go. Default: into the cache."),
    ] = None,
    set_: Set = None,
) -> None:
    """Decode, split and preprocess real data into the cache, where every run with the same settings finds them.

    `--set data.preprocessing=zca`, `data.image_size=32`, `data.classes=[cat,dog]` and the like are those of a run.
    """
    with exit_codes("what was finished is kept"):
        request = _request(source, set_ or [])
        if picture is not None:
            check_picture(picture, "--picture")
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

    spec, phases, began = data_spec(request), _Phases(), time.monotonic()
    with bar("real images", 100) as update:
        show = percent(update)

        def progress(what: str, done: int, total: int) -> None:
            phases(what, done, total)
            show(what, done, total)

        data = prepare_development(spec, None, progress)
        test, paths = _prepare_test(spec, data, progress)
    phases.end()
    took_s = time.monotonic() - began
    images = open_images(data.handle.pixels_path)
    target = picture or images.path.with_suffix(".png")
    if not target.exists():
        _samples(images, data).save(target)
    lines = [
        *_contents(spec.source, data, test),
        _seconds(phases.seconds, took_s),
        *_files([*data.files, *paths]),
        f"  {'samples':<15}{target}",
    ]
    stdout.print("\n".join(lines), markup=False, highlight=False)


def _prepare_test(spec: Any, data: "DevelopmentData", progress: Any) -> tuple[str, list[Path]]:
    """What is to be said of the test split, and its files."""
    from ray_distill.data.labelled_images import DataError
    from ray_distill.data.splits import create_handle
    from ray_distill.data.test_split import check_test, load_test

    def of_test(what: str, done: int, total: int) -> None:
        progress(f"{what} test", done, total)

    try:
        check_test(spec)
    except DataError as e:
        return f"none: {e}", []
    test = load_test(spec, of_test)
    handle, _ = create_handle(spec, test, data.preprocessing, of_test)
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
        lines.append(f"  {'left out':<15}{len(data.broken)} broken image(s): {'; '.join(data.broken[:3])}")
    of_class = dict(zip(data.class_names, counts, strict=True))
    if len(set(counts)) == 1:
        lines.append(f"  {'of each class':<15}{counts[0]:,}")
    elif len(counts) <= MOST_CLASSES_LISTED:
        lines.append(
            f"  {'of class':<15}{', '.join(f'{name} {count:,}' for name, count in of_class.items())}"
        )
    else:
        few, many = min(of_class, key=of_class.__getitem__), max(of_class, key=of_class.__getitem__)
        lines.append(f"  {'of class':<15}from {of_class[few]:,} ({few}) to {of_class[many]:,} ({many})")
    return lines


def _seconds(phases: dict[str, float], took_s: float) -> str:
    if not phases:
        return f"  {'took':<15}{took_s:.1f} s: all of it was there"
    parts = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in phases.items())
    return f"  {'took':<15}{took_s:.1f} s: {parts}"


def _files(paths: list[Path]) -> list[str]:
    distinct = list(dict.fromkeys(paths))
    total = sum(path.stat().st_size for path in distinct)
    lines = [f"  {'on disk':<15}{total / 1e6:,.1f} MB in {distinct[0].parent}"]
    return lines + [f"  {'':<15}{path.stat().st_size / 1e6:>9,.1f} MB  {path.name}" for path in distinct]


def _samples(images: "LabelledImages", data: "DevelopmentData") -> Any:
    """A contact sheet of the first training images of each class, a PIL image."""
    import torch

    from ray_distill.artifacts.contact_sheet import contact_sheet

    shown = min(data.num_classes, MOST_CLASSES_SHOWN)
    each = SAMPLES if shown <= MOST_CLASSES_LISTED else SAMPLES // 4
    of = [(data.train.labels_N == k).nonzero().flatten()[:each] for k in range(shown)]
    rows_N = torch.cat(of)
    pixels = images.pixels(data.train.rows_N[rows_N])
    if pixels.shape[1] not in (1, 3):
        pixels = pixels.mean(dim=1, keepdim=True)
    return contact_sheet(pixels, data.train.labels_N[rows_N].tolist(), data.class_names)
