"""The search file: which trials around which base, who stops them, and what they may cost.

    name: window_digits
    base: digits_ipc1.yaml        # beside this file, or the configuration itself
    space:                        # see config_space
      truncation.window_length: {randint: [5, truncation.unroll_length]}
    scheduler: {name: asha, grace: 25}
    budget: {trials: 8, outer_steps: 200}

A trial is a distillation with the base's configuration, the drawn values laid over it, for `budget.outer_steps`. The
first trial is the base itself, but for a grid. All trials share the base's data, seed and way of judging, so that
their validation accuracies can be compared.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from ray_distill.config.base import NonNegativeInt, Section
from ray_distill.config.config import Config, ConfigError
from ray_distill.config.load import apply_overrides, format_error, parse_config, read_yaml
from ray_distill.config.yaml import to_yaml
from ray_distill.search.domains import KEY, Domain, GridDomain
from ray_distill.search.space import RULE, Space, value_at

SCHEDULED = ("truncation.window_length", "truncation.unroll_length", "inner.lr", "outer.lr")
"""Keys that may change over a run, and so by population-based training."""

JUDGED_BY = "inner.lr"
"""The key that the networks which judge D depend on: across a change of it accuracies cannot be compared."""

SEARCHED = ("distilled", "network", "inner", "truncation", "outer", "replicas")
"""Sections that trials may differ in. The others say what is distilled from, how it is judged, and where."""


class NoScheduler(Section):
    """Every trial runs to its end."""

    name: Literal["none"]


class AshaScheduler(Section):
    """Asynchronous successive halving: at outer steps grace, grace * reduction, .. a trial that is not among the best
    1 / reduction of those that came there before is stopped."""

    name: Literal["asha"]
    grace: PositiveInt
    """Outer steps before a trial may be stopped."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """Of the trials that come to a step where some are stopped, one in so many goes on."""


class HyperbandScheduler(Section):
    """HyperBand: trials wait for each other in brackets, and the worse are stopped. Time counts in validations. With
    algorithm optuna its brackets are filled as BOHB fills them (Falkner et al., 2018), by a TPE model of the trials
    before."""

    name: Literal["hyperband"]
    reduction: Annotated[int, Field(ge=2)] = 3
    """Of a bracket's trials one in so many goes on."""


class PbtScheduler(Section):
    """Population-based training: the worst members go on from the state of the best, with changed values."""

    name: Literal["pbt"]
    every: PositiveInt
    """Outer steps between two exchanges; a multiple of validation.every."""
    replaced: Annotated[float, Field(gt=0.0, le=0.5)] = 0.25
    """The part of the population that takes over the states of as many best ones."""
    resample: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """How often a value is drawn anew; otherwise it is multiplied or divided by 1.25."""


Scheduler = Annotated[
    NoScheduler | AshaScheduler | HyperbandScheduler | PbtScheduler, Field(discriminator="name")
]


class BudgetConfig(Section):
    """What the search may cost."""

    trials: PositiveInt | None = None
    """How many. More of them extend a search that is finished. Default, with a grid alone: all its points."""
    outer_steps: PositiveInt | None = None
    """Of each trial. Default: the base's outer.steps, which is also the most."""
    hours: PositiveFloat | None = None
    """After which trials are left where they are, for each command; a resumed search has as many again."""


class SearchConfig(Section):
    """One search."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The search's name: of its folder and in MLflow."""
    seed: NonNegativeInt = 0
    """Of what is drawn from the space; the distillations have the base's."""
    base: dict[str, Any]
    """A distillation's configuration, or the path of its file, from this file's folder. Its cluster.storage is the search's:
    trials' checkpoints, journal and results are kept there, and no folder need be seen by all nodes; best.yaml has none."""
    space: Annotated[dict[Annotated[str, Field(pattern=rf"^({KEY}|replicas)$")], Domain], Field(min_length=1)]
    """What is searched: keys of the configuration, and what they may be."""
    algorithm: Literal["random", "grid", "optuna"] = "random"
    """Where trials' values come from: drawn, all points of a grid, or Optuna's TPE sampler, which learns from the
    trials before (`pip install optuna`)."""
    scheduler: Scheduler
    budget: BudgetConfig
    workers: PositiveInt = 1
    """Ray Train workers of each trial, in place of the base's cluster.num_workers, which best.yaml keeps. One needs no
    Ray Train: the trial distils in its own process. More cost half a minute at each start."""

    @property
    def config(self) -> Config:
        """The base."""
        return parse_config(self.base)

    @property
    def outer_steps(self) -> int:
        """Of each trial."""
        return self.budget.outer_steps or self.config.outer.steps

    @property
    def around(self) -> Space:
        """The space around the base."""
        return Space(self.base, self.space, self.outer_steps, self.workers)

    @property
    def num_trials(self) -> int:
        """How many trials there are to be."""
        return self.budget.trials or sum(1 for _ in self.around.grid())

    def to_yaml(self) -> str:
        """The search with its base, as YAML that `load` reads back to an equal one."""
        return to_yaml(self.model_dump(mode="json", exclude_none=True))

    @property
    def hash(self) -> str:
        """16 hex digits over all that determines the trials: not how many, how long they may take, nor the names."""
        values = self.model_dump(mode="json", exclude={"name", "base", "budget", "workers"})
        values |= {"base": self.config.hash, "outer_steps": self.outer_steps}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _misfits(search: SearchConfig) -> Iterator[str]:
    """What one part of a search demands of another, for people."""
    budget, base = search.budget, search.config
    if budget.outer_steps is not None and budget.outer_steps > base.outer.steps:
        yield (
            f"budget.outer_steps: must be at most the base's outer.steps, which is {base.outer.steps} "
            f"(found {budget.outer_steps}); the best configuration is one for the base's"
        )
    if base.validation.every > search.outer_steps:
        yield f"budget.outer_steps: trials are never compared before validation.every, {base.validation.every}"
    for key in search.space:
        if key.partition(".")[0] not in SEARCHED or key == "outer.steps":
            yield (
                f"space.{key}: cannot be searched; allowed: keys of {', '.join(SEARCHED)}, but outer.steps. The rest "
                "says what is distilled from, how it is judged, and where"
            )
    grids = [key for key, domain in search.space.items() if isinstance(domain, GridDomain)]
    if search.algorithm == "grid":
        for key in search.space.keys() - set(grids):
            yield f"space.{key}: algorithm grid takes grids; write {{grid: [..]}}"
    else:
        for key in grids:
            yield f"space.{key}: a grid needs algorithm grid (found {search.algorithm}); or write {{choice: [..]}}"
        if budget.trials is None:
            yield f"budget.trials: is missing; algorithm {search.algorithm} has no end of its own"
    yield from _scheduler_misfits(search)


def _scheduler_misfits(search: SearchConfig) -> Iterator[str]:
    every, steps, scheduler = search.config.validation.every, search.outer_steps, search.scheduler
    if isinstance(scheduler, AshaScheduler) and not every <= scheduler.grace < steps:
        yield (
            f"scheduler.grace: must be at least validation.every, which is {every}, and below the {steps} outer steps "
            f"of a trial (found {scheduler.grace})"
        )
    if not isinstance(scheduler, PbtScheduler):
        return
    if scheduler.every % every or scheduler.every >= steps:
        yield (
            f"scheduler.every: must be a multiple of validation.every, which is {every}, and below the {steps} outer "
            f"steps of a trial (found {scheduler.every})"
        )
    for key in search.space.keys() - set(SCHEDULED):
        yield f"space.{key}: cannot change during a run; with scheduler pbt allowed: {', '.join(SCHEDULED)}"
    if search.algorithm != "random":
        yield f"algorithm: scheduler pbt begins with a random population (found {search.algorithm})"
    if search.budget.trials is not None and search.budget.trials < 2:
        yield "budget.trials: a population is 2 or more"
    if value_at(search.base, RULE) == "forward":
        yield "base.truncation.rule: forward moves its window by itself; scheduler pbt takes the other rules"


def check_installed(search: SearchConfig) -> None:
    """Raises: ConfigError if what makes the trials' values is not installed here."""
    if search.algorithm == "optuna" and find_spec("optuna") is None:
        raise ConfigError(
            "algorithm: optuna needs the package optuna, which is not installed; `pip install optuna`, or use random"
        )


def parse_search(values: Mapping[str, Any]) -> SearchConfig:
    """Plain data -> a checked search. Raises: ConfigError with one line for each mistake."""
    try:
        search = SearchConfig.model_validate(values)
    except ValidationError as e:
        raise ConfigError("\n".join(format_error(error) for error in e.errors())) from None
    try:
        _ = search.config
    except ConfigError as e:
        raise ConfigError("\n".join(f"base.{line}" for line in str(e).splitlines())) from None
    lines = list(_misfits(search))
    if (
        not lines
        and search.algorithm == "grid"
        and search.num_trials > (most := sum(1 for _ in search.around.grid()))
    ):
        lines.append(f"budget.trials: the grid has {most} points (found {search.budget.trials})")
    if lines:
        raise ConfigError("\n".join(lines))
    search.around.check()
    return search


def load_search(path: Path, overrides: Iterable[str] = ()) -> SearchConfig:
    """A search file with overrides laid over it, those of the base as base.KEY. Raises: ConfigError."""
    values = read_yaml(path)
    if isinstance(values.get("base"), str):
        values["base"] = read_yaml(path.parent / values["base"])
    return parse_search(apply_overrides(values, overrides))
