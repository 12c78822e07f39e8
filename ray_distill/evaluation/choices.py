"""Real images that are chosen once for all networks: a job of its own, before those that train on them.

Herding and k-means take from seconds to minutes. So one actor does it, and what it has chosen goes with the jobs that need
it, fetched once per node; meanwhile the others are busy with the rest. Where it cannot be done, what would have
trained on it fails with its reason.

Stands between the pool and a course: the pool's customer, and all that the course brings passes through it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ray_distill.evaluation.jobs import Job
from ray_distill.evaluation.records import Kind
from ray_distill.evaluation.scheduler import JobScheduler
from ray_distill.evaluation.subjects import EvaluationSet

CHOSEN: tuple[Kind, ...] = ("herding", "k_means")
"""What networks are trained on that takes long to choose."""


@dataclass(frozen=True)
class Choice:
    """To choose ipc images of each class, of the training images that a set goes with."""

    kind: Kind
    ipc: int
    of_set: str
    cost: float = math.inf
    """Others wait for it."""


@dataclass(frozen=True, kw_only=True)
class CoresetChoice:
    """A job, and where what it trains on can be fetched."""

    job: Job
    at: Any
    """As `ship` has returned it."""

    @property
    def cost(self) -> float:
        """Of the job."""
        return self.job.cost


Order = Job | Choice | CoresetChoice
"""What an actor is asked to do."""
_Which = tuple[Any, ...]


class Choices:
    """The customer of the pool: has each choice made when the first job needs it, and passes on all else."""

    def __init__(
        self, course: JobScheduler, sets: Iterable[EvaluationSet], ship: Callable[[Any], Any]
    ) -> None:
        """`ship` is given what was chosen, and returns what actors fetch it by."""
        self._course, self._ship = course, ship
        self._sets = {judged.name: judged for judged in sets}
        self._waiting: dict[_Which, list[Job]] = {}
        self._made: dict[_Which, Any] = {}

    def jobs(self) -> list[Order]:
        """Those to begin with."""
        return self._orders(self._course.jobs())

    def _orders(self, jobs: Iterable[Job]) -> list[Order]:
        orders: list[Order] = []
        for job in jobs:
            if job.line.subject.kind not in CHOSEN:
                orders.append(job)
                continue
            choice = self._choice(job)
            which = self._which(choice)
            if which in self._made:
                orders.append(CoresetChoice(job=job, at=self._made[which]))
            elif which in self._waiting:
                self._waiting[which].append(job)
            else:
                self._waiting[which] = [job]
                orders.append(choice)
        return orders

    def _choice(self, job: Job) -> Choice:
        subject = job.line.subject
        ipc = subject.num_images // self._sets[subject.of_set].num_classes
        return Choice(subject.kind, ipc, subject.of_set)

    def _which(self, choice: Choice) -> _Which:
        """What determines the images: sets with protocols of their own may share them."""
        judged = self._sets[choice.of_set]
        config, of = judged.config, (judged.tickets.train.pixels_digest, judged.preprocessing_digest)
        split = (config.data.validation_fraction, config.seed, config.precision)
        return choice.kind, choice.ipc, *of, *split

    def done(self, order: Order, result: Any) -> Iterable[Order]:
        """Results of the course's jobs go there; with a choice, those that wait for it can begin."""
        match order:
            case Choice():
                which = self._which(order)
                self._made[which] = self._ship(result)
                self.says(f"{order.kind}: images are chosen")
                return self._orders(self._waiting.pop(which))
            case CoresetChoice():
                return self._orders(self._course.done(order.job, result))
            case _:
                return self._orders(self._course.done(order, result))

    def failed(self, order: Order, reason: str) -> Iterable[Order]:
        """A choice that could not be made fails all that wait for it."""
        match order:
            case Choice():
                jobs: Sequence[Job] = self._waiting.pop(self._which(order))
                reason = f"its images could not be chosen: {reason}"
            case CoresetChoice():
                jobs = [order.job]
            case _:
                jobs = [order]
        return self._orders(more for job in jobs for more in self._course.failed(job, reason))

    def says(self, news: str) -> None:
        """Pass on what is worth knowing while one waits."""
        self._course.says(news)
