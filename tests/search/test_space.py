"""Where trials' values come from: functions of the search file, and of what the trials before came to."""

from pathlib import Path
from typing import Any

from ray_distill.search.config import SearchConfig
from ray_distill.search.journal import SearchJournal
from ray_distill.search.population import as_schedules, explore
from ray_distill.search.sampler import OptunaSampler, planned_values, trial_name, trial_number, uniform
from tests.helpers.tiny import TINY
from tests.helpers.tiny_search import SPACE, tiny_search


def test_trials_are_a_function_of_the_file() -> None:
    """More trials begin with the same ones; another seed has others; trial 0 is the base; names lead to numbers."""
    few, many = planned_values(tiny_search()), planned_values(tiny_search(budget={"trials": 9}))
    assert many[:4] == few == planned_values(tiny_search(name="again"))
    assert few[0] == tiny_search().search_space.base_values()
    assert planned_values(tiny_search(seed=1))[1] != few[1]
    assert len({repr(values) for values in many}) == 9
    assert trial_number(trial_name(1234)) == 1234


PBT = {
    "scheduler": {"name": "pbt", "every": 5, "resample": 0.3},
    "space": SPACE
    | {
        "inner.lr": {"loguniform": [1e-3, 1e-2]},
        "truncation.window_length": {"uniform": [0.2, 1.0], "fraction_of": "truncation.unroll_length"},
    },
}


def test_a_thousand_changes_stay_in_the_space() -> None:
    """Whatever a member takes over is a configuration with its window within its unroll, and moves every key both ways."""
    search = tiny_search(**PBT)
    values, moved = search.search_space.base_values(), set()
    for step in range(1000):
        new = explore(search, values, step, 1)
        search.search_space.config(new)
        assert new["truncation.window_length"] >= 0.2 * new["truncation.unroll_length"]
        moved |= {(key, new[key] > values[key]) for key in new if new[key] != values[key]}
        values = new
    assert moved == {(key, up) for key in values for up in (True, False)}


def test_without_resampling_a_value_moves_by_a_quarter() -> None:
    """A step size is multiplied or divided by 1.25, a length of 3 moves by one; a choice goes to its neighbour."""
    space = SPACE | {"outer.lr": {"choice": [0.001, 0.01, 0.1]}, "inner.lr": {"loguniform": [1e-4, 1e-2]}}
    search = tiny_search(scheduler={"name": "pbt", "every": 5, "resample": 0.0}, space=space)
    base = search.search_space.base_values()
    seen: dict[str, set[Any]] = {key: set() for key in base}
    for number in range(40):
        for key, value in explore(search, base, 5, number).items():
            seen[key].add(value)
    assert seen["inner.lr"] == {0.0008, 0.00125}
    assert seen["outer.lr"] == {0.001, 0.1}
    assert seen["truncation.unroll_length"] == {5, 8}
    assert seen["truncation.window_length"] == {2, 4}


def test_a_way_as_schedules() -> None:
    """Values that changed are piecewise, from the steps where they did; the others are numbers; it is a
    configuration whose schedules give these values."""
    search = tiny_search(**PBT)
    first = search.search_space.base_values()
    second = first | {"outer.lr": 0.02}
    third = second | {"outer.lr": 0.03, "truncation.window_length": 2}
    values = as_schedules(search, [(0, first), (5, second), (10, third)])
    assert values == {
        "truncation.unroll_length": 6,
        "truncation.window_length": {"schedule": "piecewise", "values": [3, 2], "from_steps": [0, 10]},
        "outer.lr": {"schedule": "piecewise", "values": [0.01, 0.02, 0.03], "from_steps": [0, 5, 10]},
        "inner.lr": 0.001,
    }
    config = search.search_space.full_config(values)
    assert config.outer.lr.from_steps == (0, 5, 10)  # type: ignore[union-attr]


def tried(search: SearchConfig, path: Path, count: int) -> list[dict[str, Any]]:
    """Trials of Optuna's whose accuracy is best at outer.lr 0.1, drawn one after another by a new sampler each."""
    found = []
    for number in range(count):
        journal = SearchJournal(path)
        drawn = OptunaSampler(search, journal).sample(number)
        found.append(drawn.values)
        name = trial_name(number)
        journal.write("trial", trial=name, values=drawn.values, numbers=drawn.numbers)
        accuracy = float(str(drawn.values["outer.lr"])) * 5
        report = {"outer_step": 5, "seconds": 1.0, "validation_accuracy": accuracy, "checkpoint": None}
        journal.write("report", trial=name, **report)
        journal.write("end", trial=name, status="finished", reason=None)
    return found


def test_optuna_learns_and_a_resumed_search_goes_on_as_it_would_have(tmp_path: Path) -> None:
    """The same trials whenever they are drawn; later ones are nearer to the best step size than random ones."""
    search = tiny_search(algorithm="optuna", budget={"trials": 30})
    found = tried(search, tmp_path / "a", 30)
    again = tried(search, tmp_path / "b", 15)
    assert again == found[:15]
    assert found[0] == search.search_space.base_values()
    for values in found:
        search.search_space.config(values)
    late = sorted(values["outer.lr"] for values in found[15:])[7]
    random = sorted(values["outer.lr"] for values in planned_values(tiny_search(budget={"trials": 30}))[15:])[
        7
    ]
    assert late > 2 * random


def test_numbers_of_a_search_are_apart() -> None:
    """Another use, step or trial is another number."""
    search = tiny_search(base=TINY)
    numbers = {uniform(search, use, step, n) for use in "ab" for step in (0, 5) for n in (0, 1)}
    assert len(numbers) == 8
    assert all(0 <= number < 1 for number in numbers)
