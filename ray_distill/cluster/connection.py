"""Connecting to Ray: to an existing cluster, or to one of this process on this machine."""

import logging
import os
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import ray
from ray._private import ray_constants
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_distill.config.config import ConfigError
from ray_distill.errors import RunError

# Ray reads it when it is imported, which may have been before this package set its environment.
ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = ray_constants.env_bool("RAY_ENABLE_UV_RUN_RUNTIME_ENV", True)

PreparedT = TypeVar("PreparedT")


class ClusterError(RunError):
    """Ray could not be started or reached."""


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Ray started in this block listens on the loopback device, as on macOS, instead of on all networks.

    Ray replaces a loopback address that it is given by the network's, so this is the only way. The environment variable
    behind it would also reach other processes, which start clusters of several machines.
    """
    default = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = default


def _switch_policy(old: str, new: str) -> bool:
    """Move this thread from one of the system's scheduling policies to another. Returns: whether it was moved."""
    if not hasattr(os, old) or os.sched_getscheduler(0) != getattr(os, old):
        return False
    try:
        os.sched_setscheduler(0, getattr(os, new), os.sched_param(0))
    except OSError:
        # Some sandboxes forbid it. It is for speed alone.
        return False
    return True


@contextmanager
def batch_priority() -> Iterator[None]:
    """Processes and threads started in this block do not preempt others, where the system has such a policy.

    Ray's dozen processes wake more than a thousand times a second, for next to nothing; where workers compute on all
    cores, each time preempts one of them (measured: experiments/LOG.md, 2026-11-25).
    """
    switched = _switch_policy("SCHED_OTHER", "SCHED_BATCH")
    try:
        yield
    finally:
        if switched:
            normal_priority()


def normal_priority() -> None:
    """Undo `batch_priority` for this thread and those that it starts: for the one that trains."""
    _switch_policy("SCHED_BATCH", "SCHED_OTHER")


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Environment variables for a block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _local_address(port: str) -> dict[str, str]:
    """Environment variables with which Ray starts on a port, and its processes know their cluster.

    Ray's state API, through which Train learns that a run was killed from outside, otherwise searches the machine's
    processes for a cluster: with two of them it finds none, and the resources of the run are never released.
    """
    return {"RAY_GCS_SERVER_PORT": port, "RAY_ADDRESS": f"127.0.0.1:{port}"}


def _free_port() -> str:
    """Below the ephemeral ports (from 32768), so that no other process is given it before Ray binds it."""
    rng = random.SystemRandom()
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", rng.randrange(20_000, 32_768)))
            except OSError:
                continue
            return str(probe.getsockname()[1])


def _check_reachable(address: str) -> None:
    """Raises: ClusterError if nothing listens at a host and port: Ray would retry for more than five minutes."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        if parts.hostname and parts.port:
            socket.create_connection((parts.hostname, parts.port), timeout=10).close()
    except (OSError, ValueError) as e:
        raise ClusterError(
            f"no Ray cluster at RAY_ADDRESS {address}: {e}; start it, or unset RAY_ADDRESS"
        ) from e


def connect(num_cpus: int | None = None, *, dashboard: bool = True) -> bool:
    """Connect to Ray for the rest of the process, unless it is connected already.

    To the cluster at RAY_ADDRESS, which a submitted job has too; if it is not set, to a new cluster on this machine,
    which ends with the process.

    Args:
        num_cpus: logical CPUs of a new cluster. Default: the machine's cores.
        dashboard: of a new cluster. Without it, Ray never releases what a Ray Train run had reserved that is killed
            from outside, as searches with several workers do.

    Returns: whether it connected. Signal handlers stay the caller's.
    Raises: ClusterError.
    """
    on_sigterm = signal.getsignal(signal.SIGTERM)
    connected = _connect(num_cpus, dashboard)
    if connected and on_sigterm is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)
    return connected


def _connect(num_cpus: int | None, dashboard: bool) -> bool:
    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_reachable(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with ExitStack() as local:
            if not address:
                local.enter_context(_loopback_only())
                local.enter_context(batch_priority())
                local.enter_context(environment(_local_address(_free_port())))
            ray.init(
                address=None if address else "local",
                num_cpus=None if address else num_cpus,
                include_dashboard=None if address else dashboard,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    # Ray raises a bare Exception where its processes do not come up in time.
    except Exception as e:
        where = f"at RAY_ADDRESS {address}" if address else "on this machine"
        raise ClusterError(f"no Ray cluster {where}: {e}") from e
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        # Ray installs a handler that ends the process without a message.
        signal.signal(signal.SIGTERM, on_sigterm)
    return True


@contextmanager
def cluster(num_cpus: int | None = None, *, dashboard: bool = False) -> Iterator[None]:
    """As `connect`, for a block. A connection that exists before it outlives it. Raises: ClusterError."""
    connected = _connect(num_cpus, dashboard)
    try:
        yield
    finally:
        if connected:
            ray.shutdown()


@contextmanager
def ray_while_preparing(
    prepare: Callable[[], PreparedT], *, dashboard: bool = False, stay_connected: bool = False
) -> Iterator[PreparedT]:
    """What `prepare` returns, and a connection to Ray: both take seconds, so they run side by side.

    Args:
        stay_connected: as `connect` does; else as `cluster`.
    """
    with ThreadPoolExecutor(1) as side:
        preparing = side.submit(prepare)
        if stay_connected:
            connect()
        with cluster(dashboard=dashboard):
            yield preparing.result()


def alive_nodes() -> list[dict[str, Any]]:
    """The nodes of the connected cluster, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"]]


def on_node(node: dict[str, Any]) -> NodeAffinitySchedulingStrategy:
    """The scheduling strategy of a task that must run on a node."""
    return NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)


def check_resources(key: str, num_workers: int, cpus: float, gpus: float) -> None:
    """Raises: ConfigError if the cluster could never place the workers (Ray would wait for ever).

    Args:
        key: of the configuration's section `cluster`, with the number of workers.
        cpus, gpus: of each worker.
    """
    total = ray.cluster_resources()
    for name, each, other in (("CPU", cpus, "cpus_per_worker"), ("GPU", gpus, "use_gpu")):
        needed, available = num_workers * each, total.get(name, 0)
        if needed > available:
            raise ConfigError(
                f"cluster.{key}: {num_workers} workers with {each:g} {name} each need {needed:g} {name}s, "
                f"the cluster has {available:g}; lower cluster.{key} or cluster.{other}"
            )
