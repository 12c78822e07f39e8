"""From numbers between 0 and 1 to the configuration of a trial.

A key is drawn after those that it depends on. One that its trial has no use for is left out, in the space and in the
base: a window where the rule has none, a momentum where the optimiser is Adam. So a trial's configuration is right
by construction, and what the whole space can give is tried at its corners before anything runs.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ray_distill.config.config import Config, ConfigError
from ray_distill.config.load import parse_config
from ray_distill.config.truncation import fields_of
from ray_distill.search.domains import (
    Domain,
    LogUniformDomain,
    RandintDomain,
    UniformDomain,
    at,
    keys_of,
    options,
)
from ray_distill.search.results import Value

Pick = Callable[[str, int | None], float]
"""(key, how many options it has, or None for a range) -> a number from 0 to below 1."""

OWNERS: dict[str, tuple[str, Value]] = {
    "inner.momentum": ("inner.optimizer", "sgd"),
    "inner.weight_decay": ("inner.optimizer", "sgd"),
    "inner.eps_convention": ("inner.optimizer", "adam"),
    "distilled.label_lr_scale": ("distilled.learn_labels", True),
}
"""Keys that a configuration has only where another has a value; those of the truncation rules are in `fields_of`."""
RULE = "truncation.rule"

MOST_CORNERS = 600
TOP = 1.0 - 2.0**-24
"""The highest number that a stream gives."""


def value_at(values: Mapping[str, Any], key: str) -> Any:
    """What nested plain data hold at `a.b`; None if nothing."""
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set what nested plain data hold at `a.b`."""
    *sections, last = key.split(".")
    for part in sections:
        values = values.setdefault(part, {})
    values[last] = value


@dataclass(frozen=True)
class Space:
    """What may vary between the trials of a search, around a base."""

    base: Mapping[str, Any]
    """A distillation's configuration as plain data, as it was written."""
    domains: Mapping[str, Domain]
    outer_steps: int
    """Of a trial."""
    workers: int = 1
    """Of a trial."""

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """The base with all defaults, in a run as long as a trial. Raises: ConfigError."""
        return parse_config(self.plain({})).to_dict()

    @cached_property
    def order(self) -> list[str]:
        """The keys, each after those that it depends on. Raises: ConfigError if they go round in a circle."""
        first = [key for key in (RULE, *(owner for owner, _ in OWNERS.values())) if key in self.domains]
        waiting, order = list(dict.fromkeys([*first, *self.domains])), list[str]()
        while waiting:
            ready = [k for k in waiting if not any(name in waiting for name in self.domains[k].names)]
            if not ready:
                raise ConfigError(
                    f"space: {', '.join(waiting)} depend on each other; give one of them numbers"
                )
            order.append(ready[0])
            waiting.remove(ready[0])
        return order

    def has(self, key: str, values: Mapping[str, Value]) -> bool:
        """Whether a trial with these values, of the keys drawn before, has the key."""
        section, _, name = key.partition(".")
        if section == "truncation" and name != "rule":
            return name in fields_of(str(self._look(RULE, values)))
        if key in OWNERS:
            owner, value = OWNERS[key]
            return bool(self._look(owner, values) == value)
        return True

    def _look(self, key: str, values: Mapping[str, Value]) -> Any:
        return values[key] if key in values else value_at(self.resolved, key)

    def _number(self, key: str, difference: str, values: Mapping[str, Value]) -> int:
        """What a difference of keys comes to."""
        numbers = []
        for name in keys_of(difference):
            found = self._look(name, values)
            if type(found) is not int:
                raise ConfigError(f"space.{key}: {name} is no whole number in every trial (found {found!r})")
            numbers.append(found)
        return numbers[0] - sum(numbers[1:])

    def limits(self, key: str, values: Mapping[str, Value]) -> tuple[float, float]:
        """The lowest and the highest number that a key may have in a trial with these values of the others."""
        domain = self.domains[key]
        if isinstance(domain, RandintDomain):
            low, high = (
                end if isinstance(end, int) else self._number(key, end, values) for end in domain.randint
            )
            if low > high:
                raise ConfigError(f"space.{key}.randint: is empty in a trial where it is {low} to {high}")
            return low, high
        if isinstance(domain, LogUniformDomain):
            return domain.loguniform
        ends = domain.uniform if isinstance(domain, UniformDomain) else options(domain) or ()
        numbers = [self._scaled(key, end, values) for end in ends]
        return min(numbers), max(numbers)

    def _scaled(self, key: str, value: Any, values: Mapping[str, Value]) -> Any:
        of = getattr(self.domains[key], "fraction_of", None)
        # Less a rounding error: 0.1 of 30 is 3.
        return value if of is None else math.ceil(value * self._number(key, of, values) - 1e-9)

    def value(self, key: str, number: float, values: Mapping[str, Value]) -> Value:
        """The key's value at a number from 0 to below 1, in a trial with these values of the keys before it."""
        domain = self.domains[key]
        chosen = options(domain)
        found: Value
        if chosen is not None:
            found = chosen[int(number * len(chosen))]
        elif isinstance(domain, RandintDomain):
            low, high = self.limits(key, values)
            return int(low + int(number * (high - low + 1)))
        else:
            assert isinstance(domain, UniformDomain | LogUniformDomain)
            found = at(domain, number)
        scaled: Value = self._scaled(key, found, values)
        return scaled

    def draw(self, pick: Pick) -> dict[str, Value]:
        """The values of a trial, in the order in which they were drawn."""
        values: dict[str, Value] = {}
        for key in self.order:
            if self.has(key, values):
                chosen = options(self.domains[key])
                number = pick(key, None if chosen is None else len(chosen))
                values[key] = self.value(key, number, values)
        return values

    def of_base(self) -> dict[str, Value]:
        """The base's own values. Raises: ConfigError if one of them is a schedule."""
        values: dict[str, Value] = {}
        for key in self.order:
            if self.has(key, values):
                found = value_at(self.resolved, key)
                if isinstance(found, dict | list):
                    raise ConfigError(
                        f"space.{key}: is searched, so it must be one value in the base (found {found!r})"
                    )
                values[key] = found
        return values

    def plain(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration of a trial with these values, as plain data."""
        result = self._laid_over(values)
        put(result, "outer.steps", self.outer_steps)
        put(result, "cluster.num_workers", self.workers)
        # A trial's are as many as the search says, no more and no less.
        result["cluster"].pop("min_workers", None)
        return result

    def _laid_over(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The base with these values, without what they leave no use for."""
        result = copy.deepcopy(dict(self.base))
        for key, value in values.items():
            put(result, key, value)
        if RULE in values:
            truncation, has = result["truncation"], fields_of(str(values[RULE]))
            result["truncation"] = {k: v for k, v in truncation.items() if k in has}
        for key, (owner, wanted) in OWNERS.items():
            if owner in values and values[owner] != wanted:
                section, _, name = key.partition(".")
                result.get(section, {}).pop(name, None)
        return result

    def config(self, values: Mapping[str, Any]) -> Config:
        """The configuration of a trial with these values. Raises: ConfigError."""
        return parse_config(self.plain(values))

    def whole(self, values: Mapping[str, Any]) -> Config:
        """A distillation with these values, as long and on as many workers as the base. Raises: ConfigError."""
        return parse_config(self._laid_over(values))

    def grid(self) -> Iterator[dict[str, Value]]:
        """Every point of a grid, the last key changing fastest. A value that two points share is there once."""
        seen = set()
        sizes = [len(options(self.domains[key]) or ()) for key in self.order]
        for point in itertools.product(*map(range, sizes)):
            at_point = dict(zip(self.order, point, strict=True))
            values = self.draw(lambda key, count, at=at_point: (at[key] + 0.5) / (count or 1))  # type: ignore[misc]
            if repr(values) not in seen:
                seen.add(repr(values))
                yield values

    def corners(self) -> Iterator[dict[str, Value]]:
        """The values at the ends of all ranges, with every option; a part of them, evenly, where they are many."""
        ends = [
            [(i + 0.5) / len(chosen) for i in range(len(chosen))] if chosen else [0.0, TOP]
            for chosen in (options(self.domains[key]) for key in self.order)
        ]
        total = math.prod(map(len, ends))
        step = max(1, total // MOST_CORNERS)
        while math.gcd(step, total) > 1:
            # Otherwise some key would stay at one end.
            step += 1
        for index in range(0, total, step):
            rest, numbers = index, {}
            for key, of in zip(self.order, ends, strict=True):
                rest, place = divmod(rest, len(of))
                numbers[key] = of[place]
            yield self.draw(lambda key, _, at=numbers: at[key])  # type: ignore[misc]

    def check(self) -> None:
        """Raises: ConfigError for a space some corner of which is no configuration."""
        self.of_base()
        seen = set[str]()
        for values in self.corners():
            seen |= values.keys()
            try:
                self.config(values)
            except ConfigError as e:
                at_corner = ", ".join(f"{k}={v}" for k, v in values.items())
                raise ConfigError(f"space: a trial with {at_corner} could not be run: {e}") from None
        for key in self.domains.keys() - seen:
            raise ConfigError(f"space.{key}: no trial has this key; remove it or mend its spelling")
