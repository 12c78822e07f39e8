"""Decides which tasks of an evaluation are next, and handles their results. The pool's `JobHandler`.

A row whose lr is tuned begins with the jobs that tune it, the others with those for the table. What the log of results
already has is not computed again. Herding and k-means take seconds to minutes, so each coreset is selected by a task of
its own; the jobs that train on it wait for it, and fetch it once per node.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from ray_distill.evaluation.jobs import Job, LrCandidate, RetrainingSpec, best_lr, jobs_for
from ray_distill.evaluation.journal import ResultsLog
from ray_distill.evaluation.results import Failure, Kind, Record
from ray_distill.evaluation.subjects import EvaluationSet
from ray_distill.utils.progress import Update


class JobScheduler:
    """The jobs of one evaluation."""

    def __init__(self, specs: Sequence[RetrainingSpec], results: ResultsLog, update: Update) -> None:
        """`update` is called with the number of trained networks, of all those of the specs."""
        self._specs, self._results, self._update = specs, results, update
        self._num_pending = {spec.fingerprint: 0 for spec in specs}
        """Jobs that tune the lr."""
        self._reasons: dict[str, str] = {}
        self._num_done = 0
        self.failures: list[Failure] = []
        self.lrs: dict[RetrainingSpec, float] = {}
        """Of each row, tuned or the protocol's; absent if the tuning failed."""

    def jobs(self) -> list[Job]:
        """The first ones."""
        jobs = [job for spec in self._specs for job in self._first_jobs(spec)]
        if self._num_done:
            self.log("from earlier results")
        return jobs

    def records(self) -> list[Record]:
        """All that the log has."""
        return self._results.records(self._specs)

    def _first_jobs(self, spec: RetrainingSpec) -> list[Job]:
        indices = range(spec.num_lr_networks)
        missing = {
            lr: [i for i in indices if self._results.lr_candidate(spec, i, lr) is None] for lr in spec.lr_grid
        }
        jobs = [job for lr, those in missing.items() for job in jobs_for(spec, those, lr, tunes_lr=True)]
        self._num_done += len(spec.lr_grid) * len(indices) - sum(map(len, missing.values()))
        self._num_pending[spec.fingerprint] = len(jobs)
        return jobs or self._table_jobs(spec)

    def _table_jobs(self, spec: RetrainingSpec) -> list[Job]:
        """Once all jobs that tune the lr have ended."""
        accuracies: dict[float, list[float]] = {}
        for lr in spec.lr_grid:
            for i in range(spec.num_lr_networks):
                if (candidate := self._results.lr_candidate(spec, i, lr)) is not None:
                    accuracies.setdefault(lr, []).append(candidate.validation_accuracy)
        if spec.lr_grid and not accuracies:
            reason = f"the lr could not be tuned: {self._reasons[spec.fingerprint]}"
            self._fail(spec, range(spec.num_networks), reason)
            return []
        lr = best_lr(spec.protocol_lr, accuracies) if accuracies else spec.protocol_lr
        self.lrs[spec] = lr
        missing = [i for i in range(spec.num_networks) if not self._results.has(spec, i, lr)]
        self._num_done += spec.num_networks - len(missing)
        return jobs_for(spec, missing, lr)

    def _fail(self, spec: RetrainingSpec, indices: Sequence[int], reason: str) -> None:
        self.failures += [Failure(spec.retraining(index), reason) for index in indices]
        self._num_done += len(indices)

    def on_result(self, job: Job, result: Sequence[Record] | Sequence[LrCandidate]) -> list[Job]:
        """Save the results. Returns: the jobs for the table, if these were the last ones needed to choose the lr."""
        self._results.add(job.spec, result)
        self._num_done += len(job.indices)
        last = result[-1]
        accuracy = last.test_accuracy if isinstance(last, Record) else last.validation_accuracy
        tuning = f"lr {job.lr:g}, validation " if job.tunes_lr else ""
        return self._next_jobs(job, f": {tuning}{100 * accuracy:.1f}%")

    def on_failure(self, job: Job, reason: str) -> list[Job]:
        """Keep the reason. Returns: as `on_result`."""
        if job.tunes_lr:
            self._reasons[job.spec.fingerprint] = reason
            self._num_done += len(job.indices)
        else:
            self._fail(job.spec, job.indices, reason)
        return self._next_jobs(job, f" failed: {reason}")

    def _next_jobs(self, job: Job, outcome: str) -> list[Job]:
        spec, jobs = job.spec, list[Job]()
        if job.tunes_lr:
            self._num_pending[spec.fingerprint] -= 1
            if not self._num_pending[spec.fingerprint]:
                jobs = self._table_jobs(spec)
        self.log(f"{spec.network} on {spec.subject.name}{outcome}")
        return jobs

    def log(self, message: str) -> None:
        """Show a message beside the progress."""
        self._update(self._num_done, message)


CORESETS: tuple[Kind, ...] = ("herding", "k_means")
"""Baselines whose images are selected once for all networks."""


@dataclass(frozen=True)
class CoresetSelection:
    """A task: to select ipc training images of each class."""

    kind: Kind
    ipc: int
    set_name: str
    """A set with these training images."""
    cost: float = math.inf
    """Other jobs wait for it."""


Task: TypeAlias = Job | CoresetSelection


class CoresetScheduler:
    """A scheduler's jobs, each after the selection of the coreset that it trains on.

    If the selection fails, so do the jobs that train on it.
    """

    def __init__(self, jobs: JobScheduler, sets: Iterable[EvaluationSet], put: Callable[[Any], Any]) -> None:
        """`put` stores selected images where actors can fetch them, and returns a reference."""
        self._scheduler, self._put = jobs, put
        self._sets = {each.name: each for each in sets}
        self._waiting: dict[tuple[Any, ...], list[Job]] = {}
        self._coresets: dict[tuple[Any, ...], Any] = {}

    def tasks(self) -> list[Task]:
        """The first ones."""
        return self._tasks(self._scheduler.jobs())

    def _tasks(self, jobs: Iterable[Job]) -> list[Task]:
        tasks: list[Task] = []
        for job in jobs:
            subject = job.spec.subject
            if subject.kind not in CORESETS:
                tasks.append(job)
                continue
            ipc = subject.num_images // self._sets[subject.set_name].num_classes
            selection = CoresetSelection(subject.kind, ipc, subject.set_name)
            key = self._key(selection)
            if key in self._coresets:
                tasks.append(replace(job, coreset=self._coresets[key]))
            elif key in self._waiting:
                self._waiting[key].append(job)
            else:
                self._waiting[key] = [job]
                tasks.append(selection)
        return tasks

    def _key(self, selection: CoresetSelection) -> tuple[Any, ...]:
        """What determines the images: sets with different protocols may share them."""
        each = self._sets[selection.set_name]
        config = each.config
        return (
            selection.kind,
            selection.ipc,
            each.train.pixels_digest,
            each.preprocessing_digest,
            config.data.validation_fraction,
            config.seed,
            config.precision,
        )

    def on_result(self, task: Task, result: Any) -> list[Task]:
        """Pass on a job's result; a selected coreset releases the jobs that wait for it."""
        if isinstance(task, Job):
            return self._tasks(self._scheduler.on_result(task, result))
        key = self._key(task)
        self._coresets[key] = self._put(result)
        self.log(f"{task.kind}: images selected")
        return self._tasks(self._waiting.pop(key))

    def on_failure(self, task: Task, reason: str) -> list[Task]:
        """Pass on a job's failure, or fail the jobs that wait for a coreset."""
        if isinstance(task, Job):
            jobs = [task]
        else:
            jobs = self._waiting.pop(self._key(task))
            reason = f"the selection of its images failed: {reason}"
        return self._tasks(new for job in jobs for new in self._scheduler.on_failure(job, reason))

    def log(self, message: str) -> None:
        """Show a message beside the progress."""
        self._scheduler.log(message)
