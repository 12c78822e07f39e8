"""The progress of a search, from its journal."""

import json
from typing import Any

from ray_distill.core.distributed import SingleProcess
from ray_distill.core.outer_loop import Report, outer_loop
from ray_distill.core.state import RunState
from ray_distill.tuning.config import SearchConfig
from ray_distill.tuning.journal import SearchJournal, TrialLog
from ray_distill.tuning.run import config_values
from ray_distill.tuning.search_dir import SearchDir
from ray_distill.tuning.trial import read_state
from tests.helpers.tiny import Bench


def logs_of(folder: SearchDir) -> dict[str, TrialLog]:
    """The search's trials, by name."""
    return SearchJournal(folder.journal).trials


def events(folder: SearchDir, kind: str) -> list[dict[str, Any]]:
    """The journal's events of a kind; none before there is a journal."""
    lines = folder.journal.read_text().splitlines() if folder.journal.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def bare(search: SearchConfig, log: TrialLog) -> tuple[RunState, list[dict[str, float]]]:
    """The final state of the bare outer loop with the configuration that a trial's lineage is written as, and its metrics."""
    b, reports = Bench(search.search_space.config(config_values(search, log))), list[Report]()
    start = RunState.start(b.initial, b.experiment.outer)
    end = outer_loop(b.experiment, b.train, b.validation, start, SingleProcess(), reports.append)
    return end, [p.values for report in reports for p in report.points]


def kept(search: SearchConfig, folder: SearchDir, log: TrialLog) -> RunState:
    """A trial's last state."""
    assert log.checkpoint is not None
    with folder.open_checkpoint(log.checkpoint) as path:
        return read_state(path, search.hash)[0]


def well_under_way(folder: SearchDir) -> bool:
    """Whether a trial has ended, and a third one has reached a checkpoint."""
    return bool(events(folder, "end")) and len({e["trial"] for e in events(folder, "report")}) >= 3


class Interrupted:
    """The state of a search that was interrupted when it was `well_under_way`, to compare with the resumed search."""

    def __init__(self, folder: SearchDir) -> None:
        logs = logs_of(folder)
        self._folder, self._num_reports = folder, len(events(folder, "report"))
        self._ended = {name for name, log in logs.items() if log.status == "finished"}
        self._running = {name: log.checkpoint_step for name, log in logs.items() if log.status == "running"}
        assert self._ended
        assert any(step > 0 for step in self._running.values())

    def check_resumed(self, values: list[dict[str, Any]], resumed_in: SearchDir | None = None) -> None:
        """Asserts that all trials, with these values, are finished, and that no outer step was reported again; `resumed_in`:
        the folder that the search was resumed in, if another."""
        folder = resumed_in or self._folder
        logs = logs_of(folder)
        assert [log.values for log in logs.values()] == values
        assert {log.status for log in logs.values()} == {"finished"}
        reports = events(folder, "report")[self._num_reports :]
        assert not {e["trial"] for e in reports} & self._ended
        for name, step in self._running.items():
            # One that had reached its last step, without an end in the journal, has nothing more to report.
            steps = [e["outer_step"] for e in reports if e["trial"] == name]
            assert min(steps, default=logs[name].checkpoint_step + 1) > step
