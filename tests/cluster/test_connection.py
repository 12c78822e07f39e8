"""Connecting to Ray."""

import os
import subprocess
import sys

import pytest
import ray

from ray_distill.cluster.connection import cluster, connect, normal_priority


def test_processes_of_a_local_cluster_know_its_address_and_the_driver_does_not(ray_cluster: None) -> None:
    """Otherwise Ray's state API searches the machine for a cluster, and finds none where there are two."""
    addresses = ray.get(ray.remote(lambda: os.environ["RAY_ADDRESS"]).remote())
    assert addresses == ray.get_runtime_context().gcs_address
    assert not {"RAY_ADDRESS", "RAY_GCS_SERVER_PORT"} & os.environ.keys()


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="a policy of Linux alone")
def test_rays_processes_do_not_preempt_threads_that_train(ray_cluster: None) -> None:
    """They wake so often that training threads would be preempted all the time."""

    @ray.remote
    def policies() -> tuple[int, int]:
        before = os.sched_getscheduler(0)
        normal_priority()
        return before, os.sched_getscheduler(0)

    assert ray.get(policies.remote()) == (os.SCHED_BATCH, os.SCHED_OTHER)
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_connection_that_exists_outlives_the_block(ray_cluster: None) -> None:
    """The caller's cluster is used as it is and not shut down; `connect` reports that it had nothing to do."""
    before = ray.get_runtime_context().gcs_address
    with cluster(num_cpus=1):
        assert ray.get_runtime_context().gcs_address == before
        assert ray.cluster_resources()["CPU"] == 2
    assert ray.is_initialized()
    assert not connect()
    assert ray.get_runtime_context().gcs_address == before


@pytest.mark.parametrize("first", ["ray", "ray_distill.api", "ray_distill.distillation.mailbox", "torch"])
def test_workers_are_not_started_by_uv_whatever_was_imported_first(first: str) -> None:
    """Under `uv run` Ray would start each of its processes by another `uv run`, which takes seconds. A user's own choice
    is left alone."""
    code = f"import {first}, ray_distill.cluster.connection; from ray._private import ray_constants as c; "
    code += "print(c.RAY_ENABLE_UV_RUN_RUNTIME_ENV)"
    bare = {name: value for name, value in os.environ.items() if name != "RAY_ENABLE_UV_RUN_RUNTIME_ENV"}
    for environment, expected in ((bare, "False"), ({**bare, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "1"}, "True")):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected
