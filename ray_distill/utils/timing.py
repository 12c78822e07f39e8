"""What a call takes: seconds of a clock, a process of its own to run in, and the name of what it ran on."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def device_name(device: str) -> str:
    """The GPU's name; of the processor, as much as the system tells."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "cpu"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "cpu"


def seconds(device: str, *runs: Callable[[], object], repeats: int) -> list[float]:
    """The median time of each of some calls; they take turns, so that a machine that slows down slows all."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, taken in zip(runs, times, strict=True):
            _wait(device)
            began = time.perf_counter()
            run()
            _wait(device)
            taken.append(time.perf_counter() - began)
    return [statistics.median(taken) for taken in times]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def call_in_subprocess(function: Callable[..., Any], *arguments: object) -> Any:
    """The function's result from a fresh process, so that no engine pays for another's memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)
