"""Evaluations on real actors: the numbers are those of the jobs run here, also when actors die; files, MLflow, Ray."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from ray_distill.cli.main import app
from ray_distill.config.config import ConfigError
from ray_distill.evaluation.jobs import jobs_for, specs_for
from ray_distill.evaluation.journal import ResultsLog
from ray_distill.evaluation.results import at_last_horizon
from ray_distill.evaluation.robustness import squash
from ray_distill.evaluation.run import evaluate, evaluate_sets
from ray_distill.evaluation.worker import retrain_on_pool
from ray_distill.tracking.store import open_store
from ray_distill.utils.progress import silent
from tests.helpers.evaluated_sets import dataset_of, evaluate_here, evaluation_set_of, numbers
from tests.helpers.processes import descendants_named
from tests.helpers.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_the_pool_gives_the_numbers_of_the_jobs_even_if_actors_die() -> None:
    """Two sets, two horizons, a tuned lr; actors are killed after three random results: the same numbers as from all jobs
    run here, one by one."""
    seed = random.randrange(10**6)
    print("seed", seed)
    config = tiny_config(
        evaluation={"seeds": 3, "horizons": [10, 20], "tune_lr": True, "lr_grid": [1, 3], "lr_networks": 1}
    )
    sets = [evaluation_set_of(config, "mine"), evaluation_set_of(config, "twice", scale=2.0)]
    expected = numbers(evaluate_here(sets))
    assert {(name, network) for name, network, *_ in expected} == {
        *((name, network) for name in ("mine", "twice", "random_real") for network in ("convnet1", "mlp1")),
        ("whole_train", "convnet1"),
    }
    assert len({accuracy for *_, accuracy in expected}) > 10
    times = random.Random(seed).sample(range(1, 20), 3)
    killed: list[int] = []

    def kill(done: int, message: str) -> None:
        if done in times and (actors := descendants_named("ray::_Retrainer")):
            os.kill(actors[-1], signal.SIGKILL)
            killed.append(actors[-1])

    scheduler, stats = retrain_on_pool(sets, specs_for(sets), ResultsLog(), kill)
    assert scheduler.failures == []
    assert numbers(scheduler.records()) == expected
    assert killed
    assert stats is not None
    assert stats.num_retries <= len(killed)


def test_results_are_saved_logged_and_extended(tmp_path: Path) -> None:
    """From Python, into a folder and a store: files, and metrics over inner steps in a child of the run that made the set.
    Again: nothing is trained. One more seed: the same MLflow run, with the new means. Store unreachable: a warning.
    Another set: refused."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    open_store(uri, "ray_distill")
    client = MlflowClient(uri)
    parent = client.create_run(client.get_experiment_by_name("ray_distill").experiment_id).info.run_id
    config = tiny_config(evaluation={"horizons": [5, 10], "networks": ["mlp1"]})
    dataset = dataset_of(config)
    dataset.provenance["mlflow_run_id"] = parent
    folder = tmp_path / "results"

    first = evaluate_sets({"mine": dataset}, out=folder, uri=uri, baselines=["random_real"])
    assert first.pool_stats is not None
    assert first.pool_stats.num_jobs == 4
    assert {"records.jsonl", "records.parquet", "evaluation.json", "table.md"} <= {
        p.name for p in folder.iterdir()
    }
    assert first.tracker is not None
    run = client.get_run(first.tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == parent
    rows = {(row.subject, row.inner_steps): row for row in first.rows}
    history = client.get_metric_history(run.info.run_id, "test_accuracy/mine/mlp1")
    assert [(m.step, m.value) for m in history] == [(s, rows[("mine", s)].mean) for s in (5, 10)]
    assert {"evaluation_table.json", "table.md"} <= {a.path for a in client.list_artifacts(run.info.run_id)}

    again = evaluate_sets({"mine": dataset}, out=folder, uri=uri, baselines=["random_real"])
    assert again.pool_stats is None
    assert numbers(again.records) == numbers(first.records)

    more = evaluate_sets({"mine": dataset}, out=folder, uri=uri, baselines=["random_real"], seeds=3)
    assert more.pool_stats is not None
    assert more.pool_stats.num_jobs == 1
    assert more.tracker == first.tracker
    (last,) = (row for row in more.rows if (row.subject, row.inner_steps) == ("mine", 10))
    assert last.n == 3
    assert client.get_run(run.info.run_id).data.metrics["test_accuracy/mine/mlp1"] == last.mean
    table = json.loads(Path(client.download_artifacts(run.info.run_id, "evaluation_table.json")).read_text())
    assert len(table["data"]) == 4

    # Nobody listens at the store's address: a warning, and the records.
    away = evaluate([evaluation_set_of(config)], silent, folder, ("http://127.0.0.1:9", None))
    assert len(away.records) == len(more.records) + 1, "the whole training set is asked for here"
    assert away.tracker is None
    assert "MLflow at http://127.0.0.1:9" in away.warnings[0]

    gpu = tiny_config(evaluation={"horizons": [5, 10], "networks": ["mlp1"]}, cluster={"use_gpu": True})
    with pytest.raises(ConfigError, match=r"use_gpu: an actor needs 0\.25 GPU, the cluster has 0"):
        evaluate([replace(evaluation_set_of(config), config=gpu)], silent, tmp_path / "gpu")
    assert not (tmp_path / "gpu").exists(), "nothing was written before the error"

    before = (folder / "records.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="another evaluation"):
        evaluate_sets({"mine": dataset_of(config, scale=2.0)}, out=folder, uri=uri)
    assert (folder / "records.jsonl").read_bytes() == before


def test_a_set_of_another_method_is_evaluated_in_one_command(tmp_path: Path) -> None:
    """Ten digits as flat pixels in an .npz: `evaluate --like` gives the numbers of importing the file first and evaluating
    the result. `--like` for none of the sets is refused."""
    config = tiny_config(network={"name": "mlp1", "width": 32}, evaluation={"seeds": 2, "horizons": [300]})
    digits = load_digits()
    firsts = [int((digits.target == k).argmax()) for k in range(10)]
    np.savez(tmp_path / "theirs.npz", images=digits.data[firsts] / 16.0, labels=np.arange(10))
    (tmp_path / "like.yaml").write_text(config.to_yaml())
    statement = ["--like", str(tmp_path / "like.yaml"), "--space", "pixels"]
    how = ["--networks", "mlp1", "--baselines", "none"]

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments])
        assert result.exit_code == 0, result.output
        return result.output

    def accuracies(folder: str) -> list[float]:
        records = json.loads((tmp_path / folder / "evaluation.json").read_text())["records"]
        return [record["test_accuracy"] for record in records]

    theirs, ours = str(tmp_path / "theirs.npz"), str(tmp_path / "ours.parquet")
    run("evaluate", theirs, *statement, *how, "--out", str(tmp_path / "a"))
    run("import", theirs, *statement, "--out", ours)
    run("evaluate", ours, *how, "--out", str(tmp_path / "b"))
    assert accuracies("a") == accuracies("b")
    assert len(accuracies("a")) == 2
    assert min(accuracies("a")) > 0.25, "one real image of each digit: well above chance"
    refused = CliRunner().invoke(app, ["evaluate", ours, *statement, "--out", str(tmp_path / "c")])
    assert (refused.exit_code, "--like: has no effect" in refused.stderr) == (2, True)
    assert not (tmp_path / "c").exists()


def test_robustness_subsets_and_all_baselines_from_one_call(tmp_path: Path) -> None:
    """A set of two images per class with learnt labels: every baseline, treatment and subset is a row; the scores are
    those of its rows, in the JSON, the table, MLflow and print; and there are the figures. The coresets of herding and
    k-means are selected once for both seeds."""
    config = tiny_config(
        distilled={"ipc": 2, "learn_labels": True},
        evaluation={"horizons": [3, 6], "networks": ["mlp1"], "subset_draws": None},
    )
    dataset = dataset_of(config)
    dataset = replace(dataset, labels_NK=0.6 * dataset.labels_NK + 0.4 * dataset.labels_NK.roll(1, dims=1))
    uri, folder = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "results"
    open_store(uri, "ray_distill")
    baselines = ["random_real", "herding", "k_means", "whole_train"]
    options = {"baselines": baselines, "robustness": True, "subsets": [1], "subset_draws": 2}

    done = evaluate_sets({"mine": dataset}, out=folder, uri=uri, **options)
    assert done.failures == []
    assert done.pool_stats is not None
    jobs = [job for spec, lr in done.lrs.items() for job in jobs_for(spec, range(spec.num_networks), lr)]
    assert done.pool_stats.num_jobs == len(jobs) + 2, "herding and k-means are selected once each"
    acc = {(row.kind, row.treatment): row.mean for row in at_last_horizon(done.rows)}
    treated = [("distilled", how) for how in ("own", "hard_labels", "no_augmentation", "augmentation")]
    treated += [("random_real", how) for how in ("own", "no_augmentation", "augmentation")]
    assert list(acc) == [*treated[:4], ("subset", "own"), *treated[4:]] + [
        (kind, "own") for kind in ("herding", "k_means", "whole_train")
    ]
    files = {path.name for path in folder.iterdir()}
    assert {"accuracy.png", "accuracy_over_steps.png", "accuracy_over_images.png", "table.md"} <= files

    (scores,) = json.loads((folder / "evaluation.json").read_text())["robustness"]
    recovery = acc["whole_train", "own"] - acc["distilled", "hard_labels"]
    improvement = acc["distilled", "own"] - acc["random_real", "own"]
    assert not scores["own_labels_are_hard"]
    assert scores["hard_label_recovery"] == pytest.approx(recovery)
    assert scores["label_robust_score"] == pytest.approx(squash((improvement - recovery) / 2))
    gains = [acc["distilled", how] - acc["random_real", how] for how in ("augmentation", "no_augmentation")]
    assert scores["augmentation_robust_score"] == pytest.approx(squash(sum(gains) / 2))
    assert done.tracker is not None
    client = MlflowClient(uri)
    metrics = client.get_run(done.tracker.run_id).data.metrics
    assert metrics["label_robust_score/mine/mlp1"] == scores["label_robust_score"]
    assert metrics["augmentation_robust_score/mine/mlp1"] == scores["augmentation_robust_score"]
    assert metrics["test_accuracy/mine 10/mlp1"] == acc["subset", "own"]
    assert files - {"records.jsonl", "evaluation_of.json"} <= {
        a.path for a in client.list_artifacts(done.tracker.run_id)
    }
    assert f"| mine | mlp1 | {scores['label_robust_score']:.3f} |" in (folder / "table.md").read_text()
    again = evaluate_sets({"mine": dataset}, out=folder, **options)
    assert again.pool_stats is None
    assert again.robustness == done.robustness

    # Another set of the same protocol, in a folder of its own: the whole training set is not trained on again.
    double = replace(dataset, images_NCHW=2.0 * dataset.images_NCHW)
    options = {"baselines": ["random_real", "whole_train"], "robustness": True}
    second = evaluate_sets({"double": double}, out=tmp_path / "second", **options)
    assert second.pool_stats is not None
    trained = [spec for spec in second.lrs if spec.subject.kind != "whole_train"]
    assert len(trained) == len(second.lrs) - 1
    jobs = [job for spec in trained for job in jobs_for(spec, range(spec.num_networks), spec.protocol_lr)]
    assert second.pool_stats.num_jobs == len(jobs)
    whole = [[r for r in of.records if r.retraining.kind == "whole_train"] for of in (done, second)]
    assert whole[0] == whole[1]
    assert len(whole[0]) == 1


def test_a_process_connects_to_ray_once(tmp_path: Path) -> None:
    """A first call starts a local cluster, which stays for the second; a caller's own is used and left running."""
    config = tiny_config(evaluation={"horizons": [1], "seeds": 1})
    dataset_of(config).save(tmp_path / "mine.parquet")
    code = """
import ray
from ray_distill.artifacts.dataset import DistilledDataset
from ray_distill.evaluation.run import evaluate_sets
dataset = DistilledDataset.load("mine.parquet")
def call():
    evaluation = evaluate_sets({"mine": dataset}, networks=["mlp1"], baselines=[])
    assert len(evaluation.rows) == 1 and not evaluation.failures
    return ray.get_runtime_context().gcs_address
first = call()
assert call() == first
ray.shutdown()
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
own = ray.get_runtime_context().gcs_address
assert call() == own != first
assert ray.is_initialized()
"""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_network_too_large_for_memory_is_a_row(tmp_path: Path) -> None:
    """A second layer of 65,536 x 65,536 x 3 x 3 float64, 3.1e11 bytes, really allocated: it fails on three actors, and the
    table says why; the other network is there."""
    config = tiny_config(network={"width": 65_536}, evaluation={"horizons": [1], "seeds": 1})
    options = {"networks": ["convnet2", "mlp1"], "baselines": []}
    done = evaluate_sets({"mine": dataset_of(config)}, out=tmp_path / "results", **options)
    there, too_large = sorted(done.rows, key=lambda row: -row.n)
    assert (there.network, there.n, there.num_failed) == ("mlp1", 1, 0)
    assert (too_large.network, too_large.n, too_large.num_failed) == ("convnet2", 0, 1)
    assert re.fullmatch(
        r"failed on 3 actors; last error: out of memory: could not allocate 309237645312 bytes",
        too_large.reason or "",
    )
    assert too_large.reason in (tmp_path / "results" / "table.md").read_text()
    assert done.pool_stats is not None
    assert done.pool_stats.num_retries == 2
