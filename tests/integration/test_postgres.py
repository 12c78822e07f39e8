"""A run whose record goes over HTTP to an MLflow server that keeps it in PostgreSQL."""

import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers.mlflow_server import mlflow_server
from tests.helpers.postgres import binary, postgres, query
from tests.helpers.tiny import tiny_config
from tests.helpers.undisturbed import Undisturbed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        binary("initdb") is None,
        reason="PostgreSQL is not installed: there is no initdb (Debian: postgresql)",
    ),
    pytest.mark.skipif(
        find_spec("psycopg") is None,
        reason="PostgreSQL's driver for Python, psycopg, is not installed",
    ),
]


def test_a_run_is_recorded_in_postgresql(tmp_path: Path) -> None:
    """Distilled by a worker in a process of its own: the D of the bare loop, and in the database one run, FINISHED, with
    each measurement once and to the last bit; nothing lies in a file store beside the run."""
    config = tiny_config(outer={"steps": 20}, evaluation={"networks": ["mlp1"], "seeds": 1})
    (tmp_path / "tiny.yaml").write_text(config.to_yaml())
    with postgres() as store, mlflow_server(tmp_path, store) as server:
        command = [sys.executable, "-c", "from ray_distill.cli.main import main; main()"]
        subprocess.run(
            [*command, "distill", "tiny.yaml", "--out", "run"],
            cwd=tmp_path,
            env=os.environ | {"MLFLOW_TRACKING_URI": server.uri},
            check=True,
            capture_output=True,
            timeout=250,
        )
        Undisturbed(config).check(tmp_path / "run", partial(query, store))
        tested = query(
            store, "select run_uuid, value from metrics where key = 'test_accuracy/distilled/mlp1'"
        )
        assert len(dict(tested)) == len(tested) == 2, "the run's, and its evaluation's"
        assert len({value for _, value in tested}) == 1
    assert not (tmp_path / "run" / "mlflow.db").exists()
