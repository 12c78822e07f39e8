"""Figures of a search: all trials, the best on top, values in the right positions."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from ray_distill.tuning.figures import (
    UNROLL,
    WINDOW,
    accuracy_curves,
    axis_scale,
    parallel_coordinates,
    save_figures,
    window_unroll_map,
)
from ray_distill.tuning.journal import TrialLog, ValidationResult


def trial(name: str, accuracies: list[float], status: str = "finished", **values: object) -> TrialLog:
    curve = [ValidationResult(10 * i, 5.0 * i, a) for i, a in enumerate(accuracies, start=1)]
    return TrialLog(name, values, status=status, curve=curve)  # type: ignore[arg-type]


TRIALS = [
    trial("a", [0.2, 0.5], **{WINDOW: 5, UNROLL: 20, "lr": 0.001, "rule": "rat-bptt"}),
    trial("b", [0.9], "stopped", **{WINDOW: 8, UNROLL: 20, "lr": 0.1, "rule": "bptt"}),
    trial("c", [0.3], "failed", **{WINDOW: 8, UNROLL: 40, "lr": 1.0, "rule": "bptt"}),
    trial("d", [], "failed", **{WINDOW: 9, UNROLL: 30, "lr": 10.0, "rule": "bptt"}),
    trial("e", [0.4, 0.6, 0.7], **{UNROLL: 30, "lr": 0.01, "rule": None}),
]


def lines(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    """The points of each trial's line, by name from the bottom to the top."""
    drawn = sorted(figure.axes[0].lines, key=lambda line: line.get_zorder())
    return {str(line.get_label()): tuple(list(xy) for xy in line.get_data()) for line in drawn}  # type: ignore[misc]


def test_parallel_coordinates_have_a_line_for_each_trial_and_the_best_on_top() -> None:
    """lr spans 0.001 to 10, so a decade is a quarter of the axis; accuracies 30 to 90 percent; d was never validated and ends
    at the last key, below all others."""
    drawn = lines(parallel_coordinates(TRIALS))
    assert list(drawn) == ["d", "c", "a", "e", "b"]
    positions = {name: ys for name, (_, ys) in drawn.items()}
    assert len(positions["d"]) == 4
    assert [positions[name][2] for name in "aebcd"] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert [positions[name][3] for name in "eba"] == [0.0, 0.5, 1.0]
    assert [positions[name][4] for name in "caeb"] == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
    assert positions["e"][0] == 0.0, "no window: below all that have one"


def test_curves_are_the_validations_in_percent() -> None:
    """The best on top; d has no curve; b was stopped and c failed, so each ends with a marker."""
    steps = lines(accuracy_curves(TRIALS, "outer_step"))
    assert list(steps) == ["c", "a", "e", "b"]
    assert steps["e"] == ([10, 20, 30], pytest.approx([40.0, 60.0, 70.0]))
    figure = accuracy_curves(TRIALS, "seconds")
    assert lines(figure)["e"][0] == [5.0, 10.0, 15.0]
    assert sorted(m.get_offsets().tolist()[0] for m in figure.axes[0].collections) == [
        [5.0, 30.0],
        [5.0, 90.0],
    ]
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "best: b, 90.0% at step 10",
        "2 finished",
        "1 stopped",
        "2 failed (1 before the first validation)",
    ]


def test_the_map_has_a_point_for_each_pair() -> None:
    """The better of two trials with one pair; e has no window; d's pair was never validated."""
    again = trial("f", [0.1], **{WINDOW: 5, UNROLL: 20})
    figure = window_unroll_map([*TRIALS, again])
    assert figure is not None
    unknown, known, best = figure.axes[0].collections
    assert unknown.get_offsets().tolist() == [[9, 30]]
    points = {
        tuple(p): v for p, v in zip(known.get_offsets().tolist(), known.get_array().tolist(), strict=True)
    }
    assert points == pytest.approx({(8.0, 40.0): 30.0, (5.0, 20.0): 50.0, (8.0, 20.0): 90.0})
    assert best.get_offsets().tolist() == [[8, 20]]
    assert window_unroll_map([trial("a", [0.5], lr=1.0)]) is None


@pytest.mark.parametrize(
    ("values", "positions", "texts"),
    [
        ([3, 3], [0.5, 0.5], ["3"]),
        ([1, 2, 5], [0.0, 0.25, 1.0], ["1", "2", "5"]),
        ([0.01, 1.0, 0.1], [0.0, 1.0, 0.5], ["0.01", "0.1", "1"]),
        ([True, False], [1.0, 0.0], ["false", "true"]),
        (["b", "a", None, 10, 2], [1.0, 0.75, 0.0, 0.5, 0.25], ["none", "2", "10", "a", "b"]),
        ([-1.0, 0.0, 1.0], [0.0, 0.5, 1.0], ["-1", "0", "1"]),
        ([None, 1, 2], [0.0, 0.14, 1.0], ["none", "1", "2"]),
    ],
)  # fmt: skip
def test_positions_on_an_axis(values: list, positions: list[float], texts: list[str]) -> None:  # type: ignore[type-arg]
    scale = axis_scale(values)
    assert [scale.position(value) for value in values] == pytest.approx(positions)
    assert [text for _, text in scale.ticks] == texts


@pytest.mark.parametrize("number", [1, 4, 5])
def test_all_figures_are_written(tmp_path: Path, number: int) -> None:
    """Of one trial, of several, and of a single one that was never validated."""
    trials = [TRIALS[3]] if number == 4 else TRIALS[:number]
    paths = save_figures(trials, tmp_path)
    assert [path.stem for path in paths] == [
        "parallel_coordinates",
        "window_unroll",
        "accuracy_over_steps",
        "accuracy_over_seconds",
    ]
    for path in paths:
        colours = Image.open(path).convert("L").getcolors()
        assert len(colours) > 10
