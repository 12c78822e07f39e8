"""Pictures of an evaluation: that they show the numbers, and that nothing runs out of them or into another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

from ray_distill.evaluation.figures import bars, over_images, over_steps, write_figures
from ray_distill.evaluation.results import ResultRow


def row(
    mean: float | None = 0.5, subject: str = "mine", network: str = "convnet3", steps: int = 100, **other: Any
) -> ResultRow:
    values: dict[str, Any] = {"kind": "distilled", "treatment": "own", "num_images": 10, "half_width": 0.02}
    values |= {"n": 3, "std": 0.01, "num_failed": 0, "reason": None} | other
    return ResultRow(subject=subject, network=network, inner_steps=steps, mean=mean, **values)


REAL = {"subject": "random_real", "kind": "random_real"}


def whiskers(container: Any) -> list[list[float]]:
    """The ends of each, along the axis of the accuracies."""
    (segments,) = container.lines[2]
    axis = 1 if container.has_yerr else 0
    return [[end[axis] for end in segment] for segment in segments.get_segments()]


def names(figure: Any) -> list[str]:
    return [text.get_text().replace("\N{NO-BREAK SPACE}", " ") for text in figure.legends[0].get_texts()]


def test_bars_are_as_long_as_the_accuracies_in_percent() -> None:
    """The last horizon alone; a whisker is the interval; what failed and what stands for a subset are left out."""
    rows = [
        row(0.4, steps=50),
        row(0.5),
        row(0.6, network="mlp1", half_width=None),
        row(None, network="mlp1", half_width=None, **REAL),
        row(0.2, **REAL),
        row(0.1, kind="subset", num_images=2),
    ]
    figure = bars(rows)
    assert figure is not None
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([50, 20, 60])
    drawn = [whiskers(c) for c in axes.containers if not hasattr(c, "patches")]
    assert drawn[:2] == [[pytest.approx([48, 52])], [pytest.approx([18, 22])]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["convnet3", "mlp1"]
    assert names(figure) == ["mine (10 images)", "random real images (10 images)"]
    assert axes.get_xlabel() == "test accuracy (%)"
    assert axes.get_xlim()[0] == 0


def test_whiskers_end_where_accuracies_do() -> None:
    """An interval of 0.9 +- 0.3 is drawn up to 100%; its number has room beside it."""
    figure = bars([row(0.9, half_width=0.3), row(0.1, half_width=0.3, network="mlp1")])
    assert figure is not None
    (axes,) = figure.axes
    drawn = [whiskers(c) for c in axes.containers if not hasattr(c, "patches")]
    assert drawn == [[pytest.approx([60, 100])], [pytest.approx([0, 40])]]
    assert axes.get_xlim()[1] > 100


def test_treatments_share_a_colour_and_differ_by_hatching() -> None:
    rows = [
        row(0.5),
        row(0.4, treatment="hard_labels"),
        row(0.3, treatment="no_augmentation"),
        row(0.2, **REAL),
    ]
    figure = bars(rows)
    assert figure is not None
    patches = figure.axes[0].patches
    assert len({bar.get_facecolor() for bar in patches[:3]}) == 1
    assert len({bar.get_hatch() for bar in patches[:3]}) == 3
    assert patches[3].get_facecolor() != patches[0].get_facecolor()


def test_without_anything_done_there_are_no_pictures(tmp_path: Path) -> None:
    assert write_figures(tmp_path, [row(None, half_width=None)]) == []
    assert write_figures(tmp_path, []) == []


def test_lines_run_over_the_horizons() -> None:
    """In the places of the horizons, moved by less than a twentieth; one horizon alone is a level line."""
    rows = [row(a, steps=s) for a, s in ((0.4, 50), (0.5, 100), (0.55, 300))]
    rows += [row(a, steps=s, **REAL) for a, s in ((0.2, 50), (0.3, 100), (0.25, 300))]
    rows += [row(0.9, "whole_train", steps=7000, kind="whole_train", num_images=1000)]
    figure = over_steps(rows)
    assert figure is not None
    (axes,) = figure.axes
    first, second = (container.lines[0] for container in axes.containers)
    assert list(first.get_xdata()) == pytest.approx([50, 100, 300], rel=0.05)
    assert list(first.get_ydata()) == pytest.approx([40, 50, 55])
    assert list(second.get_ydata()) == pytest.approx([20, 30, 25])
    assert whiskers(axes.containers[0])[2] == pytest.approx([53, 57])
    level = next(line for line in axes.lines if line.get_linestyle() == "--")
    assert list(level.get_ydata()) == pytest.approx([90, 90])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["300", "100", "50"]


def test_one_horizon_makes_no_lines() -> None:
    assert over_steps([row(), row(0.9, "whole_train", steps=700, kind="whole_train")]) is None


def test_subsets_run_up_to_their_set() -> None:
    """Of 1, 2 and 5 images of 10 classes, and all 100; a set distilled to 10 images is a point beside them."""
    rows = [row(0.7, num_images=100), row(0.5, "small"), row(0.3, num_images=100, **REAL)]
    rows += [row(a, kind="subset", num_images=n) for a, n in ((0.6, 50), (0.2, 10), (0.4, 20))]
    rows += [row(0.65, network="mlp1", num_images=100)]
    figure = over_images(rows)
    assert figure is not None
    (axes,) = figure.axes
    lines = [container.lines[0] for container in axes.containers]
    assert list(lines[0].get_xdata()) == pytest.approx([10, 20, 50, 100], rel=0.05)
    assert list(lines[0].get_ydata()) == pytest.approx([20, 40, 60, 70])
    assert [list(line.get_ydata()) for line in lines[1:]] == [pytest.approx([50]), pytest.approx([30])]
    assert over_images(rows[:3]) is None


def test_a_subject_has_one_colour_in_all_pictures() -> None:
    rows = [row(a, steps=s) for a, s in ((0.4, 50), (0.5, 100))]
    rows += [row(0.2, steps=100, **REAL), row(0.3, kind="subset", num_images=5)]
    drawn = [bars(rows), over_steps(rows), over_images(rows)]
    colours = []
    for figure in drawn:
        assert figure is not None
        (axes,) = figure.axes
        marked = axes.patches[1] if axes.patches else axes.lines[-1]
        colours.append(to_hex(marked.get_facecolor() if axes.patches else marked.get_color()))
    assert len(set(colours)) == 1


def test_more_subjects_than_colours_still_differ() -> None:
    """Nine subjects: the ninth has the first one's colour, and a hatch."""
    figure = bars([row(0.5, f"set {i}") for i in range(9)])
    assert figure is not None
    looks = {(bar.get_facecolor(), bar.get_hatch()) for bar in figure.axes[0].patches}
    assert len(looks) == 9


def crowd() -> list[ResultRow]:
    """Ten networks, and names that are too long."""
    networks = [f"network{i}" for i in range(8)] + ["torchvision:mobilenet_v3_small", "resnet18-bn"]
    long = ["a_set_with_a_name_that_says_how_it_was_made_and_of_what_seed_1", "another one"]
    return [
        row(0.3 + 0.01 * i, subject, network, steps, kind=kind)
        for subject in long
        for kind in ("distilled", "subset")
        for i, network in enumerate(networks)
        for steps in (100, 3000)
    ] + [row(1.0, f"herding beside {long[0]}", network, 3000, kind="herding") for network in networks]


def boxes(figure: Any) -> tuple[Any, Sequence[tuple[str, Any]]]:
    """The figure's box and that of each text which can be seen, in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    unseen = {
        label
        for axes in figure.axes
        for i, axis in enumerate((axes.xaxis, axes.yaxis))
        for label in axis.get_ticklabels()
        if not min(axis.get_view_interval()) <= label.get_position()[i] <= max(axis.get_view_interval())
    }
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    texts = [text for text in texts if text not in unseen]
    renderer = canvas.get_renderer()
    return figure.bbox, [(text.get_text(), text.get_window_extent(renderer)) for text in texts]


@pytest.mark.parametrize("draw", [bars, over_steps, over_images])
def test_no_text_runs_out_of_the_picture_or_into_another(draw: Any) -> None:
    outer, every = boxes(draw(crowd()))
    for name, box in every:
        assert outer.x0 - 1 <= box.x0, name
        assert box.x1 <= outer.x1 + 1, name
        assert outer.y0 - 1 <= box.y0, name
        assert box.y1 <= outer.y1 + 1, name
    for i, (name, box) in enumerate(every):
        for other, another in every[i + 1 :]:
            assert not box.shrunk(0.9, 0.9).overlaps(another.shrunk(0.9, 0.9)), (name, other)


def test_pictures_are_written_whole_and_can_be_opened(tmp_path: Path) -> None:
    rows = [row(a, steps=s) for a, s in ((0.4, 50), (0.5, 100))] + [row(0.3, kind="subset", num_images=5)]
    paths = write_figures(tmp_path, rows)
    assert [path.name for path in paths] == [
        "accuracy.png",
        "accuracy_over_steps.png",
        "accuracy_over_images.png",
    ]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert image.width == 7.5 * 150


def test_ticks_too_close_are_left_out() -> None:
    """300, 310, 320 and 3,000: of the first three the last is kept."""
    figure = over_steps([row(0.5, steps=s) for s in (300, 310, 320, 3000)])
    assert figure is not None
    assert list(figure.axes[0].get_xticks()) == [3000, 320]
