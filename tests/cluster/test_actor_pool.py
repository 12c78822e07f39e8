"""The pool with real actors: every job runs once, whatever happens to the actors."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ray_distill.cluster.connection  # noqa: F401  (sets Ray's environment)
from ray_distill.cluster.actor_pool import ActorSpec, PoolError, out_of_memory, run_jobs, short_reason

import ray  # isort: skip
from ray.exceptions import OutOfMemoryError, RayError  # isort: skip

KILLED = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1, ID: \
abac53d136896088d175a086040e0a9841db846b2b57754f0aa4ae37) was 13.89GB used / 23.54GB limit (0.589883), ...
PID	MEM(GB)	COMMAND
8438	0.56	ray::_Retrainer.run
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/en/latest/."""
"""Ray 2.60's memory monitor, shortened."""
ON_A_GPU = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is free."


def calculators(**resources: float) -> ActorSpec:
    """Actors that square numbers, or fail as a job asks them to."""

    # Inside a function: Ray's processes cannot import the tests, so the class travels with the job.
    class Calculator:
        def __init__(self, start: str = "") -> None:
            if start:
                raise ValueError(start)
            self._jobs = 0

        def run(self, job: Any) -> Any:
            match job:
                case "raise":
                    raise KeyError("no such thing")
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "memory":
                    raise MemoryError
                case ("greedy", tried) if not tried.exists():
                    tried.touch()
                    torch.empty(2**50, dtype=torch.uint8)
                case ("greedy", _):
                    return time.monotonic()
                case ("sleep", seconds):
                    time.sleep(seconds)
                    return seconds
                case "who":
                    time.sleep(0.2)
                    return os.getpid()
            return job * job

    return ActorSpec(cls=Calculator, **resources)


class Recorder:
    """A handler that records its calls."""

    def __init__(self) -> None:
        self.results: list[tuple[Any, Any]] = []
        self.failures: list[tuple[Any, str]] = []
        self.messages: list[str] = []

    def on_result(self, job: Any, result: Any) -> Iterable[Any]:
        self.results.append((job, result))
        return ()

    def on_failure(self, job: Any, reason: str) -> Iterable[Any]:
        self.failures.append((job, reason))
        return ()

    def log(self, message: str) -> None:
        self.messages.append(message)


@contextmanager
def reserved(cpus: float) -> Iterator[None]:
    """CPUs of the cluster that another actor has."""

    class Owner:
        def ready(self) -> None:
            pass

    owner = ray.remote(num_cpus=cpus)(Owner).remote()
    ray.get(owner.ready.remote())
    try:
        yield
    finally:
        ray.kill(owner)
        deadline = time.monotonic() + 30
        while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.usefixtures("ray_cluster")
class TestOnTwoCpus:
    def test_every_job_runs_once_and_its_result_is_handled_as_it_arrives(self) -> None:
        """The squares of 0 .. 19 on actors with half a CPU each; every fifth job brings another."""

        class Spawning(Recorder):
            def on_result(self, job: Any, result: Any) -> Iterable[Any]:
                super().on_result(job, result)
                return [job + 100] if job % 5 == 0 and job < 100 else []

        handler = Spawning()
        report = run_jobs(calculators(num_cpus=0.5), range(20), handler)
        every = [*range(20), 100, 105, 110, 115]
        assert sorted(handler.results) == [(n, n * n) for n in every]
        assert (report.num_jobs, report.num_retries, handler.failures) == (24, 0, [])
        assert 1 <= report.num_actors <= 4
        assert report.busy_s > 0
        assert 0 < report.start_s < report.wall_s

    def test_the_longest_job_comes_first(self) -> None:
        """One actor runs jobs by descending cost, equal ones in the order given."""
        handler = Recorder()
        with reserved(1):
            run_jobs(calculators(), [1, 3, 2, 3.0], handler, cost=float)
        assert [job for job, _ in handler.results] == [3, 3.0, 2, 1]

    def test_a_job_that_raises_or_kills_its_actor_affects_no_other(self) -> None:
        """One raises, one kills every actor that runs it, one runs out of memory: the last two fail after three attempts
        each, which makes four retries."""
        handler = Recorder()
        report = run_jobs(calculators(), [1, "raise", 2, "die", 3, "memory", 4], handler)
        assert sorted(job for job, _ in handler.results) == [1, 2, 3, 4]
        reasons = dict(handler.failures)
        assert reasons["raise"] == "KeyError: 'no such thing'"
        assert "failed on 3 actors; last error: " in reasons["die"]
        assert "died" in reasons["die"]
        assert "failed on 3 actors; last error: " in reasons["memory"]
        assert "MemoryError" in reasons["memory"]
        assert (report.num_jobs, report.num_retries) == (7, 4)

    def test_a_job_that_ran_out_of_memory_is_retried_last_and_alone(self, tmp_path: Path) -> None:
        """The first job asks torch for a petabyte, once: it is retried when the other actor has done all others."""

        class Timed(Recorder):
            def on_result(self, job: Any, result: Any) -> Iterable[Any]:
                self.results.append((job, time.monotonic()))
                self.retried_at = result
                return ()

        handler, greedy = Timed(), ("greedy", tmp_path / "tried")
        report = run_jobs(calculators(), [greedy, *[("sleep", 0.3 + n / 100) for n in range(8)]], handler)
        assert len(handler.results) == 9
        assert handler.results[-1][0] == greedy
        assert handler.retried_at > handler.results[-2][1]
        assert (report.num_retries, handler.failures) == (1, [])
        assert handler.messages[-1].startswith("out of memory: the job is retried alone")

    def test_actors_killed_at_random_times(self) -> None:
        """Three actors are killed at random times: all jobs succeed nevertheless."""
        seed = random.randrange(10**6)
        print("seed", seed)
        draw = random.Random(seed)
        times = sorted(draw.sample(range(1, 12), 3))
        killed: list[int] = []

        class Killing(Recorder):
            def on_result(self, job: Any, result: Any) -> Iterable[Any]:
                super().on_result(job, result)
                if len(self.results) in times and result not in killed:
                    os.kill(result, signal.SIGKILL)
                    killed.append(result)
                return ()

        handler = Killing()
        report = run_jobs(calculators(), ["who"] * 16, handler)
        assert len(handler.results) == 16
        assert handler.failures == []
        assert killed
        assert report.num_retries <= len(killed)

    def test_it_grows_as_cpus_become_free(self) -> None:
        """Both CPUs taken: it logs what it is waiting for. One is released: it runs with one actor; the other: with two."""
        handler = Recorder()
        first, second = reserved(1), reserved(1)
        first.__enter__()
        second.__enter__()
        timers = [
            threading.Timer(s, lambda h=h: h.__exit__(None, None, None))
            for s, h in ((0.5, first), (4, second))
        ]
        for timer in timers:
            timer.start()
        report = run_jobs(calculators(), [("sleep", 0.25)] * 40, handler)
        for timer in timers:
            timer.join()
        assert len(handler.results) == 40
        assert handler.messages == ["waiting for 1 CPU; free: 0 of 2 CPUs"]
        assert report.start_s > 0.4
        assert report.num_actors == 2

    def test_actors_that_do_not_start_raise_the_reason(self) -> None:
        with pytest.raises(PoolError, match=r"actors do not start: ValueError: nothing to count with"):
            run_jobs(replace(calculators(), args=["nothing to count with"]), [1], Recorder())

    def test_an_exception_of_the_handler_ends_the_pool_and_its_actors(self) -> None:
        class Failing(Recorder):
            def on_result(self, job: Any, result: Any) -> Iterable[Any]:
                raise RuntimeError("enough")

        with pytest.raises(RuntimeError, match="enough"):
            run_jobs(calculators(), range(5), Failing())
        deadline = time.monotonic() + 30
        while ray.available_resources().get("CPU", 0) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_capacity_is_that_of_the_scarcest_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a GPU and one CPU each: four on one GPU, two if there are two CPUs, none without a GPU; thirds of
    a GPU are three although 3 x 0.33.. falls short of 1."""
    actors = calculators(num_gpus=0.25)
    for free, capacity in (({"CPU": 8.0, "GPU": 1.0}, 4), ({"CPU": 2.0, "GPU": 1.0}, 2), ({"CPU": 8.0}, 0)):
        monkeypatch.setattr(ray, "available_resources", lambda free=free: free)
        assert actors.capacity() == capacity
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 8.0, "GPU": 1.0 - 1e-9})
    assert calculators(num_gpus=1 / 3).capacity() == 3
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 3.0})
    assert actors.pending_message() == "waiting for 1 CPU and 0.25 GPU; free: 3 of 8 CPUs, 0 of 1 GPUs"


def test_out_of_memory_in_rays_words() -> None:
    for error in (OutOfMemoryError(KILLED), RayError(KILLED)):
        assert out_of_memory(error)
        assert short_reason(error) == (
            "out of memory: killed by Ray when 13.89GB of the node's 23.54GB were in use"
        )


def test_failed_allocations() -> None:
    """A petabyte really asked of torch and of numpy; and a GPU's error."""
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
        assert short_reason(error) == f"out of memory: could not allocate {amount}"


def test_an_exception_of_the_job_itself() -> None:
    assert not out_of_memory(ValueError("no such\nthing"))
    assert short_reason(ValueError("no such\n  thing")) == "ValueError: no such thing"
