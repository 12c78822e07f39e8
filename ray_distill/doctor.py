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
from ray_distill.cluster.connection import alive_nodes, cluster, on_node
from ray_distill.errors import RunError, UserError, first_line
from ray_distill.storage.remote import Storage
from ray_distill.utils.secrets import redact
from ray_distill.utils.timeout import call_with_timeout

import ray  # isort: skip  (after ray_distill.cluster.connection, which sets its environment)

from typing import Literal, NamedTuple

State = Literal["good", "note", "bad"]
GIB = 2**30


class Finding(NamedTuple):
    """What a check came to."""

    check: str
    state: State
    found: str
    purpose: str
    """What it is needed for."""
    advice: str = ""
    """What to do, unless it is good."""


def checks_here() -> dict[str, Callable[[], list[Finding]]]:
    """The checks of this machine, by name, in their order."""
    return {
        "Python": lambda: [python()],
        "torch": lambda: [torch_itself()],
        "GPUs": gpus,
        "compiler": lambda: [compiler()],
        "memory": memory,
    }


def python() -> Finding:
    """The interpreter."""
    return Finding(
        "Python",
        "good",
        f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "everything",
    )


def torch_itself() -> Finding:
    """That torch is there and computes."""
    import torch

    product = torch.ones(64, 64) @ torch.ones(64, 64)
    if not bool((product == 64).all()):
        raise RunError("a product of matrices came out wrong")
    return Finding("torch", "good", f"{torch.__version__}, {os.cpu_count()} CPU cores", "the arithmetic")


def gpus() -> list[Finding]:
    """Each GPU that torch can use, or why there is none."""
    import torch

    driver = Path("/proc/driver/nvidia/version")
    if not torch.cuda.is_available():
        if driver.exists():
            advice = "install a torch build for this driver's CUDA (see pytorch.org), or update the driver"
            return [Finding("GPUs", "bad", "an NVIDIA driver, but torch cannot use it", "speed", advice)]
        advice = "nothing, if you mean to run on CPUs; large experiments want a GPU"
        return [Finding("GPUs", "note", "none", "speed", advice)]
    found = []
    for index in range(torch.cuda.device_count()):
        of = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        computes = bool((torch.ones(8, device=f"cuda:{index}") * 2 == 2).all())
        said = f"{of.name}, compute capability {of.major}.{of.minor}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        state: State = "bad" if not computes else "note" if free < total / 2 else "good"
        advice = (
            "another process has its memory (nvidia-smi says which)"
            if computes
            else "it computes wrongly; replace it"
        )
        found.append(Finding(f"GPU {index}", state, f"{said}, CUDA {torch.version.cuda}", "speed", advice))
    return found


def compiler() -> Finding:
    """A C++ compiler, which torch.compile calls."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        advice = "install g++ (as by apt-get install g++); without it, long runs take up to twice the time"
        return Finding("compiler", "note", f"none of {', '.join(names)}", "torch.compile", advice)
    return Finding("compiler", "good", path, "torch.compile")


def memory() -> list[Finding]:
    """Free memory, and room on the disks that Ray uses."""
    found = []
    if (info := Path("/proc/meminfo")).exists():
        lines = dict(line.split(":") for line in info.read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
        found.append(
            room("memory", free, 4 * GIB, "Ray, 1 GiB; workers, 1 or more each", "close what else runs")
        )
    for name, path, enough, purpose in (
        ("/dev/shm", "/dev/shm", 1 * GIB, "Ray's objects"),
        ("temporary disk", os.environ.get("RAY_TMPDIR", tempfile.gettempdir()), 5 * GIB, "Ray's logs"),
    ):
        if Path(path).is_dir():
            free = shutil.disk_usage(path).free
            advice = "in a container: --shm-size=4g" if name == "/dev/shm" else "make room, or set RAY_TMPDIR"
            found.append(room(name, free, enough, purpose, advice))
    return found


def room(name: str, free: int, enough: int, purpose: str, advice: str) -> Finding:
    """Whether so many bytes are enough."""
    state: State = "good" if free >= enough else "note"
    return Finding(
        name, state, f"{free / GIB:.1f} GiB free", purpose, f"{advice} ({enough / GIB:.0f} GiB are enough)"
    )


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
    yield from _safe("MLflow", lambda: call_with_timeout(mlflow_store, PATIENCE_S))
    progress("Ray")
    yield from _safe("Ray", ray_cluster)


def _safe(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return check()
    except (UserError, RunError, OSError) as e:
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
    return redact(first_line(error))


def stored(uri: str) -> list[Finding]:
    """Write a small file, read it, delete it. Raises: StorageError."""
    began = time.monotonic()
    storage = Storage.open(uri)
    took_ms = 1000 * (time.monotonic() - began)
    said = f"{storage}: written, read and deleted in {took_ms:.0f} ms"
    found = [Finding("storage", "good", said, "checkpoints and results")]
    if storage.is_local:
        free = shutil.disk_usage(storage.existing_folder()).free
        found.append(
            room("disk", free, 2 * GIB, "checkpoints and results", "make room, or use another --out")
        )
    return found


def mlflow_store() -> list[Finding]:
    """Write a run into the store and delete it; compare clocks with a server. Raises: StoreError, TrackingError."""
    from ray_distill.tracking.tracker import probe_store
    from ray_distill.tracking.uri import store_uri

    version, uri = importlib.metadata.version("mlflow"), os.environ.get("MLFLOW_TRACKING_URI")
    with ExitStack() as stack:
        if not uri:
            # A run makes a file beside its results, which is not there yet.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
            probe_store(f"sqlite:///{folder / 'mlflow.db'}")
            said = f"{version}; MLFLOW_TRACKING_URI is not set: a sqlite file beside the results"
            return [Finding("MLflow", "good", said, PURPOSES["MLflow"])]
        uri = store_uri(uri, Path())
        probe_store(uri)
    found = [
        Finding(
            "MLflow", "good", f"{version}; {redact(uri)}: a run was written and deleted", PURPOSES["MLflow"]
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
    task = _look_around.options(scheduling_strategy=on_node(node))
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
