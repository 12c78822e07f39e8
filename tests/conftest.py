"""What all tests share: one thread, and one Ray cluster for those that need one.

The tests of core run where there is only torch and higher: what needs more is imported by what asks for it.
"""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, and lose much where other work shares the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def relative_difference() -> Callable[[Tensor, Tensor], float]:
    """|a - b| / |b| in the L2 norm; b must not vanish."""

    def measure(a: Tensor, b: Tensor) -> float:
        assert a.shape == b.shape
        scale = float(b.norm())
        assert scale > 0.0, "the reference vanishes: the comparison would say nothing"
        return float((a - b).norm()) / scale

    return measure


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Processes that tests start can be sent Ctrl-C, also where the tests themselves run in a shell's background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data of the tests, and of the processes that they start, go to a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_DISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def bench() -> Callable[..., Any]:
    """(sections) -> the built tiny experiment."""
    from tests.helpers.tiny import Bench, tiny_config

    return lambda **sections: Bench(tiny_config(**sections))


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A small local Ray cluster for the tests of a file, without a dashboard."""
    from ray_distill.cluster.connection import cluster

    with cluster(num_cpus=2):
        yield


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow store for the tests of a file: making one takes seconds."""
    from ray_distill.tracking.store import open_store

    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    open_store(uri, "tests")
    return uri
