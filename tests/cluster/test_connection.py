"""Getting hold of a cluster."""

import os

import pytest
import ray

from ray_distill.cluster.connection import normal_priority


def test_processes_of_a_cluster_of_ours_know_its_address_and_this_one_as_before(ray_cluster: None) -> None:
    """Else Ray's state API looks for a cluster on the machine, and finds none where there are two."""
    addresses = ray.get(ray.remote(lambda: os.environ["RAY_ADDRESS"]).remote())
    assert addresses == ray.get_runtime_context().gcs_address
    assert not {"RAY_ADDRESS", "RAY_GCS_SERVER_PORT"} & os.environ.keys()


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux alone knows processes that give way")
def test_processes_of_ray_give_way_to_threads_that_train(ray_cluster: None) -> None:
    """Ray wakes them so often that training threads would be interrupted all the time."""

    @ray.remote
    def policies() -> tuple[int, int]:
        before = os.sched_getscheduler(0)
        normal_priority()
        return before, os.sched_getscheduler(0)

    assert ray.get(policies.remote()) == (os.SCHED_BATCH, os.SCHED_OTHER)
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
