"""A pool of Ray actors for jobs that do not depend on each other. It knows nothing of what the jobs are.

It takes what is free: as many actors as the cluster has CPUs and GPUs left for, more when some become free, and at
least one, which waits for its place if it must. An actor is given work once it has started, so that nobody waits for
one that cannot start: on a machine with one core, and beside a training run that holds all the others, the pool is
slow and does not stand still.

What may go wrong, and whose fault it is:

| | |
|---|---|
| the job raises | the job is given up, with its reason; the actor goes on |
| the actor is killed, or its node is lost | the job is begun again by another actor, at most MAX_TRIES times in all |
| the memory is used up | likewise, after all other jobs and by itself, since the actors of a machine share its memory |
| actors do not start | nobody can do anything: the pool raises, unless others are at work |

The longest jobs come first, so that at the end no actor has long to wait for another.
"""

import heapq
import itertools
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from ray_distill.errors import RunError

import ray  # isort: skip  (its environment is set by whoever connects to a cluster)
from ray.exceptions import RayActorError, RayError, RayTaskError

MAX_TRIES = 3
"""Actors that a job may lose before it is given up, and that may fail to start, one after the other."""
POLL_S = 1.0
"""How long to wait for a result before looking whether there is room for another actor."""

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")
_JobT = TypeVar("_JobT")
_ResultT_contra = TypeVar("_ResultT_contra", contravariant=True)


class PoolError(RunError):
    """The pool has no actor, and none can be started."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """What the actors of a pool are: `of(*arguments)` with a method `run(job)`, and what each of them takes."""

    of: type
    arguments: Sequence[Any] = ()
    cpus: float = 1.0
    gpus: float = 0.0
    """A fraction of one, or whole ones."""

    def room(self) -> int:
        """How many more of them the cluster has room for at the moment, as far as it knows."""
        free = ray.available_resources()
        return min(int(free.get(name, 0.0) / each + 1e-6) for name, each in self._each())

    def hire(self) -> Any:
        """The handle of a new actor, which may have to wait for its place."""
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_restarts": 0}
        return ray.remote(**options)(self.of).remote(*self.arguments)

    def waits(self) -> str:
        """What keeps one of them from its place, in words."""
        free, there = ray.available_resources(), ray.cluster_resources()
        needs = " and ".join(f"{each:g} {name}" for name, each in self._each())
        of = ", ".join(
            f"{free.get(name, 0.0):g} of the cluster's {there.get(name, 0.0):g} {name}s"
            for name, _ in self._each()
        )
        return f"waits for {needs}, and goes on as soon as others leave them: {of} are free"

    def _each(self) -> list[tuple[str, float]]:
        return [(name, each) for name, each in (("CPU", self.cpus), ("GPU", self.gpus)) if each > 0]


class JobHandler(Protocol[_JobT, _ResultT_contra]):
    """Whose jobs they are. Told what becomes of them, one at a time, in the thread that runs the pool."""

    def done(self, job: _JobT, result: _ResultT_contra) -> Iterable[_JobT]:
        """A result, as soon as it is there. Returns: jobs that have come of it."""

    def failed(self, job: _JobT, reason: str) -> Iterable[_JobT]:
        """A job was given up. Returns: jobs that have come of it."""

    def says(self, news: str) -> None:
        """What is worth knowing while one waits."""


@dataclass(frozen=True, kw_only=True)
class PoolReport:
    """How well the pool's time was used."""

    wall_s: float
    start_s: float
    """From the beginning until the first actor had started."""
    num_actors: int
    """The most that there were at one time."""
    num_jobs: int
    """Jobs that were done or given up."""
    num_retries: int
    """Jobs begun again since their actor was lost."""
    busy_s: float
    """All actors' time with a job, lost work too."""
    longest_job_s: float
    idle_tail_s: float
    """The longest time that an actor had nothing to do at the end."""

    @property
    def efficiency(self) -> float:
        """Busy time / (wall time x actors): actors that come late, or start, count as idle ones."""
        return self.busy_s / (self.wall_s * self.num_actors) if self.num_actors else 0.0


@dataclass(eq=False)
class _Actor:
    handle: Any
    idle_since: float = 0.0


@dataclass(eq=False)
class _Task(Generic[JobT]):
    job: JobT
    order: tuple[float, int]
    """The longest first; of equal ones, the first."""
    tries: int = 0

    def __lt__(self, other: "_Task[JobT]") -> bool:
        return self.order < other.order


def run_jobs(
    workers: Workers,
    jobs: Iterable[JobT],
    customer: JobHandler[JobT, ResultT],
    cost: Callable[[JobT], float] = lambda job: 1.0,
) -> PoolReport:
    """Have all jobs done, and those that come of them, by actors on the connected Ray cluster.

    Args:
        cost: how long a job takes, in any unit.

    Raises: PoolError; and whatever the customer raises, which ends the pool.
    """
    pool = _Pool(workers, customer, cost)
    pool.add(jobs)
    try:
        while pool.has_work:
            pool.hand_out()
            pool.hire()
            pool.wait()
        return pool.report()
    finally:
        pool.dismiss()


class _Pool(Generic[JobT, ResultT]):
    """Who is there, and who does what."""

    def __init__(
        self, workers: Workers, customer: JobHandler[JobT, ResultT], cost: Callable[[JobT], float]
    ) -> None:
        self._workers, self._customer, self._cost = workers, customer, cost
        self._count = itertools.count()
        self._todo: list[_Task[JobT]] = []
        self._alone: deque[_Task[JobT]] = deque()
        self._starting: dict[Any, _Actor] = {}
        self._idle: list[_Actor] = []
        self._at_work: dict[Any, tuple[_Actor, _Task[JobT], float]] = {}
        self._failed_starts = 0
        self._looked = -POLL_S
        self._began = time.monotonic()
        self._started: float | None = None
        self._most = self._done = self._retries = 0
        self._busy_s = self._longest_s = 0.0

    @property
    def has_work(self) -> bool:
        """Whether there are jobs that are neither done nor given up."""
        return bool(self._todo or self._alone or self._at_work)

    @property
    def _may_begin(self) -> bool:
        """Whether there are jobs that only lack an actor."""
        return bool(self._todo or (self._alone and not self._at_work))

    def add(self, jobs: Iterable[JobT]) -> None:
        """More jobs."""
        for job in jobs:
            heapq.heappush(self._todo, _Task(job, (-self._cost(job), next(self._count))))

    def hand_out(self) -> None:
        """A job for each idle actor, as far as there are any."""
        while self._may_begin and self._idle:
            actor = self._idle.pop()
            task = heapq.heappop(self._todo) if self._todo else self._alone.popleft()
            self._at_work[actor.handle.run.remote(task.job)] = (actor, task, time.monotonic())

    def hire(self) -> None:
        """New actors for the jobs that nobody has, as many as there is room for.

        Those that are starting are waited for first: what they take is only then known to be taken.
        """
        nobody = not (self._idle or self._at_work)
        if not self._may_begin or self._starting or (self._failed_starts >= MAX_TRIES and not nobody):
            return
        now = time.monotonic()
        if not nobody and now - self._looked < POLL_S:
            return
        self._looked = now
        room = self._workers.room()
        count = min(len(self._todo) or 1, max(room, int(nobody)))
        if nobody:
            self._customer.says(self._workers.waits() if room < 1 else f"{count} actor(s) start")
        for _ in range(count):
            actor = _Actor(self._workers.hire())
            self._starting[actor.handle.__ray_ready__.remote()] = actor

    def wait(self) -> None:
        """Until something has happened, or it is time to look for room."""
        ready, _ = ray.wait([*self._starting, *self._at_work], num_returns=1, timeout=POLL_S)
        for reference in ready:
            if reference in self._starting:
                self._settle_start(reference, self._starting.pop(reference))
            else:
                self._settle_job(reference, *self._at_work.pop(reference))

    def _settle_start(self, reference: Any, actor: _Actor) -> None:
        try:
            ray.get(reference)
        except RayError as e:
            _kill(actor)
            self._failed_starts += 1
            others = self._idle or self._at_work or self._starting
            if self._failed_starts >= MAX_TRIES and not others:
                raise PoolError(f"actors do not start: {short_reason(e)}") from e
            return
        self._failed_starts = 0
        now = time.monotonic()
        self._started = self._started or now
        self._rest(actor, now)

    def _settle_job(self, reference: Any, actor: _Actor, task: _Task[JobT], began: float) -> None:
        now = time.monotonic()
        self._busy_s += now - began
        self._longest_s = max(self._longest_s, now - began)
        try:
            result = ray.get(reference)
        except RayTaskError as e:
            if out_of_memory(e.cause):
                self._lose(actor, task, e.cause)
            else:
                self._rest(actor, now)
                self._give_up(task, short_reason(e.cause))
        except RayError as e:
            self._lose(actor, task, e)
        else:
            self._rest(actor, now)
            self._done += 1
            self.add(self._customer.done(task.job, result))

    def _rest(self, actor: _Actor, now: float) -> None:
        actor.idle_since = now
        self._idle.append(actor)
        self._most = max(self._most, len(self._idle) + len(self._at_work))

    def _lose(self, actor: _Actor, task: _Task[JobT], error: BaseException) -> None:
        """The actor is of no use any more; what it did is begun again, or given up."""
        # One that is only out of reach might come back and hold its place for nobody.
        _kill(actor)
        task.tries += 1
        if task.tries < MAX_TRIES:
            self._retries += 1
            if out_of_memory(error):
                self._alone.append(task)
                self._customer.says("memory was used up: that job is begun again by itself, after all others")
            else:
                heapq.heappush(self._todo, task)
        else:
            self._give_up(task, f"{task.tries} actors were lost with it; the last: {short_reason(error)}")

    def _give_up(self, task: _Task[JobT], reason: str) -> None:
        self._done += 1
        self.add(self._customer.failed(task.job, reason))

    def report(self) -> PoolReport:
        """When all is done: every actor that there is has nothing to do."""
        now = time.monotonic()
        return PoolReport(
            wall_s=now - self._began,
            start_s=(self._started or now) - self._began,
            num_actors=self._most,
            num_jobs=self._done,
            num_retries=self._retries,
            busy_s=self._busy_s,
            longest_job_s=self._longest_s,
            idle_tail_s=max((now - actor.idle_since for actor in self._idle), default=0.0),
        )

    def dismiss(self) -> None:
        """All actors, whatever they are doing."""
        working = [actor for actor, _, _ in self._at_work.values()]
        for actor in (*self._idle, *self._starting.values(), *working):
            _kill(actor)


def _kill(actor: _Actor) -> None:
    with suppress(RayError, ValueError):
        ray.kill(actor.handle)


_AMOUNT = re.compile(r"allocate ([\d.,]+ ?\w+)")
"""In errors of torch, on CPUs and GPUs, and of numpy."""
_USED = re.compile(r"Memory on the node \(.*?\) was (\S+) used / (\S+) limit")
"""In Ray's, of what it has killed."""


def out_of_memory(error: BaseException) -> bool:
    """Whether work might succeed where there is more memory: torch has errors of its own for that, and so has Ray."""
    return isinstance(error, MemoryError) or any(
        words in f"{type(error).__name__}: {error}"
        for words in ("OutOfMemoryError", "can't allocate memory", "low on memory")
    )


def short_reason(error: BaseException) -> str:
    """What happened, without Ray's traceback and addresses."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if out_of_memory(error):
        if amount := _AMOUNT.search(str(error)):
            return f"out of memory: {amount[1]} more could not be had"
        if used := _USED.search(str(error)):
            return f"out of memory: {used[1]} of its machine's {used[2]} were in use, so Ray killed it"
    if not isinstance(error, RayError):
        return f"{type(error).__name__}: {' '.join(lines)}"
    if isinstance(error, RayTaskError) or (
        isinstance(error, RayActorError) and "creation task" in str(error)
    ):
        return lines[-1]
    told = [line for line in lines if "died" in line]
    return " ".join(dict.fromkeys(told[:1] or lines[:1] or [type(error).__name__]))
