"""Figures of an evaluation: bars for each network, accuracy over inner steps, accuracy over images.

Error bars are the 95% intervals of the means (see `results`); a single retraining has none. Accuracies are in percent. The
colours are those of Okabe and Ito, which are distinct for people with any common colour blindness; lines also differ in
their markers, and treatments of one subject in their hatching. A subject has the same colour in all figures of an
evaluation. Failures are left out; they are in the table.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_distill.evaluation.results import Kind, ResultRow, Treatment, at_last_horizon, label
from ray_distill.utils.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BARS, STEPS, IMAGES = "accuracy.png", "accuracy_over_steps.png", "accuracy_over_images.png"
"""File names in the evaluation's folder."""

TrainedOn = tuple[str, Kind, Treatment, int]
"""See `ResultRow.trained_on`."""

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#555555", "#F0E442")
_MARKERS = "osD^vP*X"
_HATCHES: dict[Treatment, str] = {
    "own": "",
    "hard_labels": "///",
    "no_augmentation": "..",
    "augmentation": "xx",
}
_ERROR_BAR: dict[str, Any] = {"ecolor": "#333333", "elinewidth": 1.0, "capsize": 2.5}
_WIDTH, _DPI = 7.5, 150
"""Inches, and pixels per inch."""
_MAX_COLUMNS = 3
_MAX_NUMBERED = 40
"""Bars that are labelled with their numbers, at most."""
_MIN_TICK_DISTANCE = 0.09
"""As a fraction of the axis."""


def write_figures(folder: Path, rows: Sequence[ResultRow]) -> list[Path]:
    """Write the figures that are not empty, atomically. Returns: their paths.

    Raises: OSError.
    """
    paths = []
    for name, figure in ((BARS, bars(rows)), (STEPS, over_steps(rows)), (IMAGES, over_images(rows))):
        if figure is not None:
            paths.append(folder / name)
            with atomic_write(paths[-1]) as file:
                figure.savefig(file, format="png", dpi=_DPI, facecolor="white")
    return paths


def bars(rows: Sequence[ResultRow]) -> "Figure | None":
    """The last horizon: a group for each network, with a bar for each subject and treatment. None if there are none."""
    from matplotlib.patches import Patch

    shown = _succeeded(at_last_horizon([row for row in rows if row.kind != "subset"]))
    if not shown:
        return None
    styles, gap = _Styles(rows), 0.8
    groups = [[row for row in shown if row.network == network] for network in _networks(shown)]
    height = 0.9 + 0.22 * sum(len(group) + gap for group in groups)
    figure = _figure(height, {item: Patch(**styles.bar(item)) for item in _subjects(shown)})
    axes, top, ticks = figure.subplots(), 0.0, []
    for group in groups:
        for y, row in enumerate(group, start=1):
            axes.barh(top + y, 100 * (row.mean or 0), 0.88, **styles.bar(row.trained_on))
            _error_bar(axes, row, top + y, numbered=len(shown) <= _MAX_NUMBERED)
        ticks.append(top + (len(group) + 1) / 2)
        top += len(group) + gap
    axes.set_yticks(ticks, [group[0].network.replace(":", ":\n") for group in groups])
    axes.set_ylim(top + 1 - gap, 0)
    axes.set_xlim(0, min(1.1 * max(_end(row) for row in shown), 106))
    axes.set_xlabel("test accuracy (%)")
    axes.tick_params(axis="y", length=0)
    _style(axes, "x")
    return figure


def over_steps(rows: Sequence[ResultRow]) -> "Figure | None":
    """Accuracy over inner steps, a panel for each network. None unless a subject has several horizons.

    A subject with one horizon, such as the whole training set, is a horizontal line.
    """
    shown = _succeeded(row for row in rows if row.kind != "subset" and row.treatment == "own")
    horizons = {
        item: {row.inner_steps for row in shown if row.trained_on == item} for item in _subjects(shown)
    }
    steps = sorted({s or 0 for at in horizons.values() if len(at) > 1 for s in at})
    if not steps:
        return None
    styles = _Styles(rows)
    line_styles = {
        item: styles.line(item) if len(at) > 1 else styles.horizontal(item) for item, at in horizons.items()
    }
    figure, panels = _panels(_networks(shown), line_styles)
    for network, axes in panels.items():
        for i, item in enumerate(horizons):
            points = [row for row in shown if row.trained_on == item and row.network == network]
            if len(horizons[item]) == 1:
                for row in points:
                    axes.axhline(100 * (row.mean or 0), **line_styles[item])
            else:
                xs = [row.inner_steps or 0 for row in points]
                _points(axes, item, styles, _shifted(xs, i - (len(horizons) - 1) / 2), points)
        _logarithmic(axes, steps, "inner steps")
    return figure


def over_images(rows: Sequence[ResultRow]) -> "Figure | None":
    """Accuracy at the last horizon over the number of images, a panel for each network. None without subsets.

    A line joins the subsets of a set and the set; sets and baselines of other sizes are points.
    """
    shown = [
        row
        for row in _succeeded(at_last_horizon(rows))
        if row.treatment == "own" and row.kind != "whole_train"
    ]
    subsets = [row for row in shown if row.kind == "subset"]
    if not subsets:
        return None
    styles = _Styles(rows)
    items = [item for item in _subjects(shown) if item[1] != "subset"]
    figure, panels = _panels(_networks(subsets), {item: styles.line(item) for item in items})
    for network, axes in panels.items():
        of_network = [row for row in shown if row.network == network]
        for i, item in enumerate(items):
            points = [row for row in of_network if row.trained_on == item]
            if item[1] == "distilled":
                points += [row for row in of_network if row.kind == "subset" and row.subject == item[0]]
            points.sort(key=lambda row: row.num_images)
            xs = [row.num_images for row in points]
            _points(axes, item, styles, _shifted(xs, i - (len(items) - 1) / 2), points)
        _logarithmic(axes, sorted({row.num_images for row in shown}), "images trained on")
    return figure


def _error_bar(axes: "Axes", row: ResultRow, y: float, *, numbered: bool) -> None:
    means, errors = _percents([row])
    axes.errorbar(means, y, xerr=errors, fmt="none", **_ERROR_BAR)
    if numbered:
        offset: dict[str, Any] = {"xytext": (4, -0.5), "textcoords": "offset points"}
        axes.annotate(f"{means[0]:.1f}", (_end(row), y), va="center", fontsize=8, **offset)


def _points(
    axes: "Axes", item: TrainedOn, styles: "_Styles", xs: Sequence[float], rows: Sequence[ResultRow]
) -> None:
    """Points with error bars, joined by a line."""
    means, errors = _percents(rows)
    axes.errorbar(
        xs, means, yerr=errors, **styles.line(item), **(_ERROR_BAR | {"ecolor": styles.colour(item)})
    )


class _Styles:
    """A colour and a marker for each subject, a hatching for each treatment."""

    def __init__(self, rows: Sequence[ResultRow]) -> None:
        subjects = dict.fromkeys(_untreated(row.trained_on) for row in rows if row.kind != "subset")
        self._positions = {item: i for i, item in enumerate(subjects)}

    def _position(self, item: TrainedOn) -> int:
        return self._positions[_untreated(item)]

    def colour(self, item: TrainedOn) -> str:
        return _COLOURS[self._position(item) % len(_COLOURS)]

    def bar(self, item: TrainedOn) -> dict[str, Any]:
        """With a second hatching when the colours repeat."""
        hatch = _HATCHES[item[2]] + ("\\\\" if self._repeats(item) else "")
        return {"facecolor": self.colour(item), "hatch": hatch, "edgecolor": "white", "linewidth": 0}

    def line(self, item: TrainedOn) -> dict[str, Any]:
        """With hollow markers when the colours repeat."""
        colour, mark = self.colour(item), _MARKERS[self._position(item) % len(_MARKERS)]
        fill = "white" if self._repeats(item) else colour
        return {"color": colour, "marker": mark, "markersize": 5, "markerfacecolor": fill, "linewidth": 1.3}

    def _repeats(self, item: TrainedOn) -> bool:
        return self._position(item) >= len(_COLOURS)

    def horizontal(self, item: TrainedOn) -> dict[str, Any]:
        """Of the line of a subject with one horizon."""
        return {"color": self.colour(item), "linewidth": 1.3, "linestyle": "--"}


def _figure(height: float, handles: Mapping[TrainedOn, "Artist"]) -> "Figure":
    """A figure of a height in inches, with a legend above it."""
    from matplotlib.figure import Figure

    names = [textwrap.fill(f"{label(*item)} ({item[3]:,}\N{NO-BREAK SPACE}images)", 80) for item in handles]
    columns = max(1, min(3, len(names), 96 // (max(map(len, names)) + 6)))
    num_lines = -(-len(names) // columns) + sum(name.count("\n") for name in names)
    figure = Figure((_WIDTH, height + 0.2 * num_lines + 0.2), layout="constrained")
    where: dict[str, Any] = {"loc": "outside upper left", "ncols": columns}
    figure.legend(list(handles.values()), names, frameon=False, fontsize=9, **where)
    return figure


def _panels(
    networks: Sequence[str], line_styles: Mapping[TrainedOn, dict[str, Any]]
) -> "tuple[Figure, dict[str, Axes]]":
    """A panel for each network, with a shared y axis. `line_styles` are keyword arguments of Line2D for the legend."""
    from matplotlib.lines import Line2D

    columns = min(_MAX_COLUMNS, len(networks))
    rows = -(-len(networks) // columns)
    height = 3.6 if len(networks) == 1 else 2.7 * rows
    figure = _figure(height, {item: Line2D([], [], **style) for item, style in line_styles.items()})
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    panels = dict(zip(networks, grid.flat, strict=False))
    for axes in grid.flat[len(networks) :]:
        axes.remove()
    for network, axes in panels.items():
        axes.set_title(network, fontsize=10)
        _style(axes, "y")
    for axes in grid[:, 0]:
        axes.set_ylabel("test accuracy (%)")
    return figure, panels


def _style(axes: "Axes", grid: Any) -> None:
    axes.grid(axis=grid, alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _logarithmic(axes: "Axes", ticks: Sequence[int], name: str) -> None:
    """A logarithmic x axis with ticks at the data, except where they are too close to each other."""
    span = math.log(ticks[-1] / ticks[0]) or 1.0
    shown: list[int] = []
    for tick in reversed(ticks):
        if not shown or math.log(shown[-1] / tick) >= _MIN_TICK_DISTANCE * span:
            shown.append(tick)
    axes.set_xscale("log")
    axes.set_xticks(shown, [f"{tick:,}" for tick in shown])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(name)


def _shifted(xs: Sequence[float], shift: float) -> list[float]:
    """Positions on a logarithmic axis, moved a little so that error bars do not overlap."""
    return [x * 1.02**shift for x in xs]


def _untreated(item: TrainedOn) -> tuple[str, Kind, int]:
    subject, kind, _, num_images = item
    return subject, kind, num_images


def _succeeded(rows: Iterable[ResultRow]) -> list[ResultRow]:
    return [row for row in rows if row.mean is not None]


def _subjects(rows: Iterable[ResultRow]) -> list[TrainedOn]:
    return list(dict.fromkeys(row.trained_on for row in rows))


def _networks(rows: Iterable[ResultRow]) -> list[str]:
    return list(dict.fromkeys(row.network for row in rows))


def _percents(rows: Iterable[ResultRow]) -> tuple[list[float], list[list[float]]]:
    """Means, and how far their intervals reach below and above; NaN, which is not drawn, without an interval."""
    means, below, above = list[float](), list[float](), list[float]()
    for row in rows:
        mean = row.mean or 0.0
        low, high = row.interval or (math.nan, math.nan)
        means.append(100 * mean)
        below.append(100 * (mean - low))
        above.append(100 * (high - mean))
    return means, [below, above]


def _end(row: ResultRow) -> float:
    """Of the error bar, if there is one, or of the bar."""
    return 100 * (row.interval[1] if row.interval is not None else row.mean or 0.0)
