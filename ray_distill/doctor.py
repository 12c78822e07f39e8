"""Whether this machine, its cluster and its stores have what a run needs: one check after another, each a `Finding`.

A check that fails never stops the others. What runs cannot do without is `bad` when it is missing; what only costs
time or room is a `note`.
"""

import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray_distill import __version__
from ray_distill.cluster.connection import alive_nodes, cluster, only_on
from ray_distill.doctor_machine import GIB, Finding, checks_here, room
from ray_distill.errors import FailedError, MistakeError, first_line
from ray_distill.storage.remote import Storage
from ray_distill.utils.secrets import masked
from ray_distill.utils.timeout import in_time

import ray  # isort: skip  (after ray_distill.cluster.connection, which sets its environment)

PATIENCE_S = 60
"""For a store or a node to answer."""
SKEW_S = 2.0
"""Between two clocks: beyond it, metrics and logs of one moment are told in another order."""


def examine(storage: str, progress: Callable[[str], None]) -> Iterator[Finding]:
    """All checks in their order.

    Args:
        storage: a folder, or a URI that pyarrow knows, where results and checkpoints would go.
        progress: told of each check before it begins.
    """
    for name, check in checks_here().items():
        progress(name)
        yield from _safe(name, check)
    progress("storage")
    yield from _safe("storage", lambda: stored(storage))
    progress("MLflow")
    yield from _safe("MLflow", lambda: in_time(mlflow_store, PATIENCE_S))
    progress("Ray")
    yield from _safe("Ray", ray_cluster)


def _safe(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except (MistakeError, FailedError, OSError) as e:
        return [Finding(name, "bad", _line(e), PURPOSES.get(name, ""), ADVICE.get(name, "mend what is said"))]
    except Exception as e:
        return [
            Finding(
                name, "bad", f"{type(e).__name__}: {_line(e)}", PURPOSES.get(name, ""), ADVICE.get(name, "")
            )
        ]


PURPOSES = {
    "storage": "checkpoints and results",
    "MLflow": "the record of runs",
    "Ray": "workers and evaluation",
    "torch": "the arithmetic",
    "GPUs": "speed",
}
ADVICE = {
    "storage": "name a place that can be written to (--out), or give its credentials to the environment",
    "MLflow": "start the server, or mend MLFLOW_TRACKING_URI",
    "Ray": "start the cluster (ray start --head), mend RAY_ADDRESS and RAY_AUTH_MODE, or unset RAY_ADDRESS",
    "torch": "reinstall with uv sync",
}


def _line(error: BaseException) -> str:
    return masked(first_line(error))


def stored(uri: str) -> list[Finding]:
    """Write a small file, read it, delete it. Raises: StorageError."""
    began = time.monotonic()
    storage = Storage.at(uri)
    took_ms = 1000 * (time.monotonic() - began)
    said = f"{storage}: written, read and deleted in {took_ms:.0f} ms"
    found = [Finding("storage", "good", said, "checkpoints and results")]
    if storage.is_local:
        free = shutil.disk_usage(storage.nearest()).free
        found.append(
            room("disk", free, 2 * GIB, "checkpoints and results", "make room, or use another --out")
        )
    return found


def mlflow_store() -> list[Finding]:
    """Write a run into the store and delete it; compare clocks with a server. Raises: StoreError, TrackingError."""
    from ray_distill.tracking.tracker import try_store
    from ray_distill.tracking.uri import store_uri

    version, uri = importlib.metadata.version("mlflow"), os.environ.get("MLFLOW_TRACKING_URI")
    with ExitStack() as stack:
        if not uri:
            # A run makes a file beside its results, which is not there yet.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
            try_store(f"sqlite:///{folder / 'mlflow.db'}")
            said = f"{version}; MLFLOW_TRACKING_URI is not set: a sqlite file beside the results"
            return [Finding("MLflow", "good", said, PURPOSES["MLflow"])]
        uri = store_uri(uri, Path())
        try_store(uri)
    found = [
        Finding(
            "MLflow", "good", f"{version}; {masked(uri)}: a run was written and deleted", PURPOSES["MLflow"]
        )
    ]
    if uri.startswith("http"):
        found.append(_skew("MLflow's clock", _server_ahead_s(uri), 1.0))
    return found


def _server_ahead_s(uri: str) -> float:
    """Seconds by which an HTTP server's clock, which tells whole seconds, is ahead of this one."""
    parts = urlsplit(uri)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    before = time.time()
    try:
        with urllib.request.urlopen(bare, timeout=10) as answer:
            date = answer.headers["Date"]
    except urllib.error.HTTPError as e:
        # Whoever is not let in is told the time too.
        date = e.headers["Date"]
    told = parsedate_to_datetime(date).timestamp()
    return told + 0.5 - (before + time.time()) / 2


def _skew(name: str, ahead_s: float, known_to_s: float) -> Finding:
    """How far a clock is ahead, known to within some seconds."""
    off = abs(ahead_s) > SKEW_S + known_to_s
    said = f"{'not ' if not off else ''}apart from this machine's" + (f", by {ahead_s:+.1f} s" if off else "")
    return Finding(
        name, "note" if off else "good", said, "times of metrics", "set both by NTP (timedatectl, chrony)"
    )


def _versions() -> dict[str, str]:
    installed = {name: importlib.metadata.version(name) for name in ("torch", "ray")}
    return {"ray-distill": __version__} | installed | {"Python": platform.python_version()}


@ray.remote(num_cpus=0)
def _look_around() -> tuple[float, dict[str, str]]:
    """A node's clock, and what is installed there."""
    return time.time(), _versions()


def ray_cluster() -> list[Finding]:
    """The cluster that runs would use: its nodes, their clocks and versions, and its GPUs. Raises: ClusterError."""
    where = f"at {os.environ['RAY_ADDRESS']}" if os.environ.get("RAY_ADDRESS") else "started on this machine"
    with cluster():
        nodes = alive_nodes()
        total = ray.cluster_resources()
        said = f"{ray.__version__}, {where}: {len(nodes)} node(s), {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"
        found = [Finding("Ray", "good", said, PURPOSES["Ray"])]
        here = ray.get_runtime_context().get_node_id()
        for node in nodes:
            name = f"node {node['NodeManagerAddress']}"
            of_node = _safe(name, partial(_node, node, name))
            # Of this node there is nothing to say, but that it runs no tasks.
            found += [finding for finding in of_node if finding.state == "bad" or node["NodeID"] != here]
        found.append(_gpus_of_ray(next(node for node in nodes if node["NodeID"] == here)))
    return found


def _node(node: dict[str, Any], name: str) -> list[Finding]:
    task = _look_around.options(scheduling_strategy=only_on(node))
    # The first call starts a process there.
    ray.get(task.remote(), timeout=PATIENCE_S)
    before = time.time()
    clock, there = ray.get(task.remote(), timeout=PATIENCE_S)
    after = time.time()
    here = _versions()
    other = [f"{key} {there[key]} there, {here[key]} here" for key in here if there[key] != here[key]]
    said = "; ".join(other) if other else "has this ray-distill, torch and Python"
    versions = Finding(
        name,
        "bad" if other else "good",
        said,
        "the same numbers everywhere",
        "install the same versions on all nodes",
    )
    return [versions, _skew(f"{name}'s clock", clock - (before + after) / 2, (after - before) / 2)]


def _gpus_of_ray(node: dict[str, Any]) -> Finding:
    import torch

    by_ray, by_torch = int(node["Resources"].get("GPU", 0)), torch.cuda.device_count()
    said = f"Ray sees {by_ray} on this node, torch {by_torch}"
    if by_ray == by_torch:
        return Finding("Ray's GPUs", "good", said, "cluster.use_gpu")
    advice = "start Ray with --num-gpus, in an environment with the same CUDA_VISIBLE_DEVICES"
    return Finding("Ray's GPUs", "bad" if by_ray > by_torch else "note", said, "cluster.use_gpu", advice)
