"""The commands as a person runs them: a process of their own, real Ray, a real MLflow store."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from ray_distill.artifacts.dataset import DistilledDataset
from tests.helpers.processes import wait_for_checkpoint
from tests.helpers.tiny import tiny_config

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-c", "from ray_distill.cli.main import main; main()"]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, out + err
    assert "Traceback" not in err
    return out


def test_the_demo_beats_random_real_images(tmp_path: Path) -> None:
    """A third of the demo's outer steps: more than random real images on its network, below the whole
    training set; every file that it names is there; MLflow holds parameters, points, pictures and the table.
    """
    out = finish(start(tmp_path, "demo", "--out", "here", "--set", "outer.steps=45"))
    folder = tmp_path / "here"
    summary = json.loads((folder / "summary.json").read_text())
    own = summary["networks"]["convnet2"]
    random_real, whole = (summary["baselines"][name] for name in ("random_real", "whole_train"))
    assert random_real["mean"] + 0.03 < own["mean"] < whole["mean"]
    assert len(summary["networks"]) >= 2
    for numbers in (own, random_real, whole):
        assert 0 < numbers["mean"] < 1
        assert 0 <= numbers["std"] < 0.5
        assert numbers["n"] >= 2
    assert 10 < summary["wall_s"] < 280
    assert "distilling" in out
    assert f"mlflow ui --backend-store-uri sqlite:///{folder}/mlflow.db" in out.replace("\n", "")
    assert Image.open(folder / "distilled.png").size[0] > 600
    dataset = DistilledDataset.load(folder / "distilled.parquet")
    assert dataset.images_NCHW.shape == (10, 1, 8, 8)
    assert dataset.config_hash == summary["config_hash"]

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = [client.get_experiment_by_name("ray_distill").experiment_id]
    (run,) = client.search_runs(experiment, "tags.kind = 'distill'")
    assert run.info.status == "FINISHED"
    assert run.data.tags["config_hash"] == summary["config_hash"]
    assert run.data.params["truncation.window_length"] == "12"
    names = ("outer_loss", "metagradient_norm", "clip_rate", "seconds_per_outer_step")
    for name in names:
        steps = [m.step for m in client.get_metric_history(run.info.run_id, name)]
        assert steps == list(range(1, 46)), name
    assert run.data.metrics["test_accuracy/distilled/convnet2"] == own["mean"]
    assert run.data.metrics["validation_accuracy"] > 0.5
    paths = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "distilled.parquet", "distilled.png", "summary.json"} <= paths
    assert "evaluation_table.json" in paths
    (child,) = client.search_runs(experiment, f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
    assert child.info.status == "FINISHED"
    accuracies = client.get_metric_history(child.info.run_id, "test_accuracy/distilled/convnet2")
    assert [(m.step, m.value) for m in accuracies] == [(40, own["mean"])]
    assert "evaluation.json" in {a.path for a in client.list_artifacts(child.info.run_id)}
    assert any(p.path.endswith(".png") for p in client.list_artifacts(run.info.run_id, "images"))

    shown = finish(start(tmp_path, "show", "here/distilled.parquet", "--out", "again.png"))
    assert "normalise" in shown
    assert (tmp_path / "again.png").exists()
    options = ["--networks", "mlp2", "--seeds", "2", "--horizons", "10,20", "--baselines", "none"]
    said = finish(start(tmp_path, "evaluate", "here/distilled.parquet", *options))
    assert "here/distilled.evaluation" in said
    rows = json.loads((folder / "distilled.evaluation" / "evaluation.json").read_text())["rows"]
    added = [(r["inner_steps"], r["n"]) for r in rows if r["network"] == "mlp2"]
    assert added == [(10, 2), (20, 2)]
    assert own["mean"] in [r["mean"] for r in rows if r["network"] == "convnet2"]
    assert len(client.search_runs(experiment)) == 2
    before = finish(start(tmp_path, "evaluate", "here/distilled.parquet", *options))
    assert "% busy" not in before
    assert "% busy" in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_that_can_go_on(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """SIGINT (Ctrl-C) or SIGTERM in mid-training: the exit code that shells expect, one line that says how to go on, an
    MLflow run that says KILLED."""
    config = tiny_config(outer={"steps": 4000}, validation={"every": 500}, checkpoint={"every": 10})
    (tmp_path / "tiny.yaml").write_text(config.to_yaml())
    folder = tmp_path / "run"
    process = start(tmp_path, "distill", "tiny.yaml", "--out", "run")
    wait_for_checkpoint(process, folder, 20)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, out + err
    assert "--resume" in err
    assert "Traceback" not in err
    identity = json.loads((folder / "run.json").read_text())
    assert MlflowClient(identity["uri"]).get_run(identity["run_id"]).info.status == "KILLED"
    assert not (folder / "summary.json").exists()


def test_a_distillation_never_opens_the_test_split(tmp_path: Path) -> None:
    """With a test file that is no Parquet the distillation runs to its end and keeps its artefact; only the
    evaluation, which comes after, refuses the file: exit code 2 and a message that names it."""
    import io

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    rng = np.random.default_rng(0)
    for i in range(60):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": f"{i}.png"}, "label": i % 3})
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "train.parquet")
    (tmp_path / "data" / "test.parquet").write_bytes(b"not for a distillation to open")
    config = tiny_config(data={"source": "parquet:data", "limit": None}, outer={"steps": 2, "batch_size": 8})
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    process = start(tmp_path, "distill", "c.yaml", "--out", "run")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 2, out + err
    assert "test.parquet" in err
    assert "Traceback" not in err
    assert DistilledDataset.load(tmp_path / "run" / "distilled.parquet").images_NCHW.shape == (3, 3, 8, 8)
