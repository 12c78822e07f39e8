"""A real MLflow server on loopback, in its light form, that a test can stop and start again."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

from tests.helpers.processes import free_port, wait_until


class MlflowServer:
    """Its artefacts lie in a folder, its store too, in `mlflow.db`, or in a database; its address stays the same.

    It lets everybody in, whatever the password.
    """

    def __init__(self, folder: Path, store: str | None = None) -> None:
        self._folder, self._port = folder, free_port()
        self._store = store or f"sqlite:///{folder / 'mlflow.db'}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Returns when it answers."""
        environment = os.environ | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)),
            *("--workers", "1", "--backend-store-uri", self._store),
            *("--artifacts-destination", str(self._folder / "artifacts")),
        ]
        with (self._folder / "server.log").open("ab") as log:
            process = self._process = subprocess.Popen(
                command, cwd=self._folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(lambda: self._answers() or process.poll() is not None, "the MLflow server answers")
        assert process.poll() is None, (self._folder / "server.log").read_text()

    def _answers(self) -> bool:
        with suppress(OSError), urlopen(f"{self.uri}/health", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def stop(self) -> None:
        """As a crash would: at once, with all its processes."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def mlflow_server(folder: Path, store: str | None = None) -> Iterator[MlflowServer]:
    """One that runs as long as the block lasts, unless that stops it."""
    server = MlflowServer(folder, store)
    try:
        server.start()
        yield server
    finally:
        server.stop()
