"""From which checkpoint each trial of a resumed search goes on, when some are damaged."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ray_distill.core.distilled import DistilledData
from ray_distill.core.outer_optimizer import OuterOptimizer
from ray_distill.core.schedules import Constant
from ray_distill.core.state import RunState
from ray_distill.distillation.checkpoint import save_state
from ray_distill.search.accounting import time_spent
from ray_distill.search.config import SearchConfig
from ray_distill.search.journal import SearchJournal, TrialLog
from ray_distill.search.queue import QueuedTrial, pending_trials
from ray_distill.search.search_dir import SearchDir
from ray_distill.search.trial import STATE, TrialMeta
from ray_distill.storage.remote import Storage
from tests.helpers.tiny_search import tiny_search

LR = "outer.lr"
NAME = "trial-000"


class Listener:
    """Stands for the search's tracking; collects what it is told of damage and ends."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str]] = []

    def log_damaged(self, trial: str, message: str) -> None:
        self.messages.append((trial, message))

    def end_trial(self, trial: str, status: str, reason: str | None) -> None:
        self.messages.append((trial, status))

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def checkpoint(folder: SearchDir, search: SearchConfig, trial: str, step: int) -> str:
    """A whole one after so many outer steps."""
    name = f"tune/attempt-1/{trial}/checkpoint_{step:06d}"
    path = folder.path / name
    path.mkdir(parents=True)
    start = RunState.start(
        DistilledData(torch.rand(2, 1, 2, 2), torch.eye(2)), OuterOptimizer(lr=Constant(1.0))
    )
    save_state(path / STATE, search.hash, start._replace(outer_step=step), [])
    TrialMeta([(0, {LR: 0.1})], 2.0 * step).save(path)
    return name


def report(journal: SearchJournal, folder: SearchDir, search: SearchConfig, trial: str, step: int) -> None:
    kept = checkpoint(folder, search, trial, step)
    journal.write(
        "report",
        trial=trial,
        outer_step=step,
        seconds=2.0 * step,
        validation_accuracy=0.01 * step,
        checkpoint=kept,
    )


@pytest.fixture
def search() -> SearchConfig:
    return tiny_search(space={LR: {"uniform": [0.1, 0.9]}}, scheduler={"name": "none"}, budget={"trials": 1})


@pytest.fixture
def folder(tmp_path: Path, search: SearchConfig) -> SearchDir:
    """A search that was killed as its trial had come to step 15."""
    place = SearchDir(tmp_path)
    journal = SearchJournal(place.journal)
    journal.write("attempt", began_unix_s=0.0, places=1, cores=1)
    journal.write("trial", trial=NAME, values={LR: 0.1})
    for step in (5, 10, 15):
        report(journal, place, search, NAME, step)
    return place


def state(folder: SearchDir, trial: str, step: int) -> Path:
    return folder.path / f"tune/attempt-1/{trial}/checkpoint_{step:06d}" / STATE


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def resumed(
    search: SearchConfig, folder: SearchDir
) -> tuple[list[QueuedTrial], dict[str, TrialLog], Listener]:
    """What a resumed search proposes, what its journal says then, and what was told."""
    listener = Listener()
    proposals = [
        propose() for propose in pending_trials(search, folder, SearchJournal(folder.journal), listener)
    ]
    return proposals, SearchJournal(folder.journal).trials, listener


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    search: SearchConfig, folder: SearchDir
) -> None:
    """Whole: it goes on from 15, and nothing is said. Cut: from 10, and its curve ends there. That one gone too: from 5, and
    then from the start; what was damaged is named."""
    (proposal,), logs, listener = resumed(search, folder)
    assert (logs[NAME].checkpoint_step, listener.messages) == (15, [])
    assert proposal.checkpoint == str(state(folder, NAME, 15).parent)
    for damage, step in ((lambda: cut(state(folder, NAME, 15)), 10), (state(folder, NAME, 10).unlink, 5)):
        damage()
        (proposal,), logs, listener = resumed(search, folder)
        assert proposal.checkpoint == str(state(folder, NAME, step).parent)
        assert [m.outer_step for m in logs[NAME].curve] == [5, 10, 15][: step // 5]
        ((trial, said),) = listener.messages
        assert trial == NAME
        assert said.endswith(f"; the trial resumes from outer step {step}")
    cut(state(folder, NAME, 5))
    (proposal,), logs, listener = resumed(search, folder)
    assert (proposal.checkpoint, proposal.values) == (None, {LR: 0.1})
    assert (logs[NAME].curve, logs[NAME].checkpoint_step, logs[NAME].status) == ([], 0, "running")
    ((_, said),) = listener.messages
    assert said.startswith(str(state(folder, NAME, 5)))
    assert said.endswith("is truncated or corrupt: its digest does not match; the trial restarts")


def test_a_damaged_checkpoint_in_a_storage_is_told_by_its_place_there(
    search: SearchConfig, folder: SearchDir, tmp_path: Path
) -> None:
    """And not by that of the copy which was read."""
    (tmp_path / "store").mkdir()
    (folder.path / "tune").rename(tmp_path / "store" / "tune")
    stored = SearchDir(folder.path, Storage.open(str(tmp_path / "store")))
    place = tmp_path / "store" / f"tune/attempt-1/{NAME}"
    cut(place / "checkpoint_000015" / STATE)
    (proposal,), logs, listener = resumed(search, stored)
    assert (proposal.checkpoint, logs[NAME].checkpoint_step) == (str(place / "checkpoint_000010"), 10)
    assert listener.messages[0][1].startswith(f"{place}/checkpoint_000015/{STATE} is truncated or corrupt")


def test_what_is_computed_again_counts_again(search: SearchConfig, folder: SearchDir) -> None:
    """30 s until step 15, and from step 10, 20 s, to 15 once more: 40 s in loops. The newest checkpoint is then the new one,
    and the damaged one's place in the curve is taken once."""
    cut(state(folder, NAME, 15))
    resumed(search, folder)
    journal = SearchJournal(folder.journal)
    state(folder, NAME, 15).parent.rename(folder.path / "away")
    report(journal, folder, search, NAME, 15)
    assert time_spent(journal._events).loop_core_s == 40.0
    assert [m.outer_step for m in journal.trials[NAME].curve] == [5, 10, 15]
    assert [kept.outer_step for kept in journal.trials[NAME].checkpoints] == [5, 10, 15]


def test_a_trial_whose_last_state_is_damaged_is_not_finished(search: SearchConfig, folder: SearchDir) -> None:
    """Killed between its last report and its end, at step 20: whole, it is finished; cut, and the one before deleted, it
    goes on from 10, and of the deleted one, as older ones are, nothing is said."""
    report(SearchJournal(folder.journal), folder, search, NAME, 20)
    before = folder.journal.read_bytes()
    proposals, logs, listener = resumed(search, folder)
    assert (proposals, logs[NAME].status, listener.messages) == ([], "finished", [(NAME, "finished")])
    folder.journal.write_bytes(before)
    cut(state(folder, NAME, 20))
    state(folder, NAME, 15).unlink()
    (proposal,), logs, listener = resumed(search, folder)
    assert (logs[NAME].checkpoint_step, logs[NAME].status) == (10, "running")
    assert proposal.checkpoint == str(state(folder, NAME, 10).parent)
    assert str(state(folder, NAME, 15)) not in listener.messages[0][1]


def test_a_clone_whose_state_is_damaged_goes_back_on_its_parents_way(
    search: SearchConfig, folder: SearchDir
) -> None:
    """trial-001 took over trial-000's state at step 15 with 0.5 and came to 20. Of 20 damaged, it goes on from 15 with 0.5;
    of 15 damaged too, from its parent's 10 with its parent's 0.1; with nothing left it begins anew with its own 0.2."""
    journal, name = SearchJournal(folder.journal), "trial-001"
    journal.write("trial", trial=name, values={LR: 0.2})
    kept = str(state(folder, NAME, 15).parent.relative_to(folder.path))
    clone = {"trial": name, "parent": NAME, "values": {LR: 0.5}, "checkpoint": kept}
    journal.write("barrier", outer_step=15, clones=[clone])
    report(journal, folder, search, name, 20)
    found = []
    for damaged in (state(folder, name, 20), *(state(folder, NAME, step) for step in (15, 10, 5))):
        cut(damaged)
        _, logs, _ = resumed(search, folder)
        found.append((logs[name].checkpoint_step, logs[name].current_values[LR], logs[name].lineage))
    way = [(0, {LR: 0.1})]
    assert found == [(15, 0.5, [*way, (15, {LR: 0.5})]), (10, 0.1, way), (5, 0.1, way), (0, 0.2, [])]
