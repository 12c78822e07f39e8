"""Pictures of an evaluation: bars for each network, accuracy against inner steps, accuracy against images.

Whiskers are the 95% intervals of the means (see `evaluation_rows`); a single retraining has none. Accuracies are shown
in percent. The colours are those of Okabe and Ito, which people with any common colour blindness can tell apart; lines
differ by their marks too, and treatments of one thing by their hatching. What was trained on has one colour in all
pictures of an evaluation. What failed is left out: it stands in the table.
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
"""The pictures of a results folder."""

TrainedOn = tuple[str, Kind, Treatment, int]
"""See `ResultRow.trained_on`."""

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#555555", "#F0E442")
_MARKS = "osD^vP*X"
_HATCHES: dict[Treatment, str] = {
    "own": "",
    "hard_labels": "///",
    "no_augmentation": "..",
    "augmentation": "xx",
}
_WHISKER: dict[str, Any] = {"ecolor": "#333333", "elinewidth": 1.0, "capsize": 2.5}
_WIDTH, _DPI = 7.5, 150
"""Inches, and pixels for each."""
_MAX_COLUMNS = 3
_MAX_NUMBERS = 40
"""Bars that have room for their numbers."""
_CLOSEST_TICKS = 0.09
"""Of the axis: ticks closer to another one are left out."""


def write_pictures(folder: Path, rows: Sequence[ResultRow]) -> list[Path]:
    """Writes the pictures that have something to show, each of them whole. Returns where they are.

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
    """The last horizon: a group for each network, with a bar for each thing trained on. None without any."""
    from matplotlib.patches import Patch

    shown = _done(at_last_horizon([row for row in rows if row.kind != "subset"]))
    if not shown:
        return None
    styles, gap = _Styles(rows), 0.8
    groups = [[row for row in shown if row.network == network] for network in _networks(shown)]
    height = 0.9 + 0.22 * sum(len(group) + gap for group in groups)
    figure = _figure(height, {of: Patch(**styles.bar(of)) for of in _all_of(shown)})
    axes, top, ticks = figure.subplots(), 0.0, []
    for group in groups:
        for place, row in enumerate(group, start=1):
            axes.barh(top + place, 100 * (row.mean or 0), 0.88, **styles.bar(row.trained_on))
            _whisker(axes, row, top + place, numbered=len(shown) <= _MAX_NUMBERS)
        ticks.append(top + (len(group) + 1) / 2)
        top += len(group) + gap
    axes.set_yticks(ticks, [group[0].network.replace(":", ":\n") for group in groups])
    axes.set_ylim(top + 1 - gap, 0)
    axes.set_xlim(0, min(1.1 * max(_end(row) for row in shown), 106))
    axes.set_xlabel("test accuracy (%)")
    axes.tick_params(axis="y", length=0)
    _tidy(axes, "x")
    return figure


def over_steps(rows: Sequence[ResultRow]) -> "Figure | None":
    """Accuracy against inner steps, a panel for each network. None unless something has several horizons.

    What has one horizon alone, such as the whole training set, is a level line, wherever that horizon lies.
    """
    shown = _done(row for row in rows if row.kind != "subset" and row.treatment == "own")
    horizons = {of: {row.inner_steps for row in shown if row.trained_on == of} for of in _all_of(shown)}
    steps = sorted({s or 0 for of in horizons.values() if len(of) > 1 for s in of})
    if not steps:
        return None
    styles = _Styles(rows)
    looks = {of: styles.line(of) if len(at) > 1 else styles.level(of) for of, at in horizons.items()}
    figure, panels = _panels(_networks(shown), looks)
    for network, axes in panels.items():
        for i, of in enumerate(horizons):
            mine = [row for row in shown if row.trained_on == of and row.network == network]
            if len(horizons[of]) == 1:
                for row in mine:
                    axes.axhline(100 * (row.mean or 0), **looks[of])
            else:
                places = [row.inner_steps or 0 for row in mine]
                _points(axes, of, styles, _beside(places, i - (len(horizons) - 1) / 2), mine)
        _logarithmic(axes, steps, "inner steps")
    return figure


def over_images(rows: Sequence[ResultRow]) -> "Figure | None":
    """Accuracy at the last horizon against the number of images, a panel for each network. None without subsets.

    A line joins random images of a set, and the set; sets and baselines of other sizes are points beside it.
    """
    shown = [
        row for row in _done(at_last_horizon(rows)) if row.treatment == "own" and row.kind != "whole_train"
    ]
    subsets = [row for row in shown if row.kind == "subset"]
    if not subsets:
        return None
    styles = _Styles(rows)
    whole = [of for of in _all_of(shown) if of[1] != "subset"]
    figure, panels = _panels(_networks(subsets), {of: styles.line(of) for of in whole})
    for network, axes in panels.items():
        here = [row for row in shown if row.network == network]
        for i, of in enumerate(whole):
            mine = [row for row in here if row.trained_on == of]
            if of[1] == "distilled":
                mine += [row for row in here if row.kind == "subset" and row.subject == of[0]]
            mine.sort(key=lambda row: row.num_images)
            places = [row.num_images for row in mine]
            _points(axes, of, styles, _beside(places, i - (len(whole) - 1) / 2), mine)
        _logarithmic(axes, sorted({row.num_images for row in shown}), "images trained on")
    return figure


def _whisker(axes: "Axes", row: ResultRow, place: float, *, numbered: bool) -> None:
    means, errors = _percents([row])
    axes.errorbar(means, place, xerr=errors, fmt="none", **_WHISKER)
    if numbered:
        offset: dict[str, Any] = {"xytext": (4, -0.5), "textcoords": "offset points"}
        axes.annotate(f"{means[0]:.1f}", (_end(row), place), va="center", fontsize=8, **offset)


def _points(
    axes: "Axes", of: TrainedOn, styles: "_Styles", places: Sequence[float], rows: Sequence[ResultRow]
) -> None:
    """Points with whiskers, joined by a line."""
    means, errors = _percents(rows)
    axes.errorbar(places, means, yerr=errors, **styles.line(of), **(_WHISKER | {"ecolor": styles.colour(of)}))


class _Styles:
    """A colour and a mark for each thing trained on, a hatching for each treatment."""

    def __init__(self, rows: Sequence[ResultRow]) -> None:
        of_set = dict.fromkeys(_untreated(row.trained_on) for row in rows if row.kind != "subset")
        self._places = {of: i for i, of in enumerate(of_set)}

    def _place(self, of: TrainedOn) -> int:
        return self._places[_untreated(of)]

    def colour(self, of: TrainedOn) -> str:
        return _COLOURS[self._place(of) % len(_COLOURS)]

    def bar(self, of: TrainedOn) -> dict[str, Any]:
        """Hatched another way too where the colours are spent."""
        hatch = _HATCHES[of[2]] + ("\\\\" if self._spent(of) else "")
        return {"facecolor": self.colour(of), "hatch": hatch, "edgecolor": "white", "linewidth": 0}

    def line(self, of: TrainedOn) -> dict[str, Any]:
        """Its points are hollow where the colours are spent."""
        colour, mark = self.colour(of), _MARKS[self._place(of) % len(_MARKS)]
        fill = "white" if self._spent(of) else colour
        return {"color": colour, "marker": mark, "markersize": 5, "markerfacecolor": fill, "linewidth": 1.3}

    def _spent(self, of: TrainedOn) -> bool:
        return self._place(of) >= len(_COLOURS)

    def level(self, of: TrainedOn) -> dict[str, Any]:
        """Of a line for what has one horizon."""
        return {"color": self.colour(of), "linewidth": 1.3, "linestyle": "--"}


def _figure(height: float, looks: Mapping[TrainedOn, "Artist"]) -> "Figure":
    """A figure of a height in inches, and a legend above it."""
    from matplotlib.figure import Figure

    names = [textwrap.fill(f"{label(*of)} ({of[3]:,}\N{NO-BREAK SPACE}images)", 80) for of in looks]
    columns = max(1, min(3, len(names), 96 // (max(map(len, names)) + 6)))
    num_lines = -(-len(names) // columns) + sum(name.count("\n") for name in names)
    figure = Figure((_WIDTH, height + 0.2 * num_lines + 0.2), layout="constrained")
    where: dict[str, Any] = {"loc": "outside upper left", "ncols": columns}
    figure.legend(list(looks.values()), names, frameon=False, fontsize=9, **where)
    return figure


def _panels(
    networks: Sequence[str], looks: Mapping[TrainedOn, dict[str, Any]]
) -> "tuple[Figure, dict[str, Axes]]":
    """A panel for each network, with one scale of accuracies. `looks` are those of lines."""
    from matplotlib.lines import Line2D

    columns = min(_MAX_COLUMNS, len(networks))
    rows = -(-len(networks) // columns)
    height = 3.6 if len(networks) == 1 else 2.7 * rows
    figure = _figure(height, {of: Line2D([], [], **look) for of, look in looks.items()})
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    panels = dict(zip(networks, grid.flat, strict=False))
    for axes in grid.flat[len(networks) :]:
        axes.remove()
    for network, axes in panels.items():
        axes.set_title(network, fontsize=10)
        _tidy(axes, "y")
    for axes in grid[:, 0]:
        axes.set_ylabel("test accuracy (%)")
    return figure, panels


def _tidy(axes: "Axes", grid: Any) -> None:
    axes.grid(axis=grid, alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _logarithmic(axes: "Axes", ticks: Sequence[int], name: str) -> None:
    """A logarithmic axis with ticks where there is something, unless they are too close to each other."""
    span = math.log(ticks[-1] / ticks[0]) or 1.0
    kept: list[int] = []
    for tick in reversed(ticks):
        if not kept or math.log(kept[-1] / tick) >= _CLOSEST_TICKS * span:
            kept.append(tick)
    axes.set_xscale("log")
    axes.set_xticks(kept, [f"{tick:,}" for tick in kept])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(name)


def _beside(places: Sequence[float], shift: float) -> list[float]:
    """Places on a logarithmic axis, moved a little so that whiskers do not cover each other."""
    return [place * 1.02**shift for place in places]


def _untreated(of: TrainedOn) -> tuple[str, Kind, int]:
    subject, kind, _, num_images = of
    return subject, kind, num_images


def _done(rows: Iterable[ResultRow]) -> list[ResultRow]:
    return [row for row in rows if row.mean is not None]


def _all_of(rows: Iterable[ResultRow]) -> list[TrainedOn]:
    return list(dict.fromkeys(row.trained_on for row in rows))


def _networks(rows: Iterable[ResultRow]) -> list[str]:
    return list(dict.fromkeys(row.network for row in rows))


def _percents(rows: Iterable[ResultRow]) -> tuple[list[float], list[list[float]]]:
    """Means, and how far their intervals reach below and above; not a number, of which nothing is drawn, without one."""
    means, below, above = list[float](), list[float](), list[float]()
    for row in rows:
        mean = row.mean or 0.0
        low, high = row.interval or (math.nan, math.nan)
        means.append(100 * mean)
        below.append(100 * (mean - low))
        above.append(100 * (high - mean))
    return means, [below, above]


def _end(row: ResultRow) -> float:
    """Of its whisker, or of the bar."""
    return 100 * (row.interval[1] if row.interval is not None else row.mean or 0.0)
