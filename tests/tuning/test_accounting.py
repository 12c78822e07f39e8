"""Where a search's time went, from made-up journals: each number is derived in the docstring."""

from pathlib import Path
from typing import Any

import pytest

from ray_distill.tuning.accounting import SearchTime, time_spent
from ray_distill.tuning.journal import SearchJournal


def attempt(unix_s: float, began: float, places: int = 2, cores: int = 1) -> dict[str, Any]:
    return {
        "event": "attempt",
        "began_unix_s": began,
        "places": places,
        "cores": cores,
        "unix_s": unix_s,
    }


def report(unix_s: float, trial: str, seconds: float) -> dict[str, Any]:
    return {"event": "report", "trial": trial, "seconds": seconds, "unix_s": unix_s}


def at(unix_s: float, event: str, **fields: Any) -> dict[str, Any]:
    return {"event": event, "unix_s": unix_s, **fields}


FIRST = [
    attempt(105, began=100),
    report(120, "a", 10),
    report(121, "b", 9),
    at(121, "end", trial="b", status="stopped", seconds=None),
    report(131, "a", 20),
    report(140, "c", 12),
]
"""a computed from 110 to 131 but for one second, b from 112 to 121, c from 128 to 140."""


def test_all_core_seconds_are_accounted_for() -> None:
    """Two places of three cores each, from 100 to 150: 300 core seconds. In loops 10 + 9 + 10 + 12 = 41 s, of three cores
    123. The first outer step began at 110: 10 s on six cores. Done at 150: the two places were last used until
    140 by c and until 131 by a, so 10 + 19 s on three cores each. What is left, 300 - 123 - 60 - 87, is between."""
    events = [*FIRST, at(150, "done")]
    events[0] = attempt(105, began=100, cores=3)
    spent = time_spent(events)
    assert (spent.attempts, spent.wall_s, spent.core_s, spent.loop_core_s) == (1, 50, 300, 123)
    assert (spent.start_core_s, spent.end_core_s, spent.between_core_s) == (60, 87, 30)
    assert spent.orchestration == pytest.approx(1 - 123 / 300)
    assert str(spent) == (
        "took 50 s; 41% of the core time in outer loops, 59% orchestration (20% before the first outer step, 10% "
        "between trials, 29% idle at the end)"
    )


def test_while_nothing_runs_no_time_passes() -> None:
    """Killed after 140, its last line, with a and c running; resumed at 1000 on one place of one core, where c continues from
    its 12 s and computes 5 s more from 1010 on, done at 1020. Wall: 40 + 20 s. Core seconds 80 + 20. In loops 41 + 5.
    Before the first step 20 + 10; at the end nothing of the first, since it was killed, and 5 of the second."""
    again = [
        attempt(1002, began=1000, places=1),
        at(1002, "goes_on", trial="c", outer_step=5),
        report(1015, "c", 17),
        at(1020, "done"),
    ]
    spent = time_spent([*FIRST, *again])
    assert (spent.attempts, spent.wall_s, spent.core_s, spent.loop_core_s) == (2, 60, 100, 46)
    assert (spent.start_core_s, spent.end_core_s, spent.between_core_s) == (30, 5, 19)
    assert str(spent).startswith("took 60 s, in 2 commands; 46% of the core time in outer loops, 54% orch")


def test_a_clone_computed_what_came_after_its_parents_state() -> None:
    """b takes over a's state, which took 10 s, and reports 14 s: it computed 9 before and 4 since. That it repeats
    its last report in the resumed search is no computation, and no first step."""
    clones = [{"trial": "b", "parent": "a"}]
    events = [*FIRST[:3], at(121, "barrier", outer_step=5, clones=clones), report(130, "b", 14)]
    assert time_spent(events).loop_core_s == 10 + 9 + 4
    again = [attempt(200, began=200), report(210, "b", 14), report(240, "b", 24), at(250, "done")]
    spent = time_spent([*events, *again])
    assert spent.loop_core_s == 10 + 9 + 4 + 10
    assert spent.start_core_s == 2 * (110 - 100) + 2 * (230 - 200)
    # A place without a trial was idle from the first step on.
    assert spent.end_core_s == (250 - 240) + (250 - 230)


def test_nothing_to_do_is_wall_time_only() -> None:
    """A finished search that is resumed has no places; if time is up at once, all of it is start."""
    assert time_spent([attempt(3, began=0, places=0), at(8, "done")]) == SearchTime(1, 8, 0, 0, 0, 0)
    assert time_spent([attempt(3, began=0, places=0), at(8, "done")]).orchestration == 0
    assert time_spent([attempt(3, began=0), at(8, "done")]) == SearchTime(1, 8, 16, 0, 16, 0)


def test_a_journal_has_the_times_of_its_lines(tmp_path: Path) -> None:
    """An open journal and one that is read back give the same; a failed trial's last seconds count."""
    journal = SearchJournal(tmp_path / "j")
    journal.write("attempt", began_unix_s=0.0, places=1, cores=1)
    journal.write("trial", trial="a", values={})
    journal.write("end", trial="a", status="failed", reason="why", seconds=3.0)
    journal.write("done")
    assert journal.time.loop_core_s == 3.0
    assert journal.time.wall_s > 1e9
    assert SearchJournal(tmp_path / "j").time == journal.time
