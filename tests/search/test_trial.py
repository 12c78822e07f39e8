"""A trial without Ray: what it tells, what its checkpoints hold, and how it is taken up again."""

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from ray_distill.config.config import Config
from ray_distill.core.distributed import SingleProcess
from ray_distill.core.outer_loop import outer_loop
from ray_distill.core.state import RunState
from ray_distill.distillation.checkpoint import to_record
from ray_distill.distillation.recovery import NoValidCheckpointError
from ray_distill.distillation.worker import WorkerContext, open_worker_context
from ray_distill.search.trial import (
    META,
    STATE,
    TrialMeta,
    load_newest,
    read_state,
    resume_or_start,
    train_trial,
)
from tests.helpers.tiny import Bench, tiny_config, tiny_data

CPU = torch.device("cpu")
VALUES = {"outer.lr": 0.01, "inner.lr": 1e-3}


class StoppedError(Exception):
    """Tune's decision."""


class Told:
    """What a trial tells, with a copy of each checkpoint; stops it after some validation."""

    def __init__(self, folder: Path, stop_at: int | None = None) -> None:
        self._folder, self._stop_at = folder, stop_at
        self.said: list[dict[str, Any]] = []

    def __call__(self, said: dict[str, Any], checkpoint: Path | None) -> None:
        self.said.append(said)
        if checkpoint is not None:
            copytree(checkpoint, self.at(said["outer_step"]))
        if said["outer_step"] == self._stop_at:
            raise StoppedError

    def at(self, outer_step: int) -> Path:
        return self._folder / str(outer_step)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def place_of(config: Config) -> WorkerContext:
    data = tiny_data(config)
    return open_worker_context(config, data.handle, lambda: data.preprocessing, CPU)


def told(
    config: Config,
    folder: Path,
    *,
    stop_at: int | None = None,
    since: Path | None = None,
    values: dict[str, Any] = VALUES,
    damaged: str = "",
) -> Told:
    """A trial from a checkpoint or the start, to its end or a stop."""
    place, listener = place_of(config), Told(folder, stop_at)
    state, meta = resume_or_start(since and read_state(since, "hash"), place, values)
    try:
        train_trial(place, state, meta, SingleProcess(), "hash", listener, damaged)
    except StoppedError:
        assert stop_at is not None
    return listener


def test_a_trial_tells_of_each_validation_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Whatever the run's own cadence: a report and a checkpoint every 5 outer steps, with all points since the last.
    Stopped at 10 and taken up again it tells what an undisturbed one does and ends with the bare loop's state."""
    config = tiny_config(checkpoint={"every": 7}, tracking={"report_every": 3})
    whole = told(config, tmp_path / "whole")
    first = told(config, tmp_path / "first", stop_at=10)
    second = told(config, tmp_path / "second", since=first.at(10))
    parts = [*first.said, *second.said]
    assert [said["outer_step"] for said in whole.said] == [5, 10, 15, 20]
    assert [said["validations"] for said in whole.said] == [1, 2, 3, 4]
    for one, other in zip(parts, whole.said, strict=True):
        for key in ("outer_step", "validation_accuracy", "best_validation_accuracy", "values"):
            assert one[key] == other[key]
        step = one["outer_step"]
        assert [point[0] for point in one["points"]] == list(range(step - 4, step + 1))
    seconds = [said["seconds"] for said in parts]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    b = Bench(config)
    start = RunState.start(b.initial, b.experiment.outer)
    bare = outer_loop(b.experiment, b.train, b.validation, start, SingleProcess(), lambda _: None)
    state, meta = resume_or_start(read_state(second.at(20), "hash"), place_of(config), VALUES)
    assert torch.equal(state.data.images_NCHW, bare.data.images_NCHW)
    assert to_record(state)[1] == to_record(bare)[1]
    assert meta.lineage == [(0, VALUES)]
    assert meta.report == {key: value for key, value in second.said[-1].items() if key != "points"}


@pytest.mark.parametrize("key", ["outer.lr", "inner.lr"])
def test_a_changed_value_is_in_the_lineage(tmp_path: Path, key: str) -> None:
    """Taken up with another value: known from which step on. The best set stays, unless the networks that judge sets
    are trained otherwise now."""
    config, changed = tiny_config(), VALUES | {key: 2e-3}
    first = told(config, tmp_path, stop_at=5)
    state, meta = resume_or_start(read_state(first.at(5), "hash"), place_of(config), changed)
    assert meta.lineage == [(0, VALUES), (5, changed)]
    assert (state.best is None) == (key == "inner.lr")
    assert TrialMeta.load(first.at(5)).lineage == [(0, VALUES)]


def test_a_trial_that_diverges_says_so(tmp_path: Path) -> None:
    """An inner step size of 1e300 makes every metagradient NaN: a report with the reason and the points so far, after
    two steps, and no checkpoint."""
    config = tiny_config(inner={"lr": 1e300}, outer={"steps": 20, "max_nonfinite_steps": 2})
    (said,) = told(config, tmp_path).said
    assert "the metagradient is not finite" in said["reason"]
    assert (said["outer_step"], said["best_validation_accuracy"]) == (0, 0.0)
    assert [point[0] for point in said["points"]] == [1]
    assert said["seconds"] > 0
    assert list(tmp_path.iterdir()) == []


def test_what_was_passed_over_is_told_once(tmp_path: Path) -> None:
    """With the first report after it, and not kept in a checkpoint."""
    found = told(tiny_config(outer={"steps": 10}), tmp_path, damaged="step 15 was cut")
    assert [said.get("damaged") for said in found.said] == ["step 15 was cut", None]
    assert TrialMeta.load(found.at(5)).report == {
        key: value for key, value in found.said[0].items() if key not in ("points", "damaged")
    }


def test_workers_go_on_from_the_newest_checkpoint_that_is_whole(tmp_path: Path) -> None:
    """Of a trial with several workers after a loss: of those that Tune gave and Ray Train has, the last; its state cut, the
    one before; that one's lineage altered, the one before that; with none left, none. Each time all that were passed over
    are named."""
    from ray.train import Checkpoint

    from ray_distill.search.multi_worker_trial import load_newest_on_all_ranks

    config = tiny_config(outer={"steps": 15})
    first, place = told(config, tmp_path), place_of(config)
    lying = [Checkpoint.from_directory(first.at(step)) for step in (5, 10, 15)]

    def newest() -> tuple[int, str]:
        kept, said = load_newest_on_all_ranks(lying, place, SingleProcess(), "hash")
        return (kept[0].outer_step if kept else 0), said

    assert newest() == (15, "")
    cut(first.at(15) / STATE)
    step, said = newest()
    assert step == 10
    assert said.startswith(f"15: {first.at(15) / STATE} is truncated or corrupt")
    assert said.endswith("the trial resumes from outer step 10")
    cut(first.at(10) / META)
    step, said = newest()
    assert step == 5
    assert "15: " in said
    assert f"10: {first.at(10) / META} is truncated or corrupt" in said
    (first.at(5) / META).unlink()
    step, said = newest()
    assert (step, said.count("; ")) == (0, 3)
    assert said.endswith("the trial resumes from outer step 0")


def test_a_trials_process_goes_on_from_the_newest_whole_checkpoint_with_its_values(tmp_path: Path) -> None:
    """Of the one that Tune gives, whatever it was kept with; cut, of the older one beside it; not of one that was kept with
    other values, as a clone finds it beside its parent's."""
    from ray.tune import Checkpoint

    first = told(tiny_config(outer={"steps": 15}), tmp_path)
    given = Checkpoint.from_directory(first.at(15).rename(tmp_path / "checkpoint_000002"))
    for name, step in (("checkpoint_000000", 5), ("checkpoint_000001", 10)):
        first.at(step).rename(tmp_path / name)
    other = VALUES | {"outer.lr": 0.5}
    for values in (VALUES, other):
        (state, _), said = load_newest(given, values, "hash", CPU)
        assert (state.outer_step, said) == (15, "")
    cut(tmp_path / "checkpoint_000002" / STATE)
    (state, _), said = load_newest(given, VALUES, "hash", CPU)
    assert state.outer_step == 10
    assert said.startswith("checkpoint_000002: ")
    assert said.count("checkpoint_") == 2, said
    assert said.endswith("the trial resumes from outer step 10")
    with pytest.raises(
        NoValidCheckpointError, match=r"checkpoint_000002: .*checkpoint_000000: was saved with other"
    ):
        load_newest(given, other, "hash", CPU)
