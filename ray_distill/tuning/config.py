"""The search file: the space around a base configuration, the scheduler that stops trials early, and the budget.

    name: window_digits
    base: digits_ipc1.yaml        # beside this file, or the configuration itself
    space:                        # see search.domains
      truncation.window_length: {randint: [5, truncation.unroll_length]}
    scheduler: {name: asha, grace: 25}
    budget: {trials: 8, outer_steps: 200}

A trial is a distillation with the base's configuration, overridden by the drawn values, for `budget.outer_steps`. Except
with a grid, the first trial is the base itself. All trials share the base's data, seed and validation, so that their
validation accuracies can be compared.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from ray_distill.config.base import NonNegativeInt, Section
from ray_distill.config.config import Config, ConfigError
from ray_distill.config.load import Overrides, apply_overrides, parse_config, parse_section, read_yaml
from ray_distill.config.yaml import to_yaml
from ray_distill.tuning.domains import KEY, Domain, GridDomain
from ray_distill.tuning.space import RULE, Space, value_at

SCHEDULABLE = ("truncation.window_length", "truncation.unroll_length", "inner.lr", "outer.lr")
"""Keys that may change over a run, and so by population-based training."""

EVALUATION_KEY = "inner.lr"
"""The key that the networks which evaluate D are trained with: accuracies before and after it changes cannot be compared."""

SEARCHABLE = ("distilled", "network", "inner", "truncation", "outer", "replicas")
"""Sections that trials may differ in; the others describe the data, the validation and the cluster."""


class NoScheduler(Section):
    """Every trial runs to its end."""

    name: Literal["none"]


class AshaScheduler(Section):
    """Asynchronous successive halving: at outer steps grace, grace * reduction, .. a trial that is not among the best
    1 / reduction of those that reached this step before is stopped."""

    name: Literal["asha"]
    grace: PositiveInt
    """Outer steps before a trial may be stopped."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """Of the trials that reach such a step, one in so many continues."""


class HyperbandScheduler(Section):
    """HyperBand: trials wait for each other in brackets, and the worse are stopped. Its unit of time is a validation. With
    algorithm optuna its brackets are filled as in BOHB (Falkner et al., 2018), by a TPE model of the trials before."""

    name: Literal["hyperband"]
    reduction: Annotated[int, Field(ge=2)] = 3
    """Of a bracket's trials one in so many continues."""


class PbtScheduler(Section):
    """Population-based training: the worst members continue from the state of the best, with changed values."""

    name: Literal["pbt"]
    every: PositiveInt
    """Outer steps between two exchanges; a multiple of validation.every."""
    replaced: Annotated[float, Field(gt=0.0, le=0.5)] = 0.25
    """The fraction of the population that takes over the states of as many best members."""
    resample: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """The probability that a value is drawn again; otherwise it is multiplied or divided by 1.25."""


Scheduler = Annotated[
    NoScheduler | AshaScheduler | HyperbandScheduler | PbtScheduler, Field(discriminator="name")
]


class BudgetConfig(Section):
    """The search's budget."""

    trials: PositiveInt | None = None
    """Number of trials; a larger one extends a finished search. Default, with a grid only: all its points."""
    outer_steps: PositiveInt | None = None
    """Of each trial. Default and maximum: the base's outer.steps."""
    hours: PositiveFloat | None = None
    """Time limit of one command, after which trials are left where they are; a resumed search starts a new one."""


class SearchConfig(Section):
    """One search."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the search's folder and of its MLflow run."""
    seed: NonNegativeInt = 0
    """Seed of the draws from the space; the distillations have the base's."""
    base: dict[str, Any]
    """A distillation's configuration, or its file's path relative to this file. Its cluster.storage is the search's: trials'
    checkpoints, the journal and the results are stored there, so no folder must be shared by all nodes; best.yaml has none."""
    space: Annotated[dict[Annotated[str, Field(pattern=rf"^({KEY}|replicas)$")], Domain], Field(min_length=1)]
    """The searched keys of the configuration, and the values they may take."""
    algorithm: Literal["random", "grid", "optuna"] = "random"
    """Where trials' values come from: random draws, all points of a grid, or Optuna's TPE sampler, which learns from the
    trials before (`pip install optuna`)."""
    scheduler: Scheduler
    budget: BudgetConfig
    workers: PositiveInt = 1
    """Ray Train workers of each trial, instead of the base's cluster.num_workers, which best.yaml keeps. With one the trial
    runs in its own process without Ray Train; with more each start takes half a minute longer."""

    @property
    def config(self) -> Config:
        """The base."""
        return parse_config(self.base)

    @property
    def outer_steps(self) -> int:
        """Of each trial."""
        return self.budget.outer_steps or self.config.outer.steps

    @property
    def search_space(self) -> Space:
        """The space around the base."""
        return Space(self.base, self.space, self.outer_steps, self.workers)

    @property
    def num_trials(self) -> int:
        """The number of trials in the budget."""
        return self.budget.trials or sum(1 for _ in self.search_space.grid())

    def to_yaml(self) -> str:
        """The search with its base, as YAML that `load_search` reads back to an equal one."""
        return to_yaml(self.model_dump(mode="json", exclude_none=True))

    @property
    def hash(self) -> str:
        """16 hex digits over all that determines the trials: not their number, the time limit or the name."""
        values = self.model_dump(mode="json", exclude={"name", "base", "budget", "workers"})
        values |= {"base": self.config.hash, "outer_steps": self.outer_steps}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _conflicts(search: SearchConfig) -> Iterator[str]:
    """Error messages for values that do not fit together."""
    budget, base = search.budget, search.config
    if budget.outer_steps is not None and budget.outer_steps > base.outer.steps:
        yield (
            f"budget.outer_steps: must be at most the base's outer.steps, which is {base.outer.steps}, "
            f"got {budget.outer_steps}; the best configuration is written for the base's"
        )
    if base.validation.every > search.outer_steps:
        yield (
            f"budget.outer_steps: must be at least the base's validation.every, which is {base.validation.every}, "
            f"got {search.outer_steps}; trials are compared at validations"
        )
    for key in search.space:
        if key.partition(".")[0] not in SEARCHABLE or key == "outer.steps":
            yield (
                f"space.{key}: cannot be searched; allowed: keys of {', '.join(SEARCHABLE)}, except outer.steps. All "
                "trials share the data and the validation"
            )
    grids = [key for key, domain in search.space.items() if isinstance(domain, GridDomain)]
    if search.algorithm == "grid":
        for key in search.space.keys() - set(grids):
            yield f"space.{key}: algorithm grid needs grids; write {{grid: [..]}}"
    else:
        for key in grids:
            yield f"space.{key}: a grid needs algorithm grid, got {search.algorithm}; or write {{choice: [..]}}"
        if budget.trials is None:
            yield f"budget.trials: is missing; only algorithm grid ends by itself, got {search.algorithm}"
    yield from _scheduler_conflicts(search)


def _scheduler_conflicts(search: SearchConfig) -> Iterator[str]:
    every, steps, scheduler = search.config.validation.every, search.outer_steps, search.scheduler
    if isinstance(scheduler, AshaScheduler) and not every <= scheduler.grace < steps:
        yield (
            f"scheduler.grace: must be at least validation.every, which is {every}, and below the {steps} outer steps "
            f"of a trial, got {scheduler.grace}"
        )
    if not isinstance(scheduler, PbtScheduler):
        return
    if scheduler.every % every or scheduler.every >= steps:
        yield (
            f"scheduler.every: must be a multiple of validation.every, which is {every}, and below the {steps} outer "
            f"steps of a trial, got {scheduler.every}"
        )
    for key in search.space.keys() - set(SCHEDULABLE):
        yield f"space.{key}: cannot change during a run; allowed with scheduler pbt: {', '.join(SCHEDULABLE)}"
    if search.algorithm != "random":
        yield f"algorithm: scheduler pbt needs algorithm random, got {search.algorithm}"
    if search.budget.trials is not None and search.budget.trials < 2:
        yield "budget.trials: scheduler pbt needs at least 2 trials, got 1"
    if value_at(search.base, RULE) == "forward":
        yield "base.truncation.rule: forward cannot be combined with scheduler pbt; use another rule"


def check_installed(search: SearchConfig) -> None:
    """Raises: ConfigError if the sampler's package is not installed."""
    if search.algorithm == "optuna" and find_spec("optuna") is None:
        raise ConfigError(
            "algorithm: optuna needs the package optuna, which is not installed; `pip install optuna`, or use random"
        )


def parse_search(values: Mapping[str, Any]) -> SearchConfig:
    """Plain data -> a validated search. Raises: ConfigError with one line for each mistake."""
    search = parse_section(SearchConfig, values)
    try:
        _ = search.config
    except ConfigError as e:
        raise ConfigError("\n".join(f"base.{line}" for line in str(e).splitlines())) from None
    lines = list(_conflicts(search))
    if (
        not lines
        and search.algorithm == "grid"
        and search.num_trials > (points := sum(1 for _ in search.search_space.grid()))
    ):
        lines.append(f"budget.trials: must be at most the grid's {points} points, got {search.budget.trials}")
    if lines:
        raise ConfigError("\n".join(lines))
    search.search_space.check()
    return search


def load_search(
    search: SearchConfig | str | Path | Mapping[str, Any], overrides: Overrides = ()
) -> SearchConfig:
    """A checked search from a YAML file, a dict of its sections, or a `SearchConfig`, with overrides laid over it.

    Overrides of the base are base.KEY; a base that is a path is relative to the file, or to the current folder.
    Raises: ConfigError, with one line for each mistake.
    """
    beside = Path()
    if isinstance(search, SearchConfig):
        values = search.model_dump(mode="json", exclude_none=True)
    elif isinstance(search, Mapping):
        values = dict(search)
    else:
        beside, values = Path(search).parent, read_yaml(Path(search))
    if isinstance(values.get("base"), str):
        values["base"] = read_yaml(beside / values["base"])
    return parse_search(apply_overrides(values, overrides))
