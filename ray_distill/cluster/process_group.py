"""The process group of Ray Train's workers, in which only what the cluster's nodes can reach listens.

Ray leaves the meeting of the workers to torch, whose store listens to all networks of rank 0's machine, and lets anybody
write into it who gets there. Here it listens at the address by which Ray knows the node alone: of a cluster of our own,
127.0.0.1.
"""

import ipaddress
import os
import socket
import sys
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from torch.distributed import TCPStore  # type: ignore[attr-defined]

_held: list[Any] = []
"""In rank 0's process: the store, until its process group holds it."""


class GroupConfig(TorchConfig):
    """As Ray's own, but for where its store listens."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What joins the workers."""
        return _Group


class _Group(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: GroupConfig) -> None:
        """Let all workers meet at rank 0's store."""
        kind = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) > 0 else "gloo"
        timeout = timedelta(seconds=backend_config.timeout_s)
        host, port = worker_group.execute_single(0, listen, timeout)
        size = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(rank, join, kind, host, port, rank, size, timeout)
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: GroupConfig) -> None:
        """As Ray does it."""
        TorchConfig().backend_cls().on_shutdown(worker_group, backend_config)


def listen(timeout: timedelta) -> tuple[str, int]:
    """Open the store in this process, at the node's address and nowhere else. Returns: where."""
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    server = socket.create_server((host, 0), family=family, backlog=1024)
    port: int = server.getsockname()[1]
    _held[:] = [
        TCPStore(host, port, None, True, timeout, wait_for_workers=False, master_listen_fd=server.detach())
    ]
    return host, port


def join(kind: str, host: str, port: int, rank: int, size: int, timeout: timedelta) -> None:
    """Make this process one of the group that meets at the store."""
    if ipaddress.ip_address(host).is_loopback:
        # Else gloo takes the address that the machine's name has, which may be that of a network.
        os.environ["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"
    store = _held.pop() if rank == 0 else TCPStore(host, port, None, False, timeout, wait_for_workers=False)
    dist.init_process_group(kind, store=store, rank=rank, world_size=size, timeout=timeout)
