"""Reading a configuration: YAML and overrides, checked, with one line for each error that names the key's path."""

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ray_distill.config.base import Section
from ray_distill.config.config import Config, ConfigError, DataRequest, check_consistency
from ray_distill.config.yaml import from_yaml
from ray_distill.utils.secrets import redact

MAX_SHOWN = 200
"""Characters of a wrong value that a message shows."""

_MESSAGES = {
    "missing": "is missing; it has no default",
    "model_type": "must be a section: a mapping of keys to values",
    "union_tag_not_found": "is missing; it has no default",
    "union_tag_invalid": "must be one of {expected_tags}",
}

AnySection = TypeVar("AnySection", bound=Section)


def parse_section(section: type[AnySection], values: Mapping[str, Any]) -> AnySection:
    """Plain data -> a section. Raises: ConfigError with one line for each error."""
    try:
        return section.model_validate(values)
    except ValidationError as e:
        raise ConfigError("\n".join(_format_error(error, values) for error in e.errors())) from None


def _format_error(error: Any, values: Mapping[str, Any]) -> str:
    """One of pydantic's errors as a line: the key's path, what is wrong, the value."""
    kind, value = error["type"], error["input"]
    keys = _keys(error["loc"], values)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        keys.append(error["ctx"]["discriminator"].strip("'"))
        value = value.get(keys[-1])
    path = ".".join(keys) or "the file"
    if kind == "extra_forbidden":
        where = f"in {'.'.join(keys[:-1])}" if keys[1:] else "at the top level"
        mode = " with this truncation.rule" if keys[:-1] == ["truncation"] else ""
        return f"{path}: unknown key {keys[-1]!r} {where}{mode} (got {_shorten(value)}); remove it or fix its spelling"
    message = _MESSAGES[kind].format(**error.get("ctx", {})) if kind in _MESSAGES else error["msg"]
    message = re.sub(r"^\w+ should (?=\w)", "must ", message)
    hidden = kind in ("missing", "union_tag_not_found", "hidden") or isinstance(value, dict | BaseModel)
    return f"{path}: {message}{'' if hidden else f' (got {_shorten(value)})'}"


def _keys(location: tuple[int | str, ...], values: Any) -> list[str]:
    """The keys that lead to an error, without the tags that pydantic adds for the members of a union."""
    keys = []
    for part in location:
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            # A key that is missing; otherwise a tag.
            if part != location[-1] or not isinstance(values, Mapping):
                continue
        keys.append(str(part))
    return keys


def _shorten(value: Any) -> str:
    """A value as a message shows it."""
    text = redact(repr(value))
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ..."


def parse_data_request(values: Mapping[str, Any]) -> DataRequest:
    """Plain data with `data` and `seed` alone. Raises: ConfigError with one line for each error."""
    return parse_section(DataRequest, values)


def parse_config(values: Mapping[str, Any]) -> Config:
    """Plain data -> a checked Config. Raises: ConfigError with one line for each error."""
    config = parse_section(Config, values)
    check_consistency(config)
    return config


Overrides = Iterable[str] | Mapping[str, Any]
"""Values to replace in a configuration: strings as `--set` takes them ("outer.lr=0.01"), or {"outer.lr": 0.01}."""


def apply_overrides(values: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """Overrides applied to a copy of nested plain data.

    Raises: ConfigError for an override that is not of the form a.b=value or sets a key inside a value.
    """
    result: dict[str, Any] = copy.deepcopy(values)
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(_parse_override, overrides)
    for path, value in pairs:
        keys = path.split(".")
        section = result
        for key in keys[:-1]:
            inner = section.setdefault(key, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {path}: {key} is a value ({inner!r}), not a section")
            section = inner
        section[keys[-1]] = value
    return result


def _parse_override(override: str) -> tuple[str, Any]:
    path, equals, text = override.partition("=")
    if not equals or not all(path.split(".")):
        raise ConfigError(f"--set {override!r}: must be of the form a.b=value, e.g. --set outer.lr=0.01")
    try:
        return path, from_yaml(text)
    except ValueError as e:
        raise ConfigError(f"--set {path}: {_shorten(text)} is not valid YAML ({e})") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain data of a YAML file. Raises: ConfigError if it cannot be read or is not a mapping."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read ({e})") from None
    try:
        values = from_yaml(text)
    except ValueError as e:
        raise ConfigError(f"{path}: is not valid YAML ({e})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must be a mapping of sections (got {type(values).__name__})")
    return values


def as_plain(config: Config | str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The plain data of a YAML file, a dict, or a `Config`. Raises: ConfigError for a file that is not YAML."""
    if isinstance(config, Config):
        return config.to_dict()
    return dict(config) if isinstance(config, Mapping) else read_yaml(Path(config))


def load_config(config: Config | str | Path | Mapping[str, Any], overrides: Overrides = ()) -> Config:
    """A checked configuration from a YAML file, a dict of its sections, or a `Config`, with overrides applied.

    Raises: ConfigError with one line for each error.
    """
    return parse_config(apply_overrides(as_plain(config), overrides))
