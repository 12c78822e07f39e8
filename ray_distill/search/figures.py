"""Pictures of a search: what was searched against what came of it, and how the trials went.

Matplotlib without its global state: every picture is a Figure of its own, drawn by Agg. A trial's line has the
trial's name as its label. Accuracies are drawn in percent.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from ray_distill.search.results import TrialRecord, Value, ranked, searched_keys, shown_value
from ray_distill.utils.atomic import atomic_write

LOG_FROM = 20.0
"""Numbers of one sign are on a log scale if the largest is so many times the smallest."""

MOST_TICKS = 7
FEW = 4
"""Numbers that are so few get a tick each, and no others."""

NONE_ROOM = 0.14
"""Of an axis of numbers, for trials that have none."""


class Scale(NamedTuple):
    """An axis."""

    place: Callable[[Value], float]
    """Value -> place."""
    ticks: list[tuple[float, str]]
    """Places that have a text."""


def scale_of(values: Sequence[Value]) -> Scale:
    """The axis that these values ask for. One value alone lies in the middle."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    others = [v for v in values if v is not None and (isinstance(v, bool | str))]
    if not numbers or others:
        return _of_words(values)
    bottom = NONE_ROOM if len(numbers) < len(values) else 0.0
    scale = _of_numbers([float(n) for n in numbers], whole=all(isinstance(n, int) for n in numbers))
    if not bottom:
        return scale
    ticks = [(0.0, "none"), *((bottom + (1 - bottom) * y, text) for y, text in scale.ticks)]
    return Scale(lambda v: 0.0 if v is None else bottom + (1 - bottom) * scale.place(v), ticks)


def _of_words(values: Sequence[Value]) -> Scale:
    def order(value: Value) -> tuple[bool, bool, float, str]:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return value is not None, not number, float(value) if number else 0.0, str(value)  # type: ignore[arg-type]

    # By text: 1 and True are equal in Python, and different values of a key.
    there = list(dict.fromkeys(shown_value(value) for value in sorted(values, key=order)))
    places = {text: i / (len(there) - 1) if len(there) > 1 else 0.5 for i, text in enumerate(there)}
    return Scale(lambda v: places[shown_value(v)], [(y, text) for text, y in places.items()])


def _of_numbers(numbers: Sequence[float], whole: bool) -> Scale:
    low, high = min(numbers), max(numbers)
    if low == high:
        return Scale(lambda _: 0.5, [(0.5, f"{low:.0f}" if whole else f"{low:.3g}")])
    log = low > 0 and high / low >= LOG_FROM
    warp: Callable[[float], float] = math.log if log else float

    def place(value: Value) -> float:
        assert isinstance(value, int | float)
        return (warp(value) - warp(low)) / (warp(high) - warp(low))

    ticks = sorted(set(numbers))
    if len(ticks) > FEW:
        ticks = [low, *(t for t in _ticks(low, high, log) if 0.06 < place(t) < 0.94), high]
    return Scale(place, [(place(t), f"{t:.0f}" if whole and t == int(t) else f"{t:.3g}") for t in ticks])


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """Round numbers between the ends."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if not log:
        return [float(t) for t in MaxNLocator(MOST_TICKS - 2).tick_values(low, high)]
    subs = (1.0,) if high / low > 10**3 else (1.0, 3.0)
    return [float(t) for t in LogLocator(subs=subs, numticks=MOST_TICKS + 5).tick_values(low, high)]


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

WINDOW, UNROLL = "truncation.window_length", "truncation.unroll_length"

BEST_COLOUR, OTHER_COLOUR, NO_COLOUR = "#d1480f", "#7f93ad", "#b8b8b8"
"""Of the best trial, of the others, and of trials without any accuracy."""

ACCURACY_COLOURS = "viridis"
DPI = 130
ROOM = 0.07
"""Of a map's width or height, that a point needs around it to have its accuracy beside it."""

END_MARKS = {"stopped": ("o", "white"), "failed": ("X", "black")}
"""At the end of a trial's line: the mark and its filling."""

Against = Literal["outer_step", "seconds"]
AGAINST_LABELS: dict[Against, str] = {"outer_step": "outer steps", "seconds": "seconds since the trial began"}


def _figure(width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes: Axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _percents(trials: Sequence[TrialRecord]) -> dict[str, float]:
    """Each trial's best validation accuracy in percent, where there is one."""
    return {t.name: 100 * t.best.validation_accuracy for t in trials if t.best is not None}


def _colours(percents: Sequence[float]) -> "Normalize":
    from matplotlib.colors import Normalize

    low, high = (min(percents), max(percents)) if percents else (0.0, 100.0)
    # One accuracy alone, or equal ones, would have no place on a scale.
    return Normalize(low, high) if high - low > 1e-9 else Normalize(low - 0.5, high + 0.5)


def _colour_bar(figure: "Figure", axes: "Axes", norm: "Normalize") -> None:
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(norm, ACCURACY_COLOURS), ax=axes, pad=0.02)
    bar.set_label("best validation accuracy (%)")
    bar.outline.set_visible(False)


def parallel_coordinates(trials: Sequence[TrialRecord]) -> "Figure":
    """An upright axis for each searched key and one for the accuracy; a line for each trial, coloured by accuracy.

    The best trial is on top. A trial without an accuracy is grey and ends at the last key.
    """
    import matplotlib

    keys, percents = searched_keys(trials), _percents(trials)
    scales = [scale_of([trial.values.get(key) for trial in trials]) for key in keys]
    scales.append(scale_of(list(percents.values())))
    figure, axes = _figure(max(6.0, 1.9 * len(scales) + 1.0), 4.8)
    norm, colours = _colours(list(percents.values())), matplotlib.colormaps[ACCURACY_COLOURS]
    best_last = list(reversed(ranked(trials)))
    for order, trial in enumerate(best_last):
        value = percents.get(trial.name)
        ys = [scale.place(trial.values.get(key)) for scale, key in zip(scales, keys, strict=False)]
        ys += [] if value is None else [scales[-1].place(value)]
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


def _pairs(trials: Sequence[TrialRecord]) -> dict[tuple[float, float], float | None]:
    """(window, unroll) -> the best accuracy of the trials with both, in percent."""
    percents = _percents(trials)
    pairs: dict[tuple[float, float], float | None] = {}
    for trial in reversed(ranked(trials)):
        window, unroll = trial.values.get(WINDOW), trial.values.get(UNROLL)
        if isinstance(window, int | float) and isinstance(unroll, int | float):
            pairs[window, unroll] = percents.get(trial.name, pairs.get((window, unroll)))
    return pairs


def window_unroll_map(trials: Sequence[TrialRecord]) -> "Figure | None":
    """Window length across, unroll length up, coloured by accuracy; None where a search did not vary both.

    A point for each pair of values, with the best of its trials: what a search draws is scattered, and a
    grid of cells would be mostly empty.
    """
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
            if pair == best or _has_room(pair, list(known)):
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


def _has_room(pair: tuple[float, float], pairs: Sequence[tuple[float, float]]) -> bool:
    """Whether no other point lies where this one's number would."""
    width, height = (max(p[axis] for p in pairs) for axis in (0, 1))
    return not any(
        other != pair and abs(other[0] - pair[0]) < ROOM * width and abs(other[1] - pair[1]) < ROOM * height
        for other in pairs
    )


def accuracy_curves(trials: Sequence[TrialRecord], against: Against) -> "Figure":
    """Validation accuracy over outer steps or seconds, a line for each trial that was validated.

    The best trial is on top and in colour. A line that the scheduler stopped ends with a ring, a failed one with a cross.
    """
    figure, axes = _figure(7.6, 4.6)
    validated = [trial for trial in ranked(trials) if trial.curve]
    for order, trial in enumerate(reversed(validated)):
        best = trial is validated[0]
        xs = [getattr(measured, against) for measured in trial.curve]
        ys = [100 * measured.validation_accuracy for measured in trial.curve]
        colour = BEST_COLOUR if best else OTHER_COLOUR
        axes.plot(
            xs, ys,
            color=colour, linewidth=2.6 if best else 1.2, alpha=1.0 if best else 0.6,
            marker="o" if len(xs) == 1 else None, markersize=4, zorder=3 + order / len(validated), label=trial.name,
        )  # fmt: skip
        if trial.status in END_MARKS:
            mark, filling = END_MARKS[trial.status]
            axes.scatter(xs[-1:], ys[-1:], marker=mark, facecolors=filling, edgecolors=colour, s=32, zorder=5)
    _explain(axes, trials, validated)
    axes.set_xlabel(AGAINST_LABELS[against])
    axes.set_ylabel("validation accuracy (%)")
    axes.set_xlim(left=0)
    if not validated:
        axes.set_ylim(0, 100)
        axes.set_xticks([])
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    return figure


def _explain(axes: "Axes", trials: Sequence[TrialRecord], validated: Sequence[TrialRecord]) -> None:
    """The legend: what the colours and the marks mean, and how many trials of each kind there are."""
    from matplotlib.lines import Line2D

    def sample(text: str, colour: str, marker: str | None = None, filling: str | None = None) -> Line2D:
        return Line2D([], [], color=colour, marker=marker, markerfacecolor=filling, label=text, markersize=6)

    entries = []
    if validated:
        best = validated[0]
        assert best.best is not None
        percent = 100 * best.best.validation_accuracy
        entries.append(
            sample(f"best: {best.name}, {percent:.1f}% at step {best.best.outer_step}", BEST_COLOUR)
        )
    for status in ("finished", "running", "stopped", "failed"):
        count = sum(trial.status == status for trial in trials)
        unseen = count - sum(trial.status == status for trial in validated)
        never = f" ({unseen} before the first validation)" if unseen else ""
        if count:
            entries.append(sample(f"{count} {status}{never}", OTHER_COLOUR, *END_MARKS.get(status, ())))
    axes.legend(handles=entries, frameon=False, fontsize=8, loc="lower right")


def save_all(trials: Sequence[TrialRecord], folder: Path) -> list[Path]:
    """Write all pictures that the trials give, as PNG. Returns: their paths."""
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
