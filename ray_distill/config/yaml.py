"""Plain data as YAML text and back: 1e-3 is a number, duplicate keys are refused, and the size is bounded."""

import re
from typing import Any

import yaml

MAX_VALUES = 100_000
"""In a file; an aliased value counts once for each alias."""


class _YamlLoader(yaml.SafeLoader):
    """Reads 1e-3 as a number (a string in YAML 1.1, for lack of a dot), and refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML's, with unique keys."""
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key.value!r}", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _YamlDumper(yaml.SafeDumper):
    """Quotes a string that the loader would read as a number."""


for _class in (_YamlLoader, _YamlDumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def to_yaml(values: Any) -> str:
    """Plain data as YAML that `from_yaml` reads back to the same."""
    return yaml.dump(values, Dumper=_YamlDumper, sort_keys=False)


def from_yaml(text: str) -> Any:
    """The plain data of a text. Raises: ValueError for invalid YAML, or too many values."""
    try:
        values = yaml.load(text, Loader=_YamlLoader)
    except yaml.YAMLError as e:
        raise ValueError(" ".join(str(e).split())) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    # A few aliases of aliases may expand to billions of values, or to one that contains itself.
    count, remaining = 0, [values]
    while remaining:
        value = remaining.pop()
        count += 1
        if count > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values, or a circular alias")
        remaining += [*value.keys(), *value.values()] if isinstance(value, dict) else []
        remaining += value if isinstance(value, list) else []
    return values
