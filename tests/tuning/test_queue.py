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
from ray_distill.storage.remote import Storage
from ray_distill.tuning.accounting import time_spent
from ray_distill.tuning.config import SearchConfig
from ray_distill.tuning.journal import SearchJournal, TrialLog
from ray_distill.tuning.queue import QueuedTrial, pending_trials
from ray_distill.tuning.search_dir import SearchDir
from ray_distill.tuning.trial import STATE, TrialMeta
from tests.helpers.tiny_search import tiny_search

LR = "outer.lr"
NAME = "trial-000"


class Listener:
    """A fake of the search's tracking; collects messages about damage and ends."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str]] = []

    def log_damaged(self, trial: str, message: str) -> None:
        self.messages.append((trial, message))

    def end_trial(self, trial: str, status: str, reason: str | None) -> None:
        self.messages.append((trial, status))

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def checkpoint(folder: SearchDir, search: SearchConfig, trial: str, step: int) -> str:
    """Save a valid one after so many outer steps."""
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
    saved = checkpoint(folder, search, trial, step)
    journal.write(
        "report",
        trial=trial,
        outer_step=step,
        seconds=2.0 * step,
        validation_accuracy=0.01 * step,
        checkpoint=saved,
    )


@pytest.fixture
def search() -> SearchConfig:
    return tiny_search(space={LR: {"uniform": [0.1, 0.9]}}, scheduler={"name": "none"}, budget={"trials": 1})


@pytest.fixture
def folder(tmp_path: Path, search: SearchConfig) -> SearchDir:
    """A search that was killed after its trial had reached step 15."""
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
    """The queue of a resumed search, its journal after that, and the messages."""
    listener = Listener()
    queue = [make() for make in pending_trials(search, folder, SearchJournal(folder.journal), listener)]
    return queue, SearchJournal(folder.journal).trials, listener


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(search: SearchConfig, folder: SearchDir) -> None:
    """Valid: it resumes from 15, without a message. Truncated: from 10, and its curve ends there. That one deleted too: from
    5, and then from the start; the message names the damaged ones."""
    (trial,), logs, listener = resumed(search, folder)
    assert (logs[NAME].checkpoint_step, listener.messages) == (15, [])
    assert trial.checkpoint == str(state(folder, NAME, 15).parent)
    for damage, step in ((lambda: cut(state(folder, NAME, 15)), 10), (state(folder, NAME, 10).unlink, 5)):
        damage()
        (trial,), logs, listener = resumed(search, folder)
        assert trial.checkpoint == str(state(folder, NAME, step).parent)
        assert [m.outer_step for m in logs[NAME].curve] == [5, 10, 15][: step // 5]
        ((name, message),) = listener.messages
        assert name == NAME
        assert message.endswith(f"; the trial resumes from outer step {step}")
    cut(state(folder, NAME, 5))
    (trial,), logs, listener = resumed(search, folder)
    assert (trial.checkpoint, trial.values) == (None, {LR: 0.1})
    assert (logs[NAME].curve, logs[NAME].checkpoint_step, logs[NAME].status) == ([], 0, "running")
    ((_, message),) = listener.messages
    assert message.startswith(str(state(folder, NAME, 5)))
    assert message.endswith("is truncated or corrupt: its digest does not match; the trial restarts")


def test_a_damaged_checkpoint_in_a_storage_is_named_by_its_path_there(
    search: SearchConfig, folder: SearchDir, tmp_path: Path
) -> None:
    """And not by that of the copy that was read."""
    (tmp_path / "store").mkdir()
    (folder.path / "tune").rename(tmp_path / "store" / "tune")
    stored = SearchDir(folder.path, Storage.open(str(tmp_path / "store")))
    place = tmp_path / "store" / f"tune/attempt-1/{NAME}"
    cut(place / "checkpoint_000015" / STATE)
    (trial,), logs, listener = resumed(search, stored)
    assert (trial.checkpoint, logs[NAME].checkpoint_step) == (str(place / "checkpoint_000010"), 10)
    assert listener.messages[0][1].startswith(f"{place}/checkpoint_000015/{STATE} is truncated or corrupt")


def test_repeated_work_counts_again(search: SearchConfig, folder: SearchDir) -> None:
    """30 s until step 15, and from step 10, 20 s, to 15 again: 40 s in loops. The newest checkpoint is then the new one, and
    step 15 is once in the curve."""
    cut(state(folder, NAME, 15))
    resumed(search, folder)
    journal = SearchJournal(folder.journal)
    state(folder, NAME, 15).parent.rename(folder.path / "away")
    report(journal, folder, search, NAME, 15)
    assert time_spent(journal._events).loop_core_s == 40.0
    assert [m.outer_step for m in journal.trials[NAME].curve] == [5, 10, 15]
    assert [saved.outer_step for saved in journal.trials[NAME].checkpoints] == [5, 10, 15]


def test_a_trial_whose_last_state_is_damaged_is_not_finished(search: SearchConfig, folder: SearchDir) -> None:
    """Killed between its last report and its end, at step 20: if that is valid, it is finished; if it is truncated and the one
    before deleted, it resumes from 10, without a message about the deleted one, as Tune deletes older ones."""
    report(SearchJournal(folder.journal), folder, search, NAME, 20)
    before = folder.journal.read_bytes()
    queue, logs, listener = resumed(search, folder)
    assert (queue, logs[NAME].status, listener.messages) == ([], "finished", [(NAME, "finished")])
    folder.journal.write_bytes(before)
    cut(state(folder, NAME, 20))
    state(folder, NAME, 15).unlink()
    (trial,), logs, listener = resumed(search, folder)
    assert (logs[NAME].checkpoint_step, logs[NAME].status) == (10, "running")
    assert trial.checkpoint == str(state(folder, NAME, 10).parent)
    assert str(state(folder, NAME, 15)) not in listener.messages[0][1]


def test_a_clone_with_a_damaged_state_goes_back_along_its_parents_lineage(
    search: SearchConfig, folder: SearchDir
) -> None:
    """trial-001 took over trial-000's state at step 15 with 0.5 and reached 20. With 20 damaged it resumes from 15 with 0.5;
    with 15 damaged too, from its parent's 10 with its parent's 0.1; with nothing left it restarts with its own 0.2."""
    journal, name = SearchJournal(folder.journal), "trial-001"
    journal.write("trial", trial=name, values={LR: 0.2})
    saved = str(state(folder, NAME, 15).parent.relative_to(folder.path))
    clone = {"trial": name, "parent": NAME, "values": {LR: 0.5}, "checkpoint": saved}
    journal.write("barrier", outer_step=15, clones=[clone])
    report(journal, folder, search, name, 20)
    resumed_from = []
    for damaged in (state(folder, name, 20), *(state(folder, NAME, step) for step in (15, 10, 5))):
        cut(damaged)
        _, logs, _ = resumed(search, folder)
        resumed_from.append((logs[name].checkpoint_step, logs[name].current_values[LR], logs[name].lineage))
    parents = [(0, {LR: 0.1})]
    assert resumed_from == [
        (15, 0.5, [*parents, (15, {LR: 0.5})]),
        (10, 0.1, parents),
        (5, 0.1, parents),
        (0, 0.2, []),
    ]
