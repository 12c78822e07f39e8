"""What a search has left to do: the trials that are under way, each from its newest whole checkpoint, and those to come."""

from collections.abc import Callable, Iterator
from functools import partial

from ray_distill.distillation.checkpoint import CheckpointError
from ray_distill.search.callback import SearchObserver
from ray_distill.search.config import PbtScheduler, SearchConfig
from ray_distill.search.journal import Kept, SearchJournal, TrialLog
from ray_distill.search.queue import Drawn, Proposal, known, trial_name
from ray_distill.search.results import Value
from ray_distill.search.search_dir import SearchDir
from ray_distill.search.trial import read_state


def trials_left(
    search: SearchConfig, folder: SearchDir, journal: SearchJournal, bystander: SearchObserver
) -> Iterator[Callable[[], Proposal]]:
    """The trials that are to go on, and then those that have not begun; the journal says where each goes on."""
    for log in list(journal.logs.values()):
        if log.status == "running":
            kept, damaged = newest_whole(log, folder, search.hash)
            step = kept.outer_step if kept else 0
            if damaged:
                bystander.begin(log.name, log.values)
                bystander.damaged(log.name, damaged)
            elif step >= search.outer_steps:
                bystander.begin(log.name, log.values)
                bystander.end(log.name, "finished", None)
                journal.write("end", trial=log.name, status="finished", reason=None)
                bystander.show()
                continue
            seconds = kept.seconds if kept else 0.0
            journal.write("goes_on", trial=log.name, outer_step=step, seconds=seconds)
            yield partial(_go_on, search, folder, journal, log, bystander)
    sampler = None
    if search.algorithm == "optuna":
        from ray_distill.search.sampler import Sampler

        sampler = Sampler(search, journal)
    values = [] if sampler else known(search)
    for number in range(len(journal.logs), search.num_trials):
        draw = partial(sampler.draw, number) if sampler else partial(_known, values, number)
        yield partial(_begin, journal, number, draw, bystander)


def newest_whole(log: TrialLog, folder: SearchDir, search_hash: str) -> tuple[Kept | None, str]:
    """The newest checkpoint of a trial that can be read, None for its start; and what is wrong with those after it."""
    damaged: list[str] = []
    found = None
    for kept in reversed(log.kept):
        with folder.opened(kept.checkpoint) as path:
            try:
                read_state(path, search_hash)
            except CheckpointError as e:
                # Older ones that are not there were deleted, as they should be.
                if not damaged or not isinstance(e.__cause__, FileNotFoundError):
                    damaged.append(str(e).replace(str(path), folder.shown(kept.checkpoint)))
                continue
        found = kept
        break
    where = f"goes on from outer step {found.outer_step}" if found else "begins anew"
    return found, f"{'; '.join(damaged)}; the trial {where}" if damaged else ""


def _known(values: list[dict[str, Value]], number: int) -> Drawn:
    return Drawn(values[number], None)


def _go_on(
    search: SearchConfig, folder: SearchDir, journal: SearchJournal, log: TrialLog, bystander: SearchObserver
) -> Proposal:
    kept = None if log.checkpoint is None else folder.place_of(log.checkpoint)
    # Members that wait for the others' report at an exchange say theirs again.
    again = isinstance(search.scheduler, PbtScheduler) and log.outer_step > journal.barrier
    bystander.begin(log.name, log.values)
    return Proposal(log.name, log.now, kept, again)


def _begin(
    journal: SearchJournal, number: int, draw: Callable[[], Drawn], bystander: SearchObserver
) -> Proposal:
    drawn = draw()
    proposal = Proposal(trial_name(number), drawn.values)
    journal.write("trial", trial=proposal.name, values=drawn.values, numbers=drawn.numbers)
    bystander.begin(proposal.name, proposal.values)
    return proposal
