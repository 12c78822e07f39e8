"""The process group of Ray Train's workers, with a rendezvous store that listens only where the cluster's nodes are.

Ray leaves the rendezvous to torch, whose store listens on all networks of rank 0's machine and lets anybody write who
connects. Here it listens only at the address by which Ray knows the node: 127.0.0.1 on a local cluster.
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

_stores: list[Any] = []
"""In rank 0's process: the store, until its process group owns it."""


class GroupConfig(TorchConfig):
    """Ray's TorchConfig with our store."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The backend that forms the group."""
        return _Group


class _Group(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: GroupConfig) -> None:
        """Form the group around a store in rank 0's process."""
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) > 0 else "gloo"
        timeout = timedelta(seconds=backend_config.timeout_s)
        host, port = worker_group.execute_single(0, listen, timeout)
        size = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(rank, join, backend, host, port, rank, size, timeout)
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: GroupConfig) -> None:
        """As Ray's own backend."""
        TorchConfig().backend_cls().on_shutdown(worker_group, backend_config)


def listen(timeout: timedelta) -> tuple[str, int]:
    """Open the store in this process, at the node's address only. Returns: host and port."""
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    server = socket.create_server((host, 0), family=family, backlog=1024)
    port: int = server.getsockname()[1]
    _stores[:] = [
        TCPStore(host, port, None, True, timeout, wait_for_workers=False, master_listen_fd=server.detach())
    ]
    return host, port


def join(backend: str, host: str, port: int, rank: int, size: int, timeout: timedelta) -> None:
    """Join the process group of the store."""
    if ipaddress.ip_address(host).is_loopback:
        # Otherwise gloo listens at the address of the host name, which may be a network's.
        os.environ["GLOO_SOCKET_IFNAME"] = "lo" if sys.platform == "linux" else "lo0"
    store = _stores.pop() if rank == 0 else TCPStore(host, port, None, False, timeout, wait_for_workers=False)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
