"""From numbers between 0 and 1 to the configuration of a trial.

A key is drawn after those it depends on. A key that does not apply to a trial is left out, of the values and of the base: a
window under a rule without one, a momentum with Adam. So every trial's configuration is valid by construction, and the
corners of the space are parsed before anything runs.
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
from ray_distill.tuning.domains import (
    Domain,
    LogUniformDomain,
    RandintDomain,
    UniformDomain,
    Value,
    interpolate,
    keys_in,
    options,
)

Sample = Callable[[str, int | None], float]
"""(key, number of options, None for a range) -> a number in [0, 1)."""

CONDITIONS: dict[str, tuple[str, Value]] = {
    "inner.momentum": ("inner.optimizer", "sgd"),
    "inner.weight_decay": ("inner.optimizer", "sgd"),
    "inner.eps_convention": ("inner.optimizer", "adam"),
    "distilled.label_lr_scale": ("distilled.learn_labels", True),
}
"""Keys that exist only where another key has this value; those of the truncation rules are in `fields_of`."""
RULE = "truncation.rule"

MAX_CORNERS = 600
MAX_UNIFORM = 1.0 - 2.0**-24
"""The largest number that a stream gives."""


def value_at(values: Mapping[str, Any], key: str) -> Any:
    """The value at `a.b` in nested plain data; None if there is none."""
    value: Any = values
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def set_value(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at `a.b` in nested plain data."""
    *sections, last = key.split(".")
    for part in sections:
        values = values.setdefault(part, {})
    values[last] = value


@dataclass(frozen=True)
class Space:
    """What may vary between the trials of a search, and the base configuration that it varies."""

    base: Mapping[str, Any]
    """A distillation's configuration as plain data, without defaults filled in."""
    domains: Mapping[str, Domain]
    outer_steps: int
    """Of a trial."""
    workers: int = 1
    """Of a trial."""

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """The base with defaults filled in, with a trial's number of outer steps. Raises: ConfigError."""
        return parse_config(self.config_dict({})).to_dict()

    @cached_property
    def order(self) -> list[str]:
        """The keys, each after those it depends on. Raises: ConfigError for a cycle."""
        first = [key for key in (RULE, *(owner for owner, _ in CONDITIONS.values())) if key in self.domains]
        remaining, order = list(dict.fromkeys([*first, *self.domains])), list[str]()
        while remaining:
            ready = [
                k for k in remaining if not any(name in remaining for name in self.domains[k].depends_on)
            ]
            if not ready:
                raise ConfigError(
                    f"space: {', '.join(remaining)} depend on each other; give one of them numbers"
                )
            order.append(ready[0])
            remaining.remove(ready[0])
        return order

    def has(self, key: str, values: Mapping[str, Value]) -> bool:
        """Whether the key applies to a trial with these values of the keys drawn before."""
        section, _, name = key.partition(".")
        if section == "truncation" and name != "rule":
            return name in fields_of(str(self._lookup(RULE, values)))
        if key in CONDITIONS:
            owner, value = CONDITIONS[key]
            return bool(self._lookup(owner, values) == value)
        return True

    def _lookup(self, key: str, values: Mapping[str, Value]) -> Any:
        return values[key] if key in values else value_at(self.resolved, key)

    def _difference(self, key: str, difference: str, values: Mapping[str, Value]) -> int:
        """The value of a difference of keys."""
        numbers = []
        for name in keys_in(difference):
            number = self._lookup(name, values)
            if type(number) is not int:
                raise ConfigError(f"space.{key}: {name} must be an integer in every trial, got {number!r}")
            numbers.append(number)
        return numbers[0] - sum(numbers[1:])

    def limits(self, key: str, values: Mapping[str, Value]) -> tuple[float, float]:
        """A key's lowest and highest number in a trial with these values of the others."""
        domain = self.domains[key]
        if isinstance(domain, RandintDomain):
            low, high = (
                end if isinstance(end, int) else self._difference(key, end, values) for end in domain.randint
            )
            if low > high:
                raise ConfigError(f"space.{key}.randint: is an empty range in some trial: {low} to {high}")
            return low, high
        if isinstance(domain, LogUniformDomain):
            return domain.loguniform
        ends = domain.uniform if isinstance(domain, UniformDomain) else options(domain) or ()
        numbers = [self._scaled(key, end, values) for end in ends]
        return min(numbers), max(numbers)

    def _scaled(self, key: str, value: Any, values: Mapping[str, Value]) -> Any:
        whole = getattr(self.domains[key], "fraction_of", None)
        # Less a rounding error: 0.1 of 30 is 3.
        return value if whole is None else math.ceil(value * self._difference(key, whole, values) - 1e-9)

    def value(self, key: str, number: float, values: Mapping[str, Value]) -> Value:
        """The key's value for a number in [0, 1), in a trial with these values of the keys drawn before."""
        domain = self.domains[key]
        choices = options(domain)
        unscaled: Value
        if choices is not None:
            unscaled = choices[int(number * len(choices))]
        elif isinstance(domain, RandintDomain):
            low, high = self.limits(key, values)
            return int(low + int(number * (high - low + 1)))
        else:
            assert isinstance(domain, UniformDomain | LogUniformDomain)
            unscaled = interpolate(domain, number)
        scaled: Value = self._scaled(key, unscaled, values)
        return scaled

    def draw(self, sample: Sample) -> dict[str, Value]:
        """The values of a trial, in the order in which they are drawn."""
        values: dict[str, Value] = {}
        for key in self.order:
            if self.has(key, values):
                choices = options(self.domains[key])
                number = sample(key, None if choices is None else len(choices))
                values[key] = self.value(key, number, values)
        return values

    def base_values(self) -> dict[str, Value]:
        """The base's own values. Raises: ConfigError if one of them is a schedule."""
        values: dict[str, Value] = {}
        for key in self.order:
            if self.has(key, values):
                value = value_at(self.resolved, key)
                if isinstance(value, dict | list):
                    raise ConfigError(
                        f"space.{key}: a searched key must be one value in the base, got {value!r}"
                    )
                values[key] = value
        return values

    def config_dict(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration of a trial with these values, as plain data."""
        result = self._override(values)
        set_value(result, "outer.steps", self.outer_steps)
        set_value(result, "cluster.num_workers", self.workers)
        # A trial always has exactly the search's number of workers.
        result["cluster"].pop("min_workers", None)
        return result

    def _override(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The base with these values, without the keys that no longer apply."""
        result = copy.deepcopy(dict(self.base))
        for key, value in values.items():
            set_value(result, key, value)
        if RULE in values:
            truncation, has = result["truncation"], fields_of(str(values[RULE]))
            result["truncation"] = {k: v for k, v in truncation.items() if k in has}
        for key, (owner, wanted) in CONDITIONS.items():
            if owner in values and values[owner] != wanted:
                section, _, name = key.partition(".")
                result.get(section, {}).pop(name, None)
        return result

    def config(self, values: Mapping[str, Any]) -> Config:
        """The configuration of a trial with these values. Raises: ConfigError."""
        return parse_config(self.config_dict(values))

    def full_config(self, values: Mapping[str, Any]) -> Config:
        """A distillation with these values and the base's number of outer steps and workers. Raises: ConfigError."""
        return parse_config(self._override(values))

    def grid(self) -> Iterator[dict[str, Value]]:
        """Every point of a grid, the last key changing fastest; points with equal values only once."""
        seen = set()
        sizes = [len(options(self.domains[key]) or ()) for key in self.order]
        for point in itertools.product(*map(range, sizes)):
            index = dict(zip(self.order, point, strict=True))
            values = self.draw(lambda key, count, index=index: (index[key] + 0.5) / (count or 1))  # type: ignore[misc]
            if repr(values) not in seen:
                seen.add(repr(values))
                yield values

    def corners(self) -> Iterator[dict[str, Value]]:
        """All combinations of options and ends of ranges; an even subset where there are more than `MAX_CORNERS`."""
        ends = [
            [(i + 0.5) / len(choices) for i in range(len(choices))] if choices else [0.0, MAX_UNIFORM]
            for choices in (options(self.domains[key]) for key in self.order)
        ]
        total = math.prod(map(len, ends))
        step = max(1, total // MAX_CORNERS)
        while math.gcd(step, total) > 1:
            # With a common divisor some key would stay at one of its ends.
            step += 1
        for index in range(0, total, step):
            rest, numbers = index, {}
            for key, key_ends in zip(self.order, ends, strict=True):
                rest, place = divmod(rest, len(key_ends))
                numbers[key] = key_ends[place]
            yield self.draw(lambda key, _, numbers=numbers: numbers[key])  # type: ignore[misc]

    def check(self) -> None:
        """Raises: ConfigError if some corner of the space is not a valid configuration."""
        self.base_values()
        seen = set[str]()
        for values in self.corners():
            seen |= values.keys()
            try:
                self.config(values)
            except ConfigError as e:
                shown = ", ".join(f"{k}={v}" for k, v in values.items())
                raise ConfigError(f"space: a trial with {shown} could not be run: {e}") from None
        for key in self.domains.keys() - seen:
            raise ConfigError(f"space.{key}: no trial has this key; remove it or fix its spelling")
