"""The Python interface on real Ray: in a process of its own, since it stays connected until that ends."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, signal, sys
from pathlib import Path
import ray
import ray_distill as rd
from sklearn.datasets import load_digits
from tests.helpers.tiny import TINY
from tests.helpers.tiny_search import tiny_search

class Trace(rd.Callback):
    def __init__(self): self.steps, self.validations, self.checkpoints, self.started = [], {}, [], None
    def on_start(self, config, folder): self.started = str(folder)
    def on_outer_step(self, step, metrics): self.steps.append([step, metrics["outer_loss"]])
    def on_validation(self, step, metrics): self.validations[step] = metrics["validation_accuracy"]
    def on_checkpoint(self, step, picture): self.checkpoints.append([step, list(picture.size)])

class Stop(rd.Callback):
    def on_validation(self, step, metrics): raise LookupError(f"stopped by the caller at {step}")

out = Path(sys.argv[1])
handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
digits = load_digits()
pixels, labels = (digits.images * 15.9375).astype("uint8"), digits.target
config = {**TINY, "data": {"validation_fraction": 0.2, "limit": 200, "root": str(out / "data")}}
data = {"train": (pixels[:1400], labels[:1400]), "test": (pixels[1400:], labels[1400:])}
trace = Trace()
run = rd.distill(config, out=out / "run", callbacks=[trace], progress=False, **data)
session = ray.get_runtime_context().get_job_id()
evaluation = rd.evaluate(run.dataset, networks=["mlp1"], seeds=2, horizons=[6], progress=False)
again = rd.evaluate(str(out / "run" / "distilled.parquet"), networks=["mlp1"], seeds=2, horizons=[6], progress=False)
try:
    rd.distill(config, out=out / "stopped", callbacks=[Stop()], progress=False, **data)
    stopped = None
except LookupError as e:
    stopped = str(e)
resumed = rd.distill(config, out=out / "stopped", resume=True, progress=False, **data)
search = rd.search(tiny_search(base=config | {"data": {"source": run.config.data.source}}), out=out / "search", progress=False)
history = run.to_pandas()
print(json.dumps({
    "trace": vars(trace),
    "images_equal": bool((resumed.dataset.images_NCHW == run.dataset.images_NCHW).all()),
    "history": {int(s): float(v) for s, v in history["outer_loss"].items()},
    "validations": {int(s): float(v) for s, v in history["validation_accuracy"].dropna().items()},
    "rows": evaluation.to_pandas()[["set", "network", "n"]].values.tolist(),
    "means": [evaluation.to_pandas()["mean"].dropna().tolist(), again.to_pandas()["mean"].dropna().tolist()],
    "html": [run._repr_html_()[:40], evaluation._repr_html_().count("<tr"), search._repr_html_().count("<tr")],
    "stopped": stopped,
    "trials": search.to_pandas()["trial"].tolist(),
    "best": [search.best_config.name, list(search.best_dataset.images_NCHW.shape)],
    "same_session": ray.get_runtime_context().get_job_id() == session,
    "handlers_kept": handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
}))
"""


@pytest.mark.slow
def test_a_whole_session_in_python(tmp_path: Path) -> None:
    """Arrays are distilled, evaluated, stopped by a callback, resumed to the same D, and searched around, on one
    connection to Ray; results are objects, callbacks see what MLflow has, and signal handlers are the caller's."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    trace = result["trace"]
    assert trace["started"] == str(tmp_path / "run")
    assert [step for step, _ in trace["steps"]] == list(range(1, 21))
    assert {str(step): loss for step, loss in trace["steps"]} == result["history"]
    assert trace["validations"] == result["validations"]
    assert [step for step, _ in trace["checkpoints"]] == [5, 10, 15, 20]
    assert all(min(size) > 8 for _, size in trace["checkpoints"])
    assert result["stopped"] == "stopped by the caller at 5"
    assert result["images_equal"]
    assert ["distilled", "mlp1", 2] in result["rows"]
    assert result["means"][0] == result["means"][1]
    assert result["html"][0].startswith("<img")
    assert result["html"][1] == 1 + len({name for name, _, _ in result["rows"]})
    assert len(result["trials"]) == result["html"][2] - 1 >= 2
    assert result["best"][1] == [10, 1, 8, 8]
    assert result["same_session"]
    assert result["handlers_kept"]
