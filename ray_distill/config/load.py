"""Reading a configuration: YAML and overrides, checked, with every mistake as a line that names the key's path."""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ray_distill.config.config import Config, ConfigError, DataRequest, check
from ray_distill.config.schedules import TAGS
from ray_distill.config.truncation import RULES
from ray_distill.config.yaml import from_yaml
from ray_distill.utils.secrets import redact

MAX_SHOWN = 200
"""Characters of a wrong value that a message shows."""


def _key_path(location: tuple[int | str, ...]) -> str:
    """A key's path as the user writes it: without the tags that pydantic adds for the truncation rule and schedules."""
    return ".".join(str(part) for part in location if part not in (*RULES, *TAGS)) or "the file"


_MESSAGES = {
    "missing": "is missing; it has no default",
    "union_tag_not_found": f"truncation.rule is missing; allowed: {', '.join(RULES)}",
    "union_tag_invalid": f"truncation.rule is unknown; allowed: {', '.join(RULES)}",
}


def format_error(error: Any) -> str:
    """One of pydantic's mistakes as a line for people."""
    path, kind = _key_path(error["loc"]), error["type"]
    found = error["input"]
    if kind == "extra_forbidden":
        section, _, key = path.rpartition(".")
        where = f"in {section}" if section else "at the top"
        effect = " with this truncation.rule" if section == "truncation" else ""
        return (
            f"{path}: unknown key {key!r} {where}{effect} (found {_shorten(found)}); remove it or mend its "
            "spelling"
        )
    message = _MESSAGES.get(kind, error["msg"]).removeprefix("Value error, ")
    hidden = kind in ("missing", "secret") or isinstance(found, dict | BaseModel)
    return f"{path}: {message}{'' if hidden else f' (found {_shorten(found)})'}"


def _shorten(found: Any) -> str:
    """A value as a message shows it: enough of it to be known again."""
    text = redact(repr(found))
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ..."


def parse_data_request(values: Mapping[str, Any]) -> DataRequest:
    """Plain data with `data` and `seed` alone. Raises: ConfigError with one line for each mistake."""
    try:
        return DataRequest.model_validate(values)
    except ValidationError as e:
        raise ConfigError("\n".join(format_error(error) for error in e.errors())) from None


def parse_config(values: Mapping[str, Any]) -> Config:
    """Plain data -> a checked Config. Raises: ConfigError with one line for each mistake."""
    try:
        config = Config.model_validate(values)
    except ValidationError as e:
        raise ConfigError("\n".join(format_error(error) for error in e.errors())) from None
    check(config)
    return config


Overrides = Iterable[str] | Mapping[str, Any]
"""Values laid over a configuration: `"outer.lr=0.01"` (in YAML) each, as `--set` takes them, or {"outer.lr": 0.01}."""


def apply_overrides(values: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """Overrides laid over nested plain data; the input is left as it is.

    Raises: ConfigError for one that is not of the form a.b=value or reaches into something that is no section.
    """
    result: dict[str, Any] = copy.deepcopy(values)
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(_parse_override, overrides)
    for path, value in pairs:
        keys = path.split(".")
        section = result
        for key in keys[:-1]:
            inside = section.setdefault(key, {})
            if not isinstance(inside, dict):
                raise ConfigError(f"--set {path}: {key} is a value ({inside!r}), not a section")
            section = inside
        section[keys[-1]] = value
    return result


def _parse_override(override: str) -> tuple[str, Any]:
    path, equals, text = override.partition("=")
    if not equals or not all(path.split(".")):
        raise ConfigError(f"--set {override!r}: write it as a.b=value, e.g. --set outer.lr=0.01")
    try:
        return path, from_yaml(text)
    except ValueError as e:
        raise ConfigError(f"--set {path}: {_shorten(text)} is not a YAML value ({e})") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The plain data of a YAML file. Raises: ConfigError if it cannot be read or is no mapping."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read ({e})") from None
    try:
        values = from_yaml(text)
    except ValueError as e:
        raise ConfigError(f"{path}: is not YAML ({e})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must be a mapping of sections, not {type(values).__name__}")
    return values


def as_plain(config: Config | str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The plain data of a YAML file, of a dict, or of a `Config`. Raises: ConfigError for a file that is no YAML."""
    if isinstance(config, Config):
        return config.to_dict()
    return dict(config) if isinstance(config, Mapping) else read_yaml(Path(config))


def load_config(config: Config | str | Path | Mapping[str, Any], overrides: Overrides = ()) -> Config:
    """A checked configuration from a YAML file, a dict of its sections, or a `Config`, with overrides laid over it.

    Raises: ConfigError, with one line for each mistake.
    """
    return parse_config(apply_overrides(as_plain(config), overrides))
