"""Timing calls, running them in a subprocess, and the name of the device."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def device_name(device: str) -> str:
    """The name of the GPU or processor."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "cpu"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "cpu"


def median_seconds(device: str, *runs: Callable[[], object], repeats: int) -> list[float]:
    """The median seconds of each call; they alternate, so that a slowdown of the machine affects all."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, durations in zip(runs, times, strict=True):
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            durations.append(time.perf_counter() - start)
    return [statistics.median(durations) for durations in times]


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def call_in_subprocess(function: Callable[..., Any], *arguments: object) -> Any:
    """The function's result from a fresh process, so that memory measurements are independent."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)
