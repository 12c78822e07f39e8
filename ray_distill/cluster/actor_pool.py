"""A pool of Ray actors for independent jobs. It takes what is free and survives the loss of actors.

The pool starts as many actors as the cluster has free CPUs and GPUs for, more when some become free, and at least one,
which waits for its place if it must. Jobs are submitted only to actors that have started, so none is stuck behind an actor
that cannot be placed. The longest jobs run first, so that actors finish at about the same time.

| failure | what happens |
|---|---|
| a job raises | it fails with its reason; its actor takes the next job |
| an actor or its node dies | the job is retried on another actor, MAX_ATTEMPTS times in all |
| a job runs out of memory | likewise, but alone and after all others, since the actors of a node share its memory |
| actors do not start | PoolError, unless other actors are running |

`ray.util.ActorPool` has a fixed set of actors and does not retry. Ray's `max_restarts` and `max_task_retries` tie a job to
its actor: one that was on a lost node would wait for a free CPU while the other actors have nothing to do.
"""

import heapq
import itertools
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from ray_distill.errors import RunError

MAX_ATTEMPTS = 3
"""Of a job, before it fails; and of starting an actor."""
POLL_S = 1.0
"""How long to wait for a result before looking for free resources again."""

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")
_JobT = TypeVar("_JobT")
_ResultT_contra = TypeVar("_ResultT_contra", contravariant=True)


class PoolError(RunError):
    """The pool has no actor, and none can be started."""


@dataclass(frozen=True, kw_only=True)
class ActorSpec:
    """The actors of a pool: `cls(*args)`, which has a method `run(job)`, and the resources of each."""

    cls: type
    args: Sequence[Any] = ()
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    """A fraction of one, or whole ones."""

    def capacity(self) -> int:
        """How many more of them fit into the cluster's free resources."""
        free = ray.available_resources()
        return min(int(free.get(name, 0.0) / num + 1e-6) for name, num in self._resources())

    def start(self) -> Any:
        """The handle of a new actor, which may still be pending."""
        options = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "max_restarts": 0}
        return ray.remote(**options)(self.cls).remote(*self.args)

    def pending_message(self) -> str:
        """The resources that a pending actor is waiting for."""
        free, total = ray.available_resources(), ray.cluster_resources()
        needed = " and ".join(f"{num:g} {name}" for name, num in self._resources())
        available = ", ".join(
            f"{free.get(name, 0.0):g} of {total.get(name, 0.0):g} {name}s" for name, _ in self._resources()
        )
        return f"waiting for {needed}; free: {available}"

    def _resources(self) -> list[tuple[str, float]]:
        return [(name, num) for name, num in (("CPU", self.num_cpus), ("GPU", self.num_gpus)) if num > 0]


class JobHandler(Protocol[_JobT, _ResultT_contra]):
    """Callbacks of a pool. They are called one at a time, in the thread that runs the pool."""

    def on_result(self, job: _JobT, result: _ResultT_contra) -> Iterable[_JobT]:
        """A job has succeeded. Returns: further jobs."""

    def on_failure(self, job: _JobT, reason: str) -> Iterable[_JobT]:
        """A job has failed for good. Returns: further jobs."""

    def log(self, message: str) -> None:
        """Progress messages of the pool itself."""


@dataclass(kw_only=True)
class PoolStats:
    """How well the pool's time was used."""

    wall_s: float = 0.0
    start_s: float = 0.0
    """Until the first actor had started."""
    num_actors: int = 0
    """The most at one time."""
    num_jobs: int = 0
    """Jobs that succeeded or failed."""
    num_retries: int = 0
    """Attempts beyond each job's first."""
    busy_s: float = 0.0
    """Of all actors, failed attempts included."""
    longest_job_s: float = 0.0
    idle_tail_s: float = 0.0
    """The longest time that an actor was idle at the end."""

    @property
    def efficiency(self) -> float:
        """Busy time / (wall time x actors): the time until an actor has started counts as idle."""
        return self.busy_s / (self.wall_s * self.num_actors) if self.num_actors else 0.0


def run_jobs(
    actors: ActorSpec,
    jobs: Iterable[JobT],
    handler: JobHandler[JobT, ResultT],
    cost: Callable[[JobT], float] = lambda job: 1.0,
) -> PoolStats:
    """Run jobs, and those that their results bring, on actors of the connected Ray cluster.

    Args:
        cost: how long a job takes, in any unit.

    Raises: PoolError; and whatever the handler raises. The actors are killed in any case.
    """
    return _Pool(actors, handler, cost).run(jobs)


@dataclass(order=True)
class _Task(Generic[JobT]):
    """A queued job. The queue's order: those that must run alone last, then the longest first."""

    alone: bool
    negative_cost: float
    number: int
    job: JobT = field(compare=False)
    attempts: int = field(default=0, compare=False)


class _Pool(Generic[JobT, ResultT]):
    def __init__(
        self, actors: ActorSpec, handler: JobHandler[JobT, ResultT], cost: Callable[[JobT], float]
    ) -> None:
        self._spec, self._handler, self._cost = actors, handler, cost
        self._numbers = itertools.count()
        self._queue: list[_Task[JobT]] = []
        self._starting: dict[Any, Any] = {}
        """Readiness reference -> actor."""
        self._idle: list[tuple[Any, float]] = []
        """Actors, and since when."""
        self._running: dict[Any, tuple[Any, _Task[JobT], float]] = {}
        """Result reference -> actor, task, since when."""
        self._failed_starts = 0
        self._last_poll = -POLL_S
        self._started_at = time.monotonic()
        self._stats = PoolStats()

    def run(self, jobs: Iterable[JobT]) -> PoolStats:
        self._add(jobs)
        try:
            while self._queue or self._running:
                self._submit()
                self._start_actors()
                self._wait()
            now = time.monotonic()
            self._stats.wall_s = now - self._started_at
            self._stats.idle_tail_s = max((now - since for _, since in self._idle), default=0.0)
            return self._stats
        finally:
            running = [actor for actor, *_ in self._running.values()]
            for actor in (*(actor for actor, _ in self._idle), *self._starting.values(), *running):
                _kill(actor)

    def _add(self, jobs: Iterable[JobT]) -> None:
        for job in jobs:
            heapq.heappush(self._queue, _Task(False, -self._cost(job), next(self._numbers), job))

    @property
    def _can_submit(self) -> bool:
        """Whether the next job lacks nothing but an actor."""
        return bool(self._queue) and not (self._queue[0].alone and self._running)

    def _submit(self) -> None:
        while self._idle and self._can_submit:
            (actor, _), task = self._idle.pop(), heapq.heappop(self._queue)
            self._running[actor.run.remote(task.job)] = (actor, task, time.monotonic())

    def _start_actors(self) -> None:
        """As many as fit, for queued jobs, once earlier ones have started and their resources are known to be taken."""
        if not self._can_submit or self._starting:
            return
        now = time.monotonic()
        if self._running and (self._failed_starts >= MAX_ATTEMPTS or now - self._last_poll < POLL_S):
            return
        self._last_poll = now
        capacity = self._spec.capacity()
        num_parallel = sum(not task.alone for task in self._queue) or 1
        count = min(num_parallel, capacity if self._running else max(capacity, 1))
        if not self._running:
            self._handler.log(f"starting {count} actor(s)" if capacity >= 1 else self._spec.pending_message())
        for _ in range(count):
            actor = self._spec.start()
            self._starting[actor.__ray_ready__.remote()] = actor

    def _wait(self) -> None:
        """Until an actor has started or a job has ended, or it is time to look for free resources."""
        ready, _ = ray.wait([*self._starting, *self._running], num_returns=1, timeout=POLL_S)
        for reference in ready:
            if reference in self._starting:
                self._on_start(reference, self._starting.pop(reference))
            else:
                self._on_end(reference, *self._running.pop(reference))

    def _on_start(self, reference: Any, actor: Any) -> None:
        try:
            ray.get(reference)
        except RayError as e:
            _kill(actor)
            self._failed_starts += 1
            others = self._idle or self._running or self._starting
            if self._failed_starts >= MAX_ATTEMPTS and not others:
                raise PoolError(f"actors do not start: {short_reason(e)}") from e
            return
        self._failed_starts = 0
        if not self._stats.num_actors:
            self._stats.start_s = time.monotonic() - self._started_at
        self._set_idle(actor)

    def _set_idle(self, actor: Any) -> None:
        self._idle.append((actor, time.monotonic()))
        self._stats.num_actors = max(self._stats.num_actors, len(self._idle) + len(self._running))

    def _on_end(self, reference: Any, actor: Any, task: _Task[JobT], since: float) -> None:
        seconds = time.monotonic() - since
        self._stats.busy_s += seconds
        self._stats.longest_job_s = max(self._stats.longest_job_s, seconds)
        try:
            result = ray.get(reference)
        except RayTaskError as e:
            if out_of_memory(e.cause):
                self._retry(actor, task, e.cause)
            else:
                self._set_idle(actor)
                self._fail(task, short_reason(e.cause))
        except RayError as e:
            self._retry(actor, task, e)
        else:
            self._set_idle(actor)
            self._stats.num_jobs += 1
            self._add(self._handler.on_result(task.job, result))

    def _retry(self, actor: Any, task: _Task[JobT], error: BaseException) -> None:
        """Queue the job again, or fail it. Its actor is of no use any more."""
        # One that is only out of reach might come back, and keep resources that nobody uses.
        _kill(actor)
        task.attempts += 1
        if task.attempts >= MAX_ATTEMPTS:
            self._fail(task, f"failed on {task.attempts} actors; last error: {short_reason(error)}")
            return
        self._stats.num_retries += 1
        if out_of_memory(error):
            task.alone = True
            self._handler.log("out of memory: the job is retried alone, after all others")
        heapq.heappush(self._queue, task)

    def _fail(self, task: _Task[JobT], reason: str) -> None:
        self._stats.num_jobs += 1
        self._add(self._handler.on_failure(task.job, reason))


def _kill(actor: Any) -> None:
    with suppress(RayError, ValueError):
        ray.kill(actor)


_ALLOCATION = re.compile(r"allocate ([\d.,]+ ?\w+)")
"""In errors of torch, on CPUs and GPUs, and of numpy."""
_NODE_MEMORY = re.compile(r"Memory on the node \(.*?\) was (\S+) used / (\S+) limit")
"""In errors of Ray's memory monitor."""


def out_of_memory(error: BaseException) -> bool:
    """Whether the work might succeed with more memory. Torch and Ray have errors of their own for that."""
    return isinstance(error, MemoryError) or any(
        words in f"{type(error).__name__}: {error}"
        for words in ("OutOfMemoryError", "can't allocate memory", "low on memory")
    )


def short_reason(error: BaseException) -> str:
    """An error from an actor in one line, without Ray's traceback and addresses."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if out_of_memory(error):
        if allocation := _ALLOCATION.search(str(error)):
            return f"out of memory: could not allocate {allocation[1]}"
        if used := _NODE_MEMORY.search(str(error)):
            return f"out of memory: killed by Ray when {used[1]} of the node's {used[2]} were in use"
    if not isinstance(error, RayError):
        return f"{type(error).__name__}: {' '.join(lines)}"
    if isinstance(error, RayTaskError) or (
        isinstance(error, RayActorError) and "creation task" in str(error)
    ):
        return lines[-1]
    died = [line for line in lines if "died" in line]
    return (died or lines or [type(error).__name__])[0]
