"""What a search has done so far, from its journal."""

import json
from typing import Any

from ray_distill.search_journal import SearchFolder, SearchJournal, TrialLog


def logs_of(folder: SearchFolder) -> dict[str, TrialLog]:
    """What the search knows of its trials."""
    return SearchJournal(folder.journal).logs


def events(folder: SearchFolder, kind: str) -> list[dict[str, Any]]:
    """The journal's lines of a kind; none before there is one."""
    lines = folder.journal.read_text().splitlines() if folder.journal.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def well_under_way(folder: SearchFolder) -> bool:
    """Whether a trial has ended, and a third one has come to a checkpoint."""
    return bool(events(folder, "end")) and len({e["trial"] for e in events(folder, "report")}) >= 3


class Interrupted:
    """A search that something has stopped when it was well under way, to be held against what it is when it is resumed."""

    def __init__(self, folder: SearchFolder) -> None:
        logs = logs_of(folder)
        self._folder, self._num_reports = folder, len(events(folder, "report"))
        self._ended = {name for name, log in logs.items() if log.status == "finished"}
        self._under_way = {name: log.outer_step for name, log in logs.items() if log.status == "running"}
        assert self._ended
        assert any(step > 0 for step in self._under_way.values())

    def check_resumed(self, values: list[dict[str, Any]]) -> None:
        """Asserts that all trials, with these values, are finished, and that no outer step was reported again."""
        logs = logs_of(self._folder)
        assert [log.values for log in logs.values()] == values
        assert {log.status for log in logs.values()} == {"finished"}
        reports = events(self._folder, "report")[self._num_reports :]
        assert not {e["trial"] for e in reports} & self._ended
        for name, step in self._under_way.items():
            assert min(e["outer_step"] for e in reports if e["trial"] == name) > step
