"""Where a search's time went: the trials' outer loops, or the orchestration around them.

All of it is computed from the search's journal, whose lines have their times. An attempt is one command on the search, from
its start (Ray's start and loading the real images included) until the results are in the folder; if it was killed or failed,
until the last line it wrote. Nothing runs between attempts, and that is not time of the search.

In an attempt some trials may run in parallel, each in a place: as many as the cluster has cores for, and no more than were
pending. Its wall seconds x places x cores of a trial are the core seconds available to trials. They are

    in loops    trials computed: outer steps and validations, as their processes measured them, x cores of each
    start       before the first outer step of any trial, on all places
    end         for each place, after the last report of the last trial on it; if the attempt was completed
    between     the rest: starts of later trials, checkpoints, the scheduler's decisions, work lost by a kill

Orchestration is all but the first. A trial's GPU is assumed to be as busy as its cores.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SearchTime:
    """The time of all attempts of a search."""

    attempts: int
    wall_s: float
    core_s: float
    """Available to trials."""
    loop_core_s: float
    """Used by them, in their outer loops."""
    start_core_s: float
    end_core_s: float

    @property
    def between_core_s(self) -> float:
        """Neither in outer loops, nor before the first of them, nor after the last."""
        return self.core_s - self.loop_core_s - self.start_core_s - self.end_core_s

    @property
    def orchestration(self) -> float:
        """The fraction of the core seconds that was not spent in outer loops; 0 if there were none."""
        return self._fraction(self.core_s - self.loop_core_s)

    def _fraction(self, core_s: float) -> float:
        return core_s / self.core_s if self.core_s else 0.0

    def to_dict(self) -> dict[str, float]:
        """For programs."""
        return {**vars(self), "between_core_s": self.between_core_s, "orchestration": self.orchestration}

    def __str__(self) -> str:
        """For people."""
        parts = (self.start_core_s, self.between_core_s, self.end_core_s)
        start, between, end = (f"{100 * self._fraction(core_s):.0f}%" for core_s in parts)
        commands = f", in {self.attempts} commands" if self.attempts > 1 else ""
        return (
            f"took {self.wall_s:.0f} s{commands}; {100 * (1 - self.orchestration):.0f}% of the core time in outer "
            f"loops, {100 * self.orchestration:.0f}% orchestration ({start} before the first outer step, {between} "
            f"between trials, {end} idle at the end)"
        )


@dataclass
class _Attempt:
    """One attempt; times are Unix seconds."""

    began: float
    places: int
    cores: float
    """Of each trial."""
    ended: float
    done: bool = False
    loop_s: float = 0.0
    first: float | None = None
    """When the first outer step started."""
    last: dict[str, float] = field(default_factory=dict)
    """When each trial last reported on its outer loop."""

    def computed(self, trial: str, loop_s: float, now: float) -> None:
        """Add seconds that a trial spent in its outer loop, until now."""
        self.loop_s += loop_s
        self.first = min(now - loop_s, self.first or now)
        self.last[trial] = now

    @property
    def core_s(self) -> float:
        return (self.ended - self.began) * self.places * self.cores

    @property
    def start_core_s(self) -> float:
        return ((self.ended if self.first is None else self.first) - self.began) * self.places * self.cores

    @property
    def end_core_s(self) -> float:
        if not self.done or self.first is None:
            return 0.0
        # A place without a trial was idle from the first outer step on.
        free = sorted([*self.last.values(), *[self.first] * self.places])[-self.places :]
        return sum(self.ended - since for since in free) * self.cores


def time_spent(events: Iterable[Mapping[str, Any]]) -> SearchTime:
    """The time of a search, from the events of its journal in order.

    A trial reports the seconds of all outer loops that led to its state, a clone those of its parent. What it computed since
    is the difference from the state it continued from, so what is repeated after a kill counts as often as it was computed.
    """
    attempts: list[_Attempt] = []
    seconds: dict[str, float] = {}
    for event in events:
        kind, trial = event["event"], event.get("trial", "")
        if kind == "attempt":
            began = event["began_unix_s"]
            attempts.append(_Attempt(began, event["places"], event["cores"], ended=began))
        elif kind == "barrier":
            for clone in event["clones"]:
                seconds[clone["trial"]] = seconds.get(clone["parent"], 0.0)
        elif kind == "goes_on":
            # Its state may be older than its last, if that was damaged.
            seconds[trial] = event.get("seconds", seconds.get(trial, 0.0))
        elif event.get("seconds") is not None:
            loop_s = event["seconds"] - seconds.get(trial, 0.0)
            seconds[trial] = event["seconds"]
            # 0 if a resumed member repeats its last report.
            if attempts and loop_s > 0:
                attempts[-1].computed(trial, loop_s, event["unix_s"])
        if attempts:
            attempts[-1].ended, attempts[-1].done = event["unix_s"], kind == "done"
    return SearchTime(
        attempts=len(attempts),
        wall_s=sum(a.ended - a.began for a in attempts),
        core_s=sum(a.core_s for a in attempts),
        loop_core_s=sum(a.loop_s * a.cores for a in attempts),
        start_core_s=sum(a.start_core_s for a in attempts),
        end_core_s=sum(a.end_core_s for a in attempts),
    )
