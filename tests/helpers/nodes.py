"""A Ray cluster of several nodes on this machine, started with `ray start` and a token.

Its ports and its temporary folder are its own, so that it does not interfere with other clusters.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError

from tests.helpers.processes import descendants_named, free_port, wait_until

BIN = Path(sys.executable).parent


class Nodes:
    """The head and further nodes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port, self._dashboard = free_port(), free_port()
        self._running: list[subprocess.Popen[bytes]] = []
        self._num_started = 0
        without = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
        self.environment = {k: v for k, v in os.environ.items() if k not in without} | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            # A lost node is noticed after 3 s, not after half a minute.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }
        """Of its processes and its clients."""

    @property
    def address(self) -> str:
        """For drivers, as RAY_ADDRESS."""
        return f"127.0.0.1:{self._port}"

    @property
    def jobs_address(self) -> str:
        """For `ray job`, as RAY_API_SERVER_ADDRESS."""
        return f"http://127.0.0.1:{self._dashboard}"

    def start_head(self) -> None:
        """The head, with one CPU."""
        ports = {
            "--port": self._port,
            "--dashboard-port": self._dashboard,
            "--ray-client-server-port": free_port(),
        }
        self._start("--head", *(f"{option}={port}" for option, port in ports.items()))

    def add(self) -> subprocess.Popen[bytes]:
        """One more node, with one CPU."""
        return self._start(f"--address={self.address}")

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        self._num_started += 1
        expected = len(self._running) + 1
        log_file = self._folder / f"node-{self._num_started}.log"
        with log_file.open("wb") as log:
            node = subprocess.Popen(
                [
                    str(BIN / "ray"),
                    "start",
                    "--block",
                    "--num-cpus=1",
                    f"--dashboard-agent-listen-port={free_port()}",
                    # Nodes that share a folder delete each other's copy of a job's files.
                    f"--temp-dir={self._folder / str(self._num_started)}",
                    f"--object-store-memory={200 * 2**20}",
                    *arguments,
                ],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running.append(node)
        wait_until(lambda: self._num_alive() == expected or node.poll() is not None, "a node is alive")
        assert node.poll() is None, log_file.read_text()
        return node

    @property
    def oldest(self) -> subprocess.Popen[bytes]:
        """The head."""
        return self._running[0]

    @property
    def newest(self) -> subprocess.Popen[bytes]:
        """The node that was added last and is still running."""
        return self._running[-1]

    def remove(self, node: subprocess.Popen[bytes]) -> None:
        """SIGKILL all processes of a node."""
        for pid in [node.pid, *descendants_named("", node.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.wait()
        self._running.remove(node)

    def end(self) -> None:
        """SIGKILL all nodes."""
        for node in reversed(self._running):
            self.remove(node)

    def ask(self, path: str) -> Any:
        """The dashboard's JSON response."""
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self.jobs_address}{path}", headers=token)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def _num_alive(self) -> int:
        try:
            nodes = self.ask("/api/v0/nodes?detail=false&limit=100")["data"]["result"]["result"]
        except (URLError, OSError):
            return 0
        return sum(node["state"] == "ALIVE" for node in nodes)


@contextmanager
def head_alone() -> Iterator[Nodes]:
    """A cluster of one node with one CPU, to which others can be added."""
    # Ray's sockets lie in the folder, and their paths may have no more than 107 bytes.
    with tempfile.TemporaryDirectory(prefix="rd-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        nodes = Nodes(Path(folder))
        try:
            nodes.start_head()
            yield nodes
        finally:
            nodes.end()


@contextmanager
def cluster_of_two() -> Iterator[tuple[Nodes, subprocess.Popen[bytes]]]:
    """A head and one further node, each with one CPU; the node."""
    with head_alone() as nodes:
        yield nodes, nodes.add()
