"""What all tests share: one thread, and one Ray cluster for those that need one."""

from collections.abc import Callable, Iterator

import pytest
import torch
from tiny import Bench, tiny_config


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, and lose much where other work shares the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def bench() -> Callable[..., Bench]:
    """(sections) -> the built tiny experiment."""
    return lambda **sections: Bench(tiny_config(**sections))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One small local Ray cluster for the session, without a dashboard."""
    from ray_distill.cluster import cluster

    with cluster(num_cpus=2):
        yield
