"""Whether the nodes of a cluster reach the storage of a run or a search, each with its own credentials."""

import os

import ray
import ray.exceptions

from ray_distill.cluster.connection import alive_nodes, on_node
from ray_distill.config.config import ConfigError
from ray_distill.errors import first_line
from ray_distill.storage.lease import LeaseRecord, read_lease
from ray_distill.storage.remote import Storage, StorageUnavailableError

NODE_TIMEOUT_S = 120.0
"""For a node's answer; the first call starts a process there."""


@ray.remote(num_cpus=0)
def _problem(storage: Storage, lease: LeaseRecord) -> str:
    """What keeps this node from saving checkpoints where the driver does; empty if nothing does."""
    try:
        storage.probe()
        seen = read_lease(storage)
    except StorageUnavailableError as e:
        return str(e)
    return "" if seen is not None and seen.token == lease.token else "what the driver wrote is not there"


def check_reachable(storage: Storage | None) -> None:
    """Check that all nodes of the connected cluster reach a leased storage. Raises: ConfigError."""
    if storage is None or not os.environ.get("RAY_ADDRESS"):
        # The processes of a cluster of our own have this one's environment.
        return
    nodes, lease = alive_nodes(), read_lease(storage)
    calls = [_problem.options(scheduling_strategy=on_node(node)).remote(storage, lease) for node in nodes]
    for node, call in zip(nodes, calls, strict=True):
        try:
            problem = ray.get(call, timeout=NODE_TIMEOUT_S)
        except (ray.exceptions.RayError, TimeoutError) as e:
            problem = first_line(e)
        if problem:
            raise ConfigError(
                f"cluster.storage: {storage} cannot be reached from node {node['NodeManagerAddress']}: {problem}. A path "
                "must be on a disk that all nodes share; for a URI every node needs its own credentials: by its role, in "
                "its environment, or as env_vars of a job's runtime environment"
            )
