"""A PostgreSQL server on loopback, where it is installed, with an empty database behind a password."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.helpers.processes import free_port

USER = "ray_distill"


def binary(name: str) -> str | None:
    """Distributions keep all but the clients out of PATH."""
    found = shutil.which(name)
    return found or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)


def _owner() -> dict[str, Any]:
    """PostgreSQL refuses to be root."""
    return {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}


@contextmanager
def postgres() -> Iterator[str]:
    """The URI of its database, as SQLAlchemy has it."""
    password, port = secrets.token_hex(8), free_port()
    # Not under pytest's folder, which nobody but its owner may enter.
    with tempfile.TemporaryDirectory(prefix="rd-pg-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "password").write_text(password)
        if as_other := _owner():
            for path in (folder, folder / "password"):
                shutil.chown(path, as_other["user"], as_other["group"])
        data = ["-D", str(folder / "data")]
        options = [
            "--username",
            USER,
            "--auth=scram-sha-256",
            "--pwfile",
            str(folder / "password"),
            "--no-sync",
        ]
        initdb, server = binary("initdb"), binary("postgres")
        assert initdb is not None
        assert server is not None
        subprocess.run([initdb, *data, *options], cwd=folder, check=True, capture_output=True, **as_other)
        on_loopback = [
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "unix_socket_directories=",
            "-p",
            str(port),
            "-F",
        ]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [server, *data, *on_loopback], cwd=folder, stdout=log, stderr=log, **as_other
            )
        try:
            uri = f"postgresql://{USER}:{password}@127.0.0.1:{port}/postgres"
            _wait(uri, process, folder / "log")
            yield uri
        finally:
            process.send_signal(signal.SIGQUIT)
            process.wait()


def _wait(uri: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(psycopg.OperationalError):
            psycopg.connect(uri).close()
            return
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def query(uri: str, sql: str) -> list[tuple[Any, ...]]:
    """The rows that it answers."""
    import psycopg

    connection = psycopg.connect(uri)
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())
    finally:
        connection.close()
