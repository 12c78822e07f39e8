"""Getting hold of a Ray cluster: the one that this process belongs to, or a small one on this machine."""

import atexit
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

# Before ray is imported. Without the first, `uv run` as the driver makes Ray build a new environment for
# its workers; the second asks Train's controller more often than every 2 s for reports, which it passes
# on one by one; the third keeps a research tool from reporting its use.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")

import ray
from ray._private import ray_constants
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_distill.config.config import ConfigError
from ray_distill.errors import RunError

PreparedT = TypeVar("PreparedT")


class ClusterError(RunError):
    """Ray could not be started or reached."""


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray started within listens to this machine alone, as it does on macOS, instead of to the whole network.

    Ray replaces a loopback address that it is given by that of the network, so this is the only way; the environment
    variable behind it would reach other processes, which start clusters of many machines.
    """
    usual = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = usual


def _change_policy(now: str, then: str) -> bool:
    """Move this thread from one of the system's scheduling policies to another; whether it was so moved."""
    if not hasattr(os, now) or os.sched_getscheduler(0) != getattr(os, now):
        return False
    try:
        os.sched_setscheduler(0, getattr(os, then), os.sched_param(0))
    except OSError:
        # Some sandboxes forbid it. It is for speed alone.
        return False
    return True


@contextmanager
def batch_priority() -> Iterator[None]:
    """Processes and threads started within wait their turn instead of interrupting, where the system knows the difference.

    Ray's dozen processes wake more than a thousand times a second, for next to nothing; where workers compute on all
    cores, each time interrupts one of them (measured: experiments/LOG.md, 2026-11-25).
    """
    moved = _change_policy("SCHED_OTHER", "SCHED_BATCH")
    try:
        yield
    finally:
        if moved:
            normal_priority()


def normal_priority() -> None:
    """Let this thread, and those that it starts, not give way as those of Ray do: for the one that trains."""
    _change_policy("SCHED_BATCH", "SCHED_OTHER")


@contextmanager
def in_environment(values: dict[str, str]) -> Iterator[None]:
    """These variables within, and what was there before after it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _at(port: str) -> dict[str, str]:
    """The environment in which Ray starts at a port, and its processes know their cluster.

    Ray's state API, through which Train learns that a run was killed from outside, otherwise looks through the
    machine's processes for "the" cluster: with two of them it finds none, and what the run had reserved is never given
    back.
    """
    return {"RAY_GCS_SERVER_PORT": port, "RAY_ADDRESS": f"127.0.0.1:{port}"}


def _free_port() -> str:
    """Below those that systems give out (32768 on), so that nobody takes it before Ray does."""
    drawn = random.SystemRandom()
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", drawn.randrange(20_000, 32_768)))
            except OSError:
                continue
            return str(probe.getsockname()[1])


def _check_answered(address: str) -> None:
    """Raises: ClusterError if nobody answers at a host and port: Ray would try again for more than five minutes."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        if parts.hostname and parts.port:
            socket.create_connection((parts.hostname, parts.port), timeout=10).close()
    except (OSError, ValueError) as e:
        raise ClusterError(
            f"no Ray cluster at RAY_ADDRESS {address}: {e}; start it, or unset RAY_ADDRESS"
        ) from e


@contextmanager
def cluster(num_cpus: int | None = None, *, dashboard: bool = False) -> Iterator[None]:
    """A connection to Ray. The cluster of RAY_ADDRESS or of the submitted job if there is one, else a
    cluster on this machine that ends with the block, with that many logical CPUs (by default, its cores). A
    connection that is already there is left alone. Raises: ClusterError.

    Args:
        dashboard: for a cluster of our own. Without it, what a Ray Train run that is killed from outside had
            reserved is never given back.
    """
    if ray.is_initialized():
        yield
        return
    # A submitted job finds RAY_ADDRESS set.
    here = not os.environ.get("RAY_ADDRESS")
    if not here:
        _check_answered(os.environ["RAY_ADDRESS"])
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with ExitStack() as local:
            if here:
                local.enter_context(_on_loopback())
                local.enter_context(batch_priority())
                local.enter_context(in_environment(_at(_free_port())))
            ray.init(
                address="local" if here else None,
                num_cpus=num_cpus if here else None,
                include_dashboard=dashboard if here else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    # Ray raises a bare Exception where its processes do not come up in time.
    except Exception as e:
        where = "on this machine" if here else f"at RAY_ADDRESS {os.environ['RAY_ADDRESS']}"
        raise ClusterError(f"no Ray cluster {where}: {e}") from e
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        # Ray has put a handler of its own there, which ends the process without a word.
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        ray.shutdown()


def connect() -> None:
    """Connect to Ray as `cluster` does, for the rest of this process: for notebooks and scripts. Raises: ClusterError."""
    if not ray.is_initialized():
        # With a dashboard: searches with several workers need it, and may come later.
        connection = cluster(dashboard=True)
        connection.__enter__()
        atexit.register(connection.__exit__, None, None, None)


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


def only_on(node: dict[str, Any]) -> NodeAffinitySchedulingStrategy:
    """Where a task is to run: on this node, or not at all."""
    return NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)


def require(key: str, num_workers: int, cpus: float, gpus: float) -> None:
    """Raises: ConfigError if the cluster could never place so many workers (Ray would wait for ever).

    Args:
        key: of the configuration's section `cluster`, that says how many.
    """
    total = ray.cluster_resources()
    for name, each, other in (("CPU", cpus, "cpus_per_worker"), ("GPU", gpus, "use_gpu")):
        needed, there = num_workers * each, total.get(name, 0)
        if needed > there:
            raise ConfigError(
                f"cluster.{key}: {num_workers} workers with {each:g} {name} each need {needed:g} {name}s, "
                f"the cluster has {there:g}; lower cluster.{key} or cluster.{other}"
            )
