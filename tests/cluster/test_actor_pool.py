"""The pool with real actors: every job once, whatever becomes of the actors."""

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
from ray_distill.cluster.actor_pool import PoolError, Workers, out_of_memory, run_jobs, short_reason

import ray  # isort: skip
from ray.exceptions import OutOfMemoryError, RayError  # isort: skip

KILLED = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1, ID: \
abac53d136896088d175a086040e0a9841db846b2b57754f0aa4ae37) was 13.89GB used / 23.54GB limit (0.589883), ...
PID	MEM(GB)	COMMAND
8438	0.56	ray::_Retrainer.run
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/en/latest/."""
"""Ray 2.60's memory monitor, shortened."""
ON_A_GPU = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.20 GiB is free."


def calculators(**takes: float) -> Workers:
    """Actors that square numbers, and do worse things when told to."""

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

    return Workers(of=Calculator, **takes)


class Notes:
    """A customer that writes everything down."""

    def __init__(self) -> None:
        self.results: list[tuple[Any, Any]] = []
        self.failures: list[tuple[Any, str]] = []
        self.news: list[str] = []

    def done(self, job: Any, result: Any) -> Iterable[Any]:
        self.results.append((job, result))
        return ()

    def failed(self, job: Any, reason: str) -> Iterable[Any]:
        self.failures.append((job, reason))
        return ()

    def says(self, news: str) -> None:
        self.news.append(news)


@contextmanager
def held(cpus: float) -> Iterator[None]:
    """CPUs of the cluster that somebody else has."""

    class Holder:
        def ready(self) -> None:
            pass

    holder = ray.remote(num_cpus=cpus)(Holder).remote()
    ray.get(holder.ready.remote())
    try:
        yield
    finally:
        ray.kill(holder)
        deadline = time.monotonic() + 30
        while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.usefixtures("ray_cluster")
class TestOnTwoCpus:
    def test_every_job_is_done_once_and_told_as_it_arrives(self) -> None:
        """The squares of 0 .. 19 by actors that take half a CPU; a fifth of them brings another job."""

        class Asking(Notes):
            def done(self, job: Any, result: Any) -> Iterable[Any]:
                super().done(job, result)
                return [job + 100] if job % 5 == 0 and job < 100 else []

        notes = Asking()
        report = run_jobs(calculators(cpus=0.5), range(20), notes)
        every = [*range(20), 100, 105, 110, 115]
        assert sorted(notes.results) == [(n, n * n) for n in every]
        assert (report.num_jobs, report.num_retries, notes.failures) == (24, 0, [])
        assert 1 <= report.num_actors <= 4
        assert report.busy_s > 0
        assert 0 < report.start_s < report.wall_s

    def test_the_longest_job_comes_first(self) -> None:
        """One actor takes jobs in the order of their cost, equal ones in the order given."""
        notes = Notes()
        with held(1):
            run_jobs(calculators(), [1, 3, 2, 3.0], notes, cost=float)
        assert [job for job, _ in notes.results] == [3, 3.0, 2, 1]

    def test_a_job_that_raises_or_kills_costs_no_other(self) -> None:
        """One raises: its reason. One kills every actor that has it, one uses up the memory: given up after three;
        the two lose four actors that were worth a second try."""
        notes = Notes()
        report = run_jobs(calculators(), [1, "raise", 2, "die", 3, "memory", 4], notes)
        assert sorted(job for job, _ in notes.results) == [1, 2, 3, 4]
        reasons = dict(notes.failures)
        assert reasons["raise"] == "KeyError: 'no such thing'"
        assert "3 actors were lost with it" in reasons["die"]
        assert "died" in reasons["die"]
        assert "3 actors were lost with it" in reasons["memory"]
        assert "MemoryError" in reasons["memory"]
        assert (report.num_jobs, report.num_retries) == (7, 4)

    def test_a_job_that_used_up_the_memory_is_done_last_and_alone(self, tmp_path: Path) -> None:
        """The first job asks torch for a petabyte, once: it begins again when the other actor has done all the rest."""

        class Timed(Notes):
            def done(self, job: Any, result: Any) -> Iterable[Any]:
                self.results.append((job, time.monotonic()))
                self.begun = result
                return ()

        notes, greedy = Timed(), ("greedy", tmp_path / "tried")
        report = run_jobs(calculators(), [greedy, *[("sleep", 0.3 + n / 100) for n in range(8)]], notes)
        assert len(notes.results) == 9
        assert notes.results[-1][0] == greedy
        assert notes.begun > notes.results[-2][1]
        assert (report.num_retries, notes.failures) == (1, [])
        assert notes.news[-1].startswith("memory was used up")

    def test_actors_killed_at_random_times(self) -> None:
        """Three actors, each killed by a job's process id at a random time: all jobs done all the same."""
        seed = random.randrange(10**6)
        print("seed", seed)
        draw = random.Random(seed)
        times = sorted(draw.sample(range(1, 12), 3))
        killed: list[int] = []

        class Killing(Notes):
            def done(self, job: Any, result: Any) -> Iterable[Any]:
                super().done(job, result)
                if len(self.results) in times and result not in killed:
                    os.kill(result, signal.SIGKILL)
                    killed.append(result)
                return ()

        notes = Killing()
        report = run_jobs(calculators(), ["who"] * 16, notes)
        assert len(notes.results) == 16
        assert notes.failures == []
        assert killed
        assert report.num_retries <= len(killed)

    def test_it_takes_what_others_leave_and_more_when_they_go(self) -> None:
        """Both CPUs held: it says that it waits, and for what. One given back: it works with one. The other: with two."""
        notes = Notes()
        first, second = held(1), held(1)
        first.__enter__()
        second.__enter__()
        timers = [
            threading.Timer(s, lambda h=h: h.__exit__(None, None, None))
            for s, h in ((0.5, first), (4, second))
        ]
        for timer in timers:
            timer.start()
        report = run_jobs(calculators(), [("sleep", 0.25)] * 40, notes)
        for timer in timers:
            timer.join()
        assert len(notes.results) == 40
        assert notes.news == [
            "waits for 1 CPU, and goes on as soon as others leave them: 0 of the cluster's 2 CPUs are free"
        ]
        assert report.start_s > 0.4
        assert report.num_actors == 2

    def test_actors_that_do_not_start_are_an_error_that_says_why(self) -> None:
        with pytest.raises(PoolError, match=r"actors do not start: ValueError: nothing to count with"):
            run_jobs(replace(calculators(), arguments=["nothing to count with"]), [1], Notes())

    def test_what_the_customer_raises_ends_the_pool_and_its_actors(self) -> None:
        class Angry(Notes):
            def done(self, job: Any, result: Any) -> Iterable[Any]:
                raise RuntimeError("enough")

        with pytest.raises(RuntimeError, match="enough"):
            run_jobs(calculators(), range(5), Angry())
        deadline = time.monotonic() + 30
        while ray.available_resources().get("CPU", 0) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_room_is_what_the_scarcest_resource_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a GPU and one CPU each: four on one GPU, two if there are two CPUs, none without a GPU; thirds of
    a GPU are three although 3 x 0.33.. falls short of 1."""
    workers = calculators(gpus=0.25)
    for free, room in (({"CPU": 8.0, "GPU": 1.0}, 4), ({"CPU": 2.0, "GPU": 1.0}, 2), ({"CPU": 8.0}, 0)):
        monkeypatch.setattr(ray, "available_resources", lambda free=free: free)
        assert workers.room() == room
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 8.0, "GPU": 1.0 - 1e-9})
    assert calculators(gpus=1 / 3).room() == 3
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 3.0})
    assert workers.waits() == (
        "waits for 1 CPU and 0.25 GPU, and goes on as soon as others leave them: 3 of the cluster's 8 CPUs, 0 of the "
        "cluster's 1 GPUs are free"
    )


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
