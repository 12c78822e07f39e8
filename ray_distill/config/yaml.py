"""Plain data as YAML text and back, as people mean it, and within bounds."""

import re
from typing import Any

import yaml

MAX_VALUES = 100_000
"""In a file, each counted as often as it is referred to."""


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as a string, since it has no dot; people mean the number. A key that stands twice is refused:
    the first of its values would have no effect."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML's, for keys that differ."""
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice in one section", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _YamlDumper(yaml.SafeDumper):
    """The loader's other half: quotes a string that the loader would take for a number."""


for _half in (_YamlLoader, _YamlDumper):
    _half.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def to_yaml(values: Any) -> str:
    """Plain data as YAML that is read back to the same."""
    return yaml.dump(values, Dumper=_YamlDumper, sort_keys=False)


def from_yaml(text: str) -> Any:
    """The plain data of a text. Raises: ValueError for what is no YAML, or grows when it is read."""
    try:
        values = yaml.load(text, Loader=_YamlLoader)
    except yaml.YAMLError as e:
        raise ValueError(" ".join(str(e).split())) from None
    except RecursionError:
        raise ValueError("too many brackets within brackets") from None
    # A few aliases of aliases are billions of values, or one that holds itself.
    count, inside = 0, [values]
    while inside:
        value = inside.pop()
        count += 1
        if count > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES:,} values, or aliases that go round in a circle")
        inside += [*value.keys(), *value.values()] if isinstance(value, dict) else []
        inside += value if isinstance(value, list) else []
    return values
