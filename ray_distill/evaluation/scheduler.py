"""The course of an evaluation: which jobs are to be done next, and what becomes of their results.

The customer of the pool. A line whose lr is still to be chosen begins with the jobs that choose it; the others begin
with those for the table. What the journal has is not done again.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ray_distill.evaluation.jobs import Job, LrCandidate, TableRowSpec, best_lr, jobs_for
from ray_distill.evaluation.journal import ResultsLog
from ray_distill.evaluation.results import Failure, Kind, Record
from ray_distill.evaluation.subjects import EvaluationSet
from ray_distill.utils.progress import Update


class JobScheduler:
    """One evaluation, from its first job to its last."""

    def __init__(self, lines: Sequence[TableRowSpec], journal: ResultsLog, update: Update) -> None:
        """`update` is told how many networks are trained, of all those of the lines."""
        self._lines, self._journal, self._update = lines, journal, update
        self._awaited = {line.fingerprint: 0 for line in lines}
        self._reasons: dict[str, str] = {}
        self._num_done = 0
        self.failures: list[Failure] = []
        """What could not be done."""
        self.lrs: dict[TableRowSpec, float] = {}
        """The lr of each line, chosen or its own; absent if none could be chosen."""

    def jobs(self) -> list[Job]:
        """Those to begin with."""
        first = [job for line in self._lines for job in self._first(line)]
        if self._num_done:
            self.log("kept from before")
        return first

    def records(self) -> list[Record]:
        """All that the journal has."""
        return self._journal.records(self._lines)

    def _first(self, line: TableRowSpec) -> list[Job]:
        missing = {
            lr: [i for i in range(line.num_choosing) if self._journal.trial(line, i, lr) is None]
            for lr in line.grid
        }
        jobs = [job for lr, of in missing.items() for job in jobs_for(line, of, lr, choosing=True)]
        self._num_done += len(line.grid) * line.num_choosing - sum(len(of) for of in missing.values())
        self._awaited[line.fingerprint] = len(jobs)
        return jobs or self._with_lr(line)

    def _with_lr(self, line: TableRowSpec) -> list[Job]:
        """The jobs for the table, once all is known that is needed to choose the lr."""
        accuracies: dict[float, list[float]] = {}
        for lr in line.grid:
            trials = [self._journal.trial(line, i, lr) for i in range(line.num_choosing)]
            if of_lr := [trial.validation_accuracy for trial in trials if trial is not None]:
                accuracies[lr] = of_lr
        if line.grid and not accuracies:
            reason = f"no lr could be chosen: {self._reasons[line.fingerprint]}"
            self._fail(line, range(line.num_networks), reason)
            return []
        lr = best_lr(line.own_lr, accuracies) if accuracies else line.own_lr
        self.lrs[line] = lr
        missing = [i for i in range(line.num_networks) if not self._journal.has(line, i, lr)]
        self._num_done += line.num_networks - len(missing)
        return jobs_for(line, missing, lr)

    def _fail(self, line: TableRowSpec, indices: Iterable[int], reason: str) -> None:
        new = [Failure(line.retraining(index), reason) for index in indices]
        self.failures += new
        self._num_done += len(new)

    def on_result(self, job: Job, result: Sequence[Record] | Sequence[LrCandidate]) -> Iterable[Job]:
        """Keep the results."""
        line = job.line
        self._journal.add(line, result)
        self._num_done += len(job.indices)
        found = result[-1]
        accuracy = found.test_accuracy if isinstance(found, Record) else found.validation_accuracy
        of = f"lr {job.lr:g}, validation " if job.choosing else ""
        more = self._settled(job)
        self.log(f"{line.network} on {line.subject.name}: {of}{100 * accuracy:.1f}%")
        return more

    def on_failure(self, job: Job, reason: str) -> Iterable[Job]:
        """Note the reason."""
        if job.choosing:
            self._reasons[job.line.fingerprint] = reason
            self._num_done += len(job.indices)
        else:
            self._fail(job.line, job.indices, reason)
        more = self._settled(job)
        self.log(f"{job.line.network} on {job.line.subject.name} failed: {reason}")
        return more

    def _settled(self, job: Job) -> list[Job]:
        if not job.choosing:
            return []
        self._awaited[job.line.fingerprint] -= 1
        return [] if self._awaited[job.line.fingerprint] else self._with_lr(job.line)

    def log(self, message: str) -> None:
        """Pass on what is worth knowing while one waits."""
        self._update(self._num_done, message)


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


Order: TypeAlias = Job | Choice | CoresetChoice
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

    def on_result(self, order: Order, result: Any) -> Iterable[Order]:
        """Results of the course's jobs go there; with a choice, those that wait for it can begin."""
        match order:
            case Choice():
                which = self._which(order)
                self._made[which] = self._ship(result)
                self.log(f"{order.kind}: images are chosen")
                return self._orders(self._waiting.pop(which))
            case CoresetChoice():
                return self._orders(self._course.on_result(order.job, result))
            case _:
                return self._orders(self._course.on_result(order, result))

    def on_failure(self, order: Order, reason: str) -> Iterable[Order]:
        """A choice that could not be made fails all that wait for it."""
        match order:
            case Choice():
                jobs: Sequence[Job] = self._waiting.pop(self._which(order))
                reason = f"its images could not be chosen: {reason}"
            case CoresetChoice():
                jobs = [order.job]
            case _:
                jobs = [order]
        return self._orders(more for job in jobs for more in self._course.on_failure(job, reason))

    def log(self, message: str) -> None:
        """Pass on what is worth knowing while one waits."""
        self._course.log(message)
