"""Figures of a search: accuracy against searched values, and learning curves. Accuracies are in percent.

Matplotlib without its global state: every figure is drawn by Agg. A trial's line has the trial's name as its label.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from ray_distill.tuning.domains import Value
from ray_distill.tuning.journal import TrialLog
from ray_distill.tuning.results import format_value, ranked, searched_keys
from ray_distill.utils.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

WINDOW, UNROLL = "truncation.window_length", "truncation.unroll_length"

BEST_COLOUR, OTHER_COLOUR, NO_COLOUR = "#d1480f", "#7f93ad", "#b8b8b8"
"""The best trial, the others, and trials without an accuracy."""

ACCURACY_COLOURS = "viridis"
DPI = 130
LABEL_SPACE = 0.07
"""The free fraction of a map's width or height that a point's label needs."""

END_MARKS = {"stopped": ("o", "white"), "failed": ("X", "black")}
"""Marker and its fill at the end of a trial's line."""

Against = Literal["outer_step", "seconds"]
AGAINST_LABELS: dict[Against, str] = {
    "outer_step": "outer steps",
    "seconds": "seconds since the trial started",
}

LOG_SCALE_RATIO = 20.0
"""Positive numbers are on a log scale if the largest is at least so many times the smallest."""

MAX_TICKS = 7
MAX_EXACT_TICKS = 4
"""Up to so many different numbers get a tick each."""

NONE_SPACE = 0.14
"""The fraction of a numeric axis for trials without a value."""


class AxisScale(NamedTuple):
    """Positions from 0 to 1 on an axis."""

    position: Callable[[Value], float]
    ticks: list[tuple[float, str]]
    """(position, label)."""


def axis_scale(values: Sequence[Value]) -> AxisScale:
    """Numbers by size, on a log scale if they span one; words evenly, in order. A single value is in the middle."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    others = [v for v in values if v is not None and (isinstance(v, bool | str))]
    if not numbers or others:
        return _categorical(values)
    bottom = NONE_SPACE if len(numbers) < len(values) else 0.0
    scale = _numeric([float(n) for n in numbers], integers=all(isinstance(n, int) for n in numbers))
    if not bottom:
        return scale
    ticks = [(0.0, "none"), *((bottom + (1 - bottom) * y, text) for y, text in scale.ticks)]
    return AxisScale(lambda v: 0.0 if v is None else bottom + (1 - bottom) * scale.position(v), ticks)


def _categorical(values: Sequence[Value]) -> AxisScale:
    def order(value: Value) -> tuple[bool, bool, float, str]:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return value is not None, not number, float(value) if number else 0.0, str(value)  # type: ignore[arg-type]

    # By text: 1 and True are equal in Python, but different values of a key.
    labels = list(dict.fromkeys(format_value(value) for value in sorted(values, key=order)))
    positions = {label: i / (len(labels) - 1) if len(labels) > 1 else 0.5 for i, label in enumerate(labels)}
    return AxisScale(lambda v: positions[format_value(v)], [(y, label) for label, y in positions.items()])


def _numeric(numbers: Sequence[float], integers: bool) -> AxisScale:
    low, high = min(numbers), max(numbers)
    if low == high:
        return AxisScale(lambda _: 0.5, [(0.5, f"{low:.0f}" if integers else f"{low:.3g}")])
    log = low > 0 and high / low >= LOG_SCALE_RATIO
    warp: Callable[[float], float] = math.log if log else float

    def position(value: Value) -> float:
        assert isinstance(value, int | float)
        return (warp(value) - warp(low)) / (warp(high) - warp(low))

    ticks = sorted(set(numbers))
    if len(ticks) > MAX_EXACT_TICKS:
        ticks = [low, *(t for t in _ticks(low, high, log) if 0.06 < position(t) < 0.94), high]
    return AxisScale(
        position, [(position(t), f"{t:.0f}" if integers and t == int(t) else f"{t:.3g}") for t in ticks]
    )


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """Round numbers between the ends."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if not log:
        return [float(t) for t in MaxNLocator(MAX_TICKS - 2).tick_values(low, high)]
    subs = (1.0,) if high / low > 10**3 else (1.0, 3.0)
    return [float(t) for t in LogLocator(subs=subs, numticks=MAX_TICKS + 5).tick_values(low, high)]


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes: Axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _percents(trials: Sequence[TrialLog]) -> dict[str, float]:
    """Each trial's best validation accuracy in percent, where there is one."""
    return {t.name: 100 * t.best.validation_accuracy for t in trials if t.best is not None}


def _colours(percents: Sequence[float]) -> "Normalize":
    from matplotlib.colors import Normalize

    low, high = (min(percents), max(percents)) if percents else (0.0, 100.0)
    # A single accuracy, or equal ones, would make an empty scale.
    return Normalize(low, high) if high - low > 1e-9 else Normalize(low - 0.5, high + 0.5)


def _colour_bar(figure: "Figure", axes: "Axes", norm: "Normalize") -> None:
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(norm, ACCURACY_COLOURS), ax=axes, pad=0.02)
    bar.set_label("best validation accuracy (%)")
    bar.outline.set_visible(False)


def parallel_coordinates(trials: Sequence[TrialLog]) -> "Figure":
    """A vertical axis for each searched key and one for the accuracy; a line for each trial, coloured by accuracy.

    The best trial is on top. A trial without an accuracy is grey and ends at the last key.
    """
    import matplotlib

    keys, percents = searched_keys(trials), _percents(trials)
    scales = [axis_scale([trial.values.get(key) for trial in trials]) for key in keys]
    scales.append(axis_scale(list(percents.values())))
    figure, axes = _figure(max(6.0, 1.9 * len(scales) + 1.0), 4.8)
    norm, colours = _colours(list(percents.values())), matplotlib.colormaps[ACCURACY_COLOURS]
    best_last = list(reversed(ranked(trials)))
    for order, trial in enumerate(best_last):
        value = percents.get(trial.name)
        ys = [scale.position(trial.values.get(key)) for scale, key in zip(scales, keys, strict=False)]
        ys += [] if value is None else [scales[-1].position(value)]
        best = value is not None and trial is best_last[-1]
        axes.plot(
            range(len(ys)),
            ys,
            color=NO_COLOUR if value is None else colours(norm(value)),
            linewidth=3.5 if best else 1.4,
            alpha=1.0 if best else 0.75,
            linestyle=":" if value is None else "-",
            marker="o",
            markersize=6 if best else 3,
            zorder=3 + order / len(trials),
            label=trial.name,
            clip_on=False,
        )
    for x, scale in enumerate(scales):
        axes.vlines(x, 0, 1, color="#444444", linewidth=1, zorder=2)
        for y, text in scale.ticks:
            axes.annotate(
                text, (x, y), (-6, 0), textcoords="offset points", ha="right", va="center", fontsize=8, zorder=6,
                bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
            )  # fmt: skip
    headings = [key.replace(".", ".\n") for key in keys] + ["best validation\naccuracy (%)"]
    axes.set_xticks(range(len(scales)), headings, fontsize=9)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_xlim(-0.35, len(scales) - 0.9)
    axes.set_ylim(-0.04, 1.04)
    notes = [f"thick: the best, {best_last[-1].name}"] if percents else []
    notes += ["dotted: never validated"] if len(percents) < len(trials) else []
    figure.supxlabel("   ".join(notes), fontsize=8, color="#444444")
    if percents:
        _colour_bar(figure, axes, norm)
    return figure


def _pairs(trials: Sequence[TrialLog]) -> dict[tuple[float, float], float | None]:
    """(window, unroll) -> the best accuracy of the trials with this pair, in percent."""
    percents = _percents(trials)
    pairs: dict[tuple[float, float], float | None] = {}
    for trial in reversed(ranked(trials)):
        window, unroll = trial.values.get(WINDOW), trial.values.get(UNROLL)
        if isinstance(window, int | float) and isinstance(unroll, int | float):
            pairs[window, unroll] = percents.get(trial.name, pairs.get((window, unroll)))
    return pairs


def window_unroll_map(trials: Sequence[TrialLog]) -> "Figure | None":
    """A scatter plot of window and unroll length, coloured by the best accuracy of each pair; None if the search did not
    vary both."""
    from matplotlib.ticker import MaxNLocator

    pairs = _pairs(trials)
    if not pairs:
        return None
    figure, axes = _figure(6.4, 4.8)
    known = {pair: percent for pair, percent in pairs.items() if percent is not None}
    unknown = [pair for pair, percent in pairs.items() if percent is None]
    axes.axline(
        (0, 0), slope=1, color="#bbbbbb", linewidth=1, linestyle="--", zorder=1, label="window = unroll"
    )
    if unknown:
        windows, unrolls = zip(*unknown, strict=True)
        axes.scatter(windows, unrolls, s=60, marker="x", color=NO_COLOUR, label="never validated", zorder=3)
    if known:
        windows, unrolls = zip(*known, strict=True)
        norm, percents = _colours(list(known.values())), list(known.values())
        axes.scatter(
            windows,
            unrolls,
            s=150,
            c=percents,
            cmap=ACCURACY_COLOURS,
            norm=norm,
            edgecolors="white",
            zorder=4,
        )
        best = max(known, key=lambda pair: known[pair])
        axes.scatter(
            best[0], best[1],
            s=260, facecolors="none", edgecolors=BEST_COLOUR, linewidths=2, zorder=5, label="best of these",
        )  # fmt: skip
        for pair, percent in known.items():
            if pair == best or _has_label_space(pair, list(known)):
                axes.annotate(
                    f"{percent:.1f}",
                    pair,
                    (0, -17),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7,
                    zorder=6,
                )
        _colour_bar(figure, axes, norm)
    axes.legend(frameon=False, loc="lower right", fontsize=8, markerscale=0.5)
    axes.set_xlim(0, 1.12 * max(window for window, _ in pairs))
    axes.set_ylim(0, 1.12 * max(unroll for _, unroll in pairs))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("window length")
    axes.set_ylabel("unroll length")
    return figure


def _has_label_space(pair: tuple[float, float], pairs: Sequence[tuple[float, float]]) -> bool:
    """Whether no other point is where this one's label would be."""
    width, height = (max(p[axis] for p in pairs) for axis in (0, 1))
    return not any(
        other != pair
        and abs(other[0] - pair[0]) < LABEL_SPACE * width
        and abs(other[1] - pair[1]) < LABEL_SPACE * height
        for other in pairs
    )


def accuracy_curves(trials: Sequence[TrialLog], against: Against) -> "Figure":
    """Validation accuracy over outer steps or seconds, a line for each trial that was validated.

    The best trial is on top and in colour. A stopped trial's line ends with a ring, a failed one's with a cross.
    """
    figure, axes = _figure(7.6, 4.6)
    validated = [trial for trial in ranked(trials) if trial.curve]
    for order, trial in enumerate(reversed(validated)):
        best = trial is validated[0]
        xs = [getattr(validation, against) for validation in trial.curve]
        ys = [100 * validation.validation_accuracy for validation in trial.curve]
        colour = BEST_COLOUR if best else OTHER_COLOUR
        axes.plot(
            xs, ys,
            color=colour, linewidth=2.6 if best else 1.2, alpha=1.0 if best else 0.6,
            marker="o" if len(xs) == 1 else None, markersize=4, zorder=3 + order / len(validated), label=trial.name,
        )  # fmt: skip
        if trial.status in END_MARKS:
            marker, fill = END_MARKS[trial.status]
            axes.scatter(xs[-1:], ys[-1:], marker=marker, facecolors=fill, edgecolors=colour, s=32, zorder=5)
    _add_legend(axes, trials, validated)
    axes.set_xlabel(AGAINST_LABELS[against])
    axes.set_ylabel("validation accuracy (%)")
    axes.set_xlim(left=0)
    if not validated:
        axes.set_ylim(0, 100)
        axes.set_xticks([])
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    return figure


def _add_legend(axes: "Axes", trials: Sequence[TrialLog], validated: Sequence[TrialLog]) -> None:
    """The legend: the best trial, and the number of trials of each status."""
    from matplotlib.lines import Line2D

    def entry(text: str, colour: str, marker: str | None = None, fill: str | None = None) -> Line2D:
        return Line2D([], [], color=colour, marker=marker, markerfacecolor=fill, label=text, markersize=6)

    entries = []
    if validated:
        best = validated[0]
        assert best.best is not None
        percent = 100 * best.best.validation_accuracy
        entries.append(
            entry(f"best: {best.name}, {percent:.1f}% at step {best.best.outer_step}", BEST_COLOUR)
        )
    for status in ("finished", "running", "stopped", "failed"):
        count = sum(trial.status == status for trial in trials)
        unvalidated = count - sum(trial.status == status for trial in validated)
        note = f" ({unvalidated} before the first validation)" if unvalidated else ""
        if count:
            entries.append(entry(f"{count} {status}{note}", OTHER_COLOUR, *END_MARKS.get(status, ())))
    axes.legend(handles=entries, frameon=False, fontsize=8, loc="lower right")


def save_figures(trials: Sequence[TrialLog], folder: Path) -> list[Path]:
    """Write all figures as PNG. Returns: their paths."""
    figures = {
        "parallel_coordinates": parallel_coordinates(trials),
        "window_unroll": window_unroll_map(trials),
        "accuracy_over_steps": accuracy_curves(trials, "outer_step"),
        "accuracy_over_seconds": accuracy_curves(trials, "seconds"),
    }
    paths = []
    for name, figure in figures.items():
        if figure is not None:
            paths.append(folder / f"{name}.png")
            with atomic_write(paths[-1]) as file:
                figure.savefig(file, format="png", facecolor="white")
    return paths
