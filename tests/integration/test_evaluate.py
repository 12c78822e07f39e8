"""The evaluation pool with real actors: every job once, also when actors die."""

import os
import signal

import pytest
from processes import descendants_named
from tiny import Bench, tiny_config

from ray_distill import build
from ray_distill.artifact import DistilledDataset, provenance
from ray_distill.config import Config
from ray_distill.core.distilled import DistilledData
from ray_distill.evaluate import Record, evaluate, jobs_of, real_sets, rows_of, run_job, tickets_for

pytestmark = pytest.mark.usefixtures("ray_cluster")


def made(config: Config) -> tuple[DistilledDataset, Bench]:
    b = Bench(config)
    dataset = DistilledDataset(
        images_NCHW=b.initial.images_NCHW.float(),
        labels_NK=b.initial.labels_NK.float(),
        class_names=b.data.class_names,
        preprocessing=b.data.preprocessing,
        protocol={},
        config=config.to_dict(),
        config_hash=config.hash,
        provenance=provenance(),
    )
    return dataset, b


def numbers(records: list[Record]) -> list[tuple[str, str, int, float]]:
    return [(r.trained_on, r.network, r.index, r.test_accuracy) for r in records]


def test_the_pool_gives_what_the_jobs_give_even_if_actors_die() -> None:
    """All jobs done here one by one, by the pool, and by a pool that loses two actors: one table."""
    config = tiny_config(evaluation={"seeds": 4, "horizon": 60})
    dataset, b = made(config)
    tickets = tickets_for(config, dataset, b.data)
    real = real_sets(config, tickets, lambda: dataset.preprocessing)
    assert real.test.num_images == 359, "a fifth of each class of the 1,797 digits"
    jobs = jobs_of(config)
    dtype = build.dtype(config)
    distilled = DistilledData(dataset.images_NCHW.to(dtype), dataset.labels_NK.to(dtype))
    expected = numbers([run_job(config, distilled, real, job) for job in jobs])
    assert {(on, name) for on, name, _, _ in expected} == {
        ("distilled", "convnet1"),
        ("distilled", "mlp1"),
        ("random_real", "convnet1"),
        ("random_real", "mlp1"),
        ("whole_train", "convnet1"),
    }
    killed: list[int] = []

    def kill_two(done: int, said: str) -> None:
        actors = descendants_named("ray::_Retrainer")
        if len(killed) < 2 and actors and done in (1, 4):
            os.kill(actors[0], signal.SIGKILL)
            killed.append(actors[0])

    assert numbers(evaluate(config, dataset, tickets, kill_two)) == expected
    assert len(killed) == 2


def test_rows_are_mean_and_sample_deviation() -> None:
    """Accuracies 0.5, 0.7: mean 0.6, std sqrt(2 x 0.01 / 1) = 0.1414; one value has no deviation."""
    records = [
        Record("whole_train", "convnet1", 0, 6, 0.9, 0.0),
        Record("distilled", "convnet1", 0, 6, 0.5, 0.0),
        Record("distilled", "convnet1", 1, 6, 0.7, 0.0),
    ]
    first, second = rows_of(records)
    assert (first.trained_on, first.n, second.trained_on, second.n) == ("distilled", 2, "whole_train", 1)
    assert first.mean == pytest.approx(0.6)
    assert first.std == pytest.approx(0.02**0.5)
    assert second.std is None


def test_no_two_jobs_share_their_numbers() -> None:
    """Another index is another initialisation; random real draws differ in images too."""
    config = tiny_config(evaluation={"horizon": 30})
    dataset, b = made(config)
    tickets = tickets_for(config, dataset, b.data)
    real = real_sets(config, tickets, lambda: dataset.preprocessing)
    assert real.train.num_images == 160
    accuracies = {
        run_job(config, b.initial, real, job).test_accuracy
        for job in jobs_of(config)
        if job.network == "convnet1"
    }
    assert len(accuracies) >= 4
