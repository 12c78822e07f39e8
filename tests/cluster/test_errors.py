"""What a person is told of errors that came out of an actor."""

import numpy as np
import pytest
import torch

import ray_distill.cluster.connection  # noqa: F401  (sets Ray's environment)
from ray_distill.cluster.errors import out_of_memory, short_reason

from ray.exceptions import OutOfMemoryError, RayError  # isort: skip

KILLED = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1, ID: \
abac53d136896088d175a086040e0a9841db846b2b57754f0aa4ae37) was 13.89GB used / 23.54GB limit (0.589883), ...
PID	MEM(GB)	COMMAND
8438	0.56	ray::_Retrainer.run
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/en/latest/."""
"""Ray 2.60's memory monitor, shortened."""
ON_A_GPU = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is free."


def test_what_ray_kills_for_memory() -> None:
    for error in (OutOfMemoryError(KILLED), RayError(KILLED)):
        assert out_of_memory(error)
        assert short_reason(error) == (
            "out of memory: 13.89GB of its machine's 23.54GB were in use, so Ray killed it"
        )


def test_memory_that_is_not_to_be_had() -> None:
    """A petabyte of torch's and of numpy's, really asked for; and a GPU's error."""
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**50, dtype=torch.uint8)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(2**50, dtype=np.uint8)
    for error, amount in (
        (of_torch.value, "1125899906842624 bytes"),
        (of_numpy.value, "1.00 PiB"),
        (torch.cuda.OutOfMemoryError(ON_A_GPU), "20.00 GiB"),
    ):
        assert out_of_memory(error)
        assert short_reason(error) == f"out of memory: {amount} more could not be had"


def test_an_error_of_the_work_itself() -> None:
    assert not out_of_memory(ValueError("no such\nthing"))
    assert short_reason(ValueError("no such\n  thing")) == "ValueError: no such thing"
