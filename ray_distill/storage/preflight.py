"""Whether the nodes of a cluster reach the storage of a run or of a search, each by its own credentials."""

import os

import ray
import ray.exceptions

from ray_distill.cluster.connection import alive_nodes, only_on
from ray_distill.config.config import ConfigError
from ray_distill.errors import first_line
from ray_distill.storage.lease import Holder, read_lease
from ray_distill.storage.remote import Storage, StorageAwayError
from ray_distill.storage.workdir import WorkDir

REACHED_WITHIN_S = 120.0
"""How long a node may take to say so; the first call starts a process there."""


@ray.remote(num_cpus=0)
def _reach(storage: Storage, there: Holder) -> str:
    """What a node finds that is to keep checkpoints where the driver does: nothing, or what is wrong."""
    try:
        storage.try_out()
        found = read_lease(storage)
    except StorageAwayError as e:
        return str(e)
    return "" if found is not None and found.token == there.token else "what the driver wrote is not there"


def check_reached(stored: WorkDir | None) -> None:
    """That all nodes of the connected cluster reach a storage that is held, each by its own credentials.

    Raises: ConfigError.
    """
    if stored is None or not os.environ.get("RAY_ADDRESS"):
        # The processes of a cluster of our own have this one's environment.
        return
    storage, nodes = stored.storage, alive_nodes()
    there = read_lease(storage)
    reaching = [_reach.options(scheduling_strategy=only_on(node)).remote(storage, there) for node in nodes]
    for node, found in zip(nodes, reaching, strict=True):
        try:
            wrong = ray.get(found, timeout=REACHED_WITHIN_S)
        except (ray.exceptions.RayError, TimeoutError) as e:
            wrong = first_line(e)
        if wrong:
            raise ConfigError(
                f"cluster.storage: {storage} is not reached from node {node['NodeManagerAddress']}: {wrong}. A path must "
                "be that of a disk that all nodes share; for a URI every node needs credentials of its own: by its "
                "role, in its environment, or as env_vars of a job's runtime environment"
            )
