"""A trial without Ray: what it reports, what its checkpoints contain, and how it is resumed."""

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
from ray_distill.tuning.trial import (
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


class Reports:
    """Collects what a trial reports, with a copy of each checkpoint; stops it after some validation."""

    def __init__(self, folder: Path, stop_at: int | None = None) -> None:
        self._folder, self._stop_at = folder, stop_at
        self.metrics: list[dict[str, Any]] = []

    def __call__(self, metrics: dict[str, Any], checkpoint: Path | None) -> None:
        self.metrics.append(metrics)
        if checkpoint is not None:
            copytree(checkpoint, self.at(metrics["outer_step"]))
        if metrics["outer_step"] == self._stop_at:
            raise StoppedError

    def at(self, outer_step: int) -> Path:
        return self._folder / str(outer_step)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def context_of(config: Config) -> WorkerContext:
    data = tiny_data(config)
    return open_worker_context(config, data.handle, lambda: data.preprocessing, CPU)


def train(
    config: Config,
    folder: Path,
    *,
    stop_at: int | None = None,
    since: Path | None = None,
    values: dict[str, Any] = VALUES,
    damaged: str = "",
) -> Reports:
    """A trial from a checkpoint or the start, to its end or a stop."""
    context, listener = context_of(config), Reports(folder, stop_at)
    state, meta = resume_or_start(since and read_state(since, "hash"), context, values)
    try:
        train_trial(context, state, meta, SingleProcess(), "hash", listener, damaged)
    except StoppedError:
        assert stop_at is not None
    return listener


def test_a_trial_reports_each_validation_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Whatever the run's own cadence: a report and a checkpoint every 5 outer steps, with all steps since the last. Stopped
    at 10 and resumed it reports what an uninterrupted one does and ends with the bare loop's state."""
    config = tiny_config(checkpoint={"every": 7}, tracking={"report_every": 3})
    whole = train(config, tmp_path / "whole")
    first = train(config, tmp_path / "first", stop_at=10)
    second = train(config, tmp_path / "second", since=first.at(10))
    parts = [*first.metrics, *second.metrics]
    assert [message["outer_step"] for message in whole.metrics] == [5, 10, 15, 20]
    assert [message["validations"] for message in whole.metrics] == [1, 2, 3, 4]
    for one, other in zip(parts, whole.metrics, strict=True):
        for key in ("outer_step", "validation_accuracy", "best_validation_accuracy", "values"):
            assert one[key] == other[key]
        step = one["outer_step"]
        assert [point[0] for point in one["points"]] == list(range(step - 4, step + 1))
    seconds = [message["seconds"] for message in parts]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    b = Bench(config)
    start = RunState.start(b.initial, b.experiment.outer)
    bare = outer_loop(b.experiment, b.train, b.validation, start, SingleProcess(), lambda _: None)
    state, meta = resume_or_start(read_state(second.at(20), "hash"), context_of(config), VALUES)
    assert torch.equal(state.data.images_NCHW, bare.data.images_NCHW)
    assert to_record(state)[1] == to_record(bare)[1]
    assert meta.lineage == [(0, VALUES)]
    assert meta.report == {key: value for key, value in second.metrics[-1].items() if key != "points"}


@pytest.mark.parametrize("key", ["outer.lr", "inner.lr"])
def test_a_changed_value_is_in_the_lineage(tmp_path: Path, key: str) -> None:
    """With the step from which on it is used, after resuming with it. The best set stays, unless the networks that evaluate
    sets are trained differently now."""
    config, changed = tiny_config(), VALUES | {key: 2e-3}
    first = train(config, tmp_path, stop_at=5)
    state, meta = resume_or_start(read_state(first.at(5), "hash"), context_of(config), changed)
    assert meta.lineage == [(0, VALUES), (5, changed)]
    assert (state.best is None) == (key == "inner.lr")
    assert TrialMeta.load(first.at(5)).lineage == [(0, VALUES)]


def test_a_trial_that_diverges_reports_why(tmp_path: Path) -> None:
    """An inner step size of 1e300 makes every metagradient NaN: a report with the reason and the points so far, after
    two steps, and no checkpoint."""
    config = tiny_config(inner={"lr": 1e300}, outer={"steps": 20, "max_nonfinite_steps": 2})
    (message,) = train(config, tmp_path).metrics
    assert "the metagradient is not finite" in message["reason"]
    assert (message["outer_step"], message["best_validation_accuracy"]) == (0, 0.0)
    assert [point[0] for point in message["points"]] == [1]
    assert message["seconds"] > 0
    assert list(tmp_path.iterdir()) == []


def test_damaged_checkpoints_are_reported_once(tmp_path: Path) -> None:
    """With the first report, and not in a checkpoint."""
    found = train(tiny_config(outer={"steps": 10}), tmp_path, damaged="step 15 was cut")
    assert [message.get("damaged") for message in found.metrics] == ["step 15 was cut", None]
    assert TrialMeta.load(found.at(5)).report == {
        key: value for key, value in found.metrics[0].items() if key not in ("points", "damaged")
    }


def test_workers_resume_from_the_newest_valid_checkpoint(tmp_path: Path) -> None:
    """A trial with several workers: the last of Tune's and Ray Train's; with a truncated state, the one before; with that one's
    lineage truncated, the one before that; with none left, none. The message names all damaged ones."""
    from ray.train import Checkpoint

    from ray_distill.tuning.multi_worker_trial import load_newest_on_all_ranks

    config = tiny_config(outer={"steps": 15})
    first, context = train(config, tmp_path), context_of(config)
    checkpoints = [Checkpoint.from_directory(first.at(step)) for step in (5, 10, 15)]

    def newest() -> tuple[int, str]:
        saved, message = load_newest_on_all_ranks(checkpoints, context, SingleProcess(), "hash")
        return (saved[0].outer_step if saved else 0), message

    assert newest() == (15, "")
    cut(first.at(15) / STATE)
    step, message = newest()
    assert step == 10
    assert message.startswith(f"15: {first.at(15) / STATE} is truncated or corrupt")
    assert message.endswith("the trial resumes from outer step 10")
    cut(first.at(10) / META)
    step, message = newest()
    assert step == 5
    assert "15: " in message
    assert f"10: {first.at(10) / META} is truncated or corrupt" in message
    (first.at(5) / META).unlink()
    step, message = newest()
    assert (step, message.count("; ")) == (0, 3)
    assert message.endswith("the trial resumes from outer step 0")


def test_a_trial_resumes_from_the_newest_valid_checkpoint_with_its_values(tmp_path: Path) -> None:
    """Tune's, whatever values it was saved with; if that is truncated, the older one in the same folder; but not one saved with
    other values, as in the folder of a clone's parent."""
    from ray.tune import Checkpoint

    first = train(tiny_config(outer={"steps": 15}), tmp_path)
    checkpoint = Checkpoint.from_directory(first.at(15).rename(tmp_path / "checkpoint_000002"))
    for name, step in (("checkpoint_000000", 5), ("checkpoint_000001", 10)):
        first.at(step).rename(tmp_path / name)
    other = VALUES | {"outer.lr": 0.5}
    for values in (VALUES, other):
        (state, _), message = load_newest(checkpoint, values, "hash", CPU)
        assert (state.outer_step, message) == (15, "")
    cut(tmp_path / "checkpoint_000002" / STATE)
    (state, _), message = load_newest(checkpoint, VALUES, "hash", CPU)
    assert state.outer_step == 10
    assert message.startswith("checkpoint_000002: ")
    assert message.count("checkpoint_") == 2, message
    assert message.endswith("the trial resumes from outer step 10")
    with pytest.raises(
        NoValidCheckpointError, match=r"checkpoint_000002: .*checkpoint_000000: was saved with other"
    ):
        load_newest(checkpoint, other, "hash", CPU)
