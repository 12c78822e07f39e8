"""Getting hold of a cluster."""

import os

import ray


def test_processes_of_a_cluster_of_ours_know_its_address_and_this_one_as_before(ray_cluster: None) -> None:
    """Else Ray's state API looks for a cluster on the machine, and finds none where there are two."""
    addresses = ray.get(ray.remote(lambda: os.environ["RAY_ADDRESS"]).remote())
    assert addresses == ray.get_runtime_context().gcs_address
    assert not {"RAY_ADDRESS", "RAY_GCS_SERVER_PORT"} & os.environ.keys()
