"""Where the values of a searched key lie on an axis from 0 to 1: numbers by size, on a log scale if they span one,
words side by side.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ray_distill.search.leaderboard import shown_value
from ray_distill.search.results import Value

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
