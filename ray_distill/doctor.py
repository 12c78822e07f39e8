"""Checks whether this machine, its Ray cluster and its stores have what a run needs, each with one or more `Finding`s.

A check that fails does not stop the others. What runs cannot do without is `bad` if it is missing; what only costs time or
space is a `note`.
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
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from ray_distill import __version__
from ray_distill.cluster.connection import alive_nodes, cluster, on_node
from ray_distill.errors import RunError, UserError, first_line
from ray_distill.storage.remote import Storage
from ray_distill.utils.secrets import redact
from ray_distill.utils.timeout import call_with_timeout

import ray  # isort: skip  (after ray_distill.cluster.connection, which sets its environment)

State = Literal["good", "note", "bad"]

GIB = 2**30
TIMEOUT_S = 60
"""For a store or a node to answer."""
MAX_SKEW_S = 2.0
"""Between two clocks: beyond it, metrics and logs appear in the wrong order."""

PURPOSES = {
    "torch": "the arithmetic",
    "GPUs": "speed",
    "storage": "checkpoints and results",
    "MLflow": "the record of runs",
    "Ray": "workers and evaluation",
}
ADVICE = {
    "torch": "reinstall with uv sync",
    "storage": "choose a writable place (--out), or put its credentials in the environment",
    "MLflow": "start the server, or fix MLFLOW_TRACKING_URI",
    "Ray": "start the cluster (ray start --head), fix RAY_ADDRESS and RAY_AUTH_MODE, or unset RAY_ADDRESS",
}
"""For checks that raise."""


class Finding(NamedTuple):
    """The result of a check."""

    check: str
    state: State
    found: str
    purpose: str
    """What it is needed for."""
    advice: str = ""
    """What to do unless it is good."""


def run_checks(storage: str, progress: Callable[[str], None]) -> Iterator[Finding]:
    """All checks, in order.

    Args:
        storage: a folder, or a URI that pyarrow knows, where results and checkpoints would go.
        progress: called with the name of each check before it starts.
    """
    checks: dict[str, Callable[[], list[Finding]]] = {
        "Python": check_python,
        "torch": check_torch,
        "GPUs": check_gpus,
        "compiler": check_compiler,
        "memory": check_memory,
        "storage": lambda: check_storage(storage),
        "MLflow": lambda: call_with_timeout(check_mlflow, TIMEOUT_S),
        "Ray": check_ray,
    }
    for name, check in checks.items():
        progress(name)
        yield from _catch(name, check)


def _catch(name: str, check: Callable[[], list[Finding]]) -> list[Finding]:
    """The findings of a check; one that is `bad` if it raises."""
    try:
        return check()
    except Exception as e:
        message = redact(first_line(e))
        if not isinstance(e, UserError | RunError | OSError):
            message = f"{type(e).__name__}: {message}"
        return [Finding(name, "bad", message, PURPOSES.get(name, ""), ADVICE.get(name, ""))]


def check_python() -> list[Finding]:
    """The interpreter."""
    version = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    return [Finding("Python", "good", version, "everything")]


def check_torch() -> list[Finding]:
    """Whether torch can be imported and computes."""
    import torch

    product = torch.ones(64, 64) @ torch.ones(64, 64)
    if not bool((product == 64).all()):
        raise RunError("a matrix product is wrong")
    return [Finding("torch", "good", f"{torch.__version__}, {os.cpu_count()} CPU cores", PURPOSES["torch"])]


def check_gpus() -> list[Finding]:
    """Each GPU that torch can use, or why there is none."""
    import torch

    if torch.cuda.is_available():
        return [_gpu(index) for index in range(torch.cuda.device_count())]
    if Path("/proc/driver/nvidia/version").exists():
        advice = "install a torch build for this driver's CUDA (see pytorch.org), or update the driver"
        return [Finding("GPUs", "bad", "an NVIDIA driver, but torch cannot use it", PURPOSES["GPUs"], advice)]
    advice = "nothing to do for runs on CPUs; large experiments need a GPU"
    return [Finding("GPUs", "note", "none", PURPOSES["GPUs"], advice)]


def _gpu(index: int) -> Finding:
    import torch

    gpu = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    works = bool((torch.ones(8, device=f"cuda:{index}") * 2 == 2).all())
    state: State = "bad" if not works else "note" if free < total / 2 else "good"
    text = (
        f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}, {free / GIB:.1f} of {total / GIB:.1f} GiB free, "
        f"CUDA {torch.version.cuda}"
    )
    advice = "another process uses its memory; see nvidia-smi" if works else "wrong results; replace it"
    return Finding(f"GPU {index}", state, text, PURPOSES["GPUs"], advice)


def check_compiler() -> list[Finding]:
    """A C++ compiler, which torch.compile calls."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        advice = "install g++ (apt-get install g++); without it, long runs take up to twice as long"
        return [Finding("compiler", "note", f"none of {', '.join(names)}", "torch.compile", advice)]
    return [Finding("compiler", "good", path, "torch.compile")]


def check_memory() -> list[Finding]:
    """Free memory, and free space on the disks that Ray uses."""
    findings = []
    if (meminfo := Path("/proc/meminfo")).exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
        purpose = "Ray, 1 GiB; each worker, 1 GiB or more"
        findings.append(_free_space("memory", free, 4 * GIB, purpose, "close other programs"))
    shm, temporary = Path("/dev/shm"), Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir()))
    if shm.is_dir():
        free, advice = shutil.disk_usage(shm).free, "in a container: --shm-size=4g"
        findings.append(_free_space("/dev/shm", free, 1 * GIB, "Ray's objects", advice))
    if temporary.is_dir():
        free, advice = shutil.disk_usage(temporary).free, "free disk space, or set RAY_TMPDIR"
        findings.append(_free_space("temporary disk", free, 5 * GIB, "Ray's logs", advice))
    return findings


def _free_space(name: str, free: int, enough: int, purpose: str, advice: str) -> Finding:
    """Whether so many bytes are enough."""
    state: State = "good" if free >= enough else "note"
    advice = f"{advice} ({enough / GIB:.0f} GiB recommended)"
    return Finding(name, state, f"{free / GIB:.1f} GiB free", purpose, advice)


def check_storage(uri: str) -> list[Finding]:
    """Write a small file, read it, delete it. Raises: StorageError."""
    started = time.monotonic()
    storage = Storage.open(uri)
    elapsed_ms = 1000 * (time.monotonic() - started)
    text = f"{storage}: writable (write, read and delete in {elapsed_ms:.0f} ms)"
    findings = [Finding("storage", "good", text, PURPOSES["storage"])]
    if storage.is_local:
        free = shutil.disk_usage(storage.existing_folder()).free
        advice = "free disk space, or use another --out"
        findings.append(_free_space("disk", free, 2 * GIB, PURPOSES["storage"], advice))
    return findings


def check_mlflow() -> list[Finding]:
    """Write a run to the store and delete it; compare clocks with a server. Raises: StoreError, TrackingError."""
    from ray_distill.tracking.tracker import probe_store
    from ray_distill.tracking.uri import store_uri

    version, uri = importlib.metadata.version("mlflow"), os.environ.get("MLFLOW_TRACKING_URI")
    with ExitStack() as stack:
        if not uri:
            # A run creates a file beside its results, which do not exist yet.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
            probe_store(f"sqlite:///{folder / 'mlflow.db'}")
            text = f"{version}; MLFLOW_TRACKING_URI is not set: runs use an SQLite file beside their results"
            return [Finding("MLflow", "good", text, PURPOSES["MLflow"])]
        uri = store_uri(uri, Path())
        probe_store(uri)
    text = f"{version}; {redact(uri)}: a run was written and deleted"
    findings = [Finding("MLflow", "good", text, PURPOSES["MLflow"])]
    if uri.startswith("http"):
        findings.append(_clock_skew("MLflow's clock", _server_clock_offset_s(uri), 1.0))
    return findings


def _server_clock_offset_s(uri: str) -> float:
    """Seconds by which an HTTP server's clock, which has a resolution of one second, is ahead of this machine's."""
    parts = urlsplit(uri)
    without_credentials = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    before = time.time()
    try:
        with urllib.request.urlopen(without_credentials, timeout=10) as response:
            date = response.headers["Date"]
    except urllib.error.HTTPError as e:
        # A server that refuses access still sends the time.
        date = e.headers["Date"]
    middle_of_second = parsedate_to_datetime(date).timestamp() + 0.5
    return middle_of_second - (before + time.time()) / 2


def _clock_skew(name: str, offset_s: float, error_s: float) -> Finding:
    """Whether a clock agrees with this machine's, given its offset and the offset's error."""
    skewed = abs(offset_s) > MAX_SKEW_S + error_s
    text = f"differs from this machine's by {offset_s:+.1f} s" if skewed else "agrees with this machine's"
    advice = "synchronise both by NTP (timedatectl, chrony)"
    return Finding(name, "note" if skewed else "good", text, "times of metrics", advice)


def _versions() -> dict[str, str]:
    installed = {name: importlib.metadata.version(name) for name in ("torch", "ray")}
    return {"ray-distill": __version__} | installed | {"Python": platform.python_version()}


@ray.remote(num_cpus=0)
def _clock_and_versions() -> tuple[float, dict[str, str]]:
    """Of a node."""
    return time.time(), _versions()


def check_ray() -> list[Finding]:
    """The cluster that runs would use: its nodes, their clocks and versions, and its GPUs. Raises: ClusterError."""
    address = os.environ.get("RAY_ADDRESS")
    where = f"at {address}" if address else "started on this machine"
    with cluster():
        nodes, resources = alive_nodes(), ray.cluster_resources()
        text = (
            f"{ray.__version__}, {where}: {len(nodes)} node(s), {resources.get('CPU', 0):g} CPUs, "
            f"{resources.get('GPU', 0):g} GPUs"
        )
        findings = [Finding("Ray", "good", text, PURPOSES["Ray"])]
        this_node_id = ray.get_runtime_context().get_node_id()
        for node in nodes:
            name = f"node {node['NodeManagerAddress']}"
            of_node = _catch(name, partial(_check_node, node, name))
            # This machine trivially agrees with itself; all that can be wrong is that it runs no tasks.
            findings += [f for f in of_node if f.state == "bad" or node["NodeID"] != this_node_id]
        findings.append(_gpus_known_to_ray(next(node for node in nodes if node["NodeID"] == this_node_id)))
    return findings


def _check_node(node: dict[str, Any], name: str) -> list[Finding]:
    """A node's versions and clock, against this machine's."""
    task = _clock_and_versions.options(scheduling_strategy=on_node(node))
    # The first call starts a process there.
    ray.get(task.remote(), timeout=TIMEOUT_S)
    before = time.time()
    clock, versions = ray.get(task.remote(), timeout=TIMEOUT_S)
    after = time.time()
    different = [
        f"{key} {versions[key]} there, {version} here"
        for key, version in _versions().items()
        if versions[key] != version
    ]
    same_versions = Finding(
        name,
        "bad" if different else "good",
        "; ".join(different) or "same versions of ray-distill, torch, Ray and Python",
        "the same numbers everywhere",
        "install the same versions on all nodes",
    )
    return [same_versions, _clock_skew(f"{name}'s clock", clock - (before + after) / 2, (after - before) / 2)]


def _gpus_known_to_ray(node: dict[str, Any]) -> Finding:
    import torch

    by_ray, by_torch = int(node["Resources"].get("GPU", 0)), torch.cuda.device_count()
    state: State = "good" if by_ray == by_torch else "bad" if by_ray > by_torch else "note"
    text = f"Ray sees {by_ray} on this node, torch {by_torch}"
    advice = "start Ray with --num-gpus, and with the same CUDA_VISIBLE_DEVICES"
    return Finding("Ray's GPUs", state, text, "cluster.use_gpu", advice)
