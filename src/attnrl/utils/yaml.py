"""Safe YAML for untrusted settings: plain data, unique keys, bounds on size, depth and number of values."""

from __future__ import annotations

from typing import Any

import yaml

MAX_CHARS = 200_000
MAX_VALUES = 10_000  # every use of an alias counts: a few nested aliases expand to billions of values
MAX_DEPTH = 32
MAX_BITS = 1_024  # of an integer: larger integers overflow a float
_MERGE = "tag:yaml.org,2002:merge"  # tag of the merge key <<


class _Loader(yaml.SafeLoader):
    """Safe loader that also rejects duplicate keys and merges of lists (exponential merge chains)."""

    depth = 0
    values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.values += 1
        _require_bounds(self.depth, self.values)  # while parsing, before the whole document is built
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            merges = key.tag == _MERGE
            name = (key.tag, "<<" if merges else key.value)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"{name[1]} is given twice", problem_mark=key.start_mark)
            if merges and isinstance(value, yaml.SequenceNode):
                raise yaml.MarkedYAMLError(problem="<< takes one mapping, not a list", problem_mark=key.start_mark)
            seen.add(name)
        return node


def load_yaml(text: str) -> Any:
    """Parse the single document ``text``: mappings, lists, text, numbers, dates.

    Raises:
        ValueError: invalid YAML, duplicate keys, tagged objects, or values out of bounds (number of values, depth, size
            of integers, text with NUL or surrogates). The message is one line.
    """
    if len(text) > MAX_CHARS:
        raise ValueError(f"longer than {MAX_CHARS:,} characters")
    try:
        value = yaml.load(text, _Loader)  # a safe loader
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except _OutOfBoundsError:
        raise
    except Exception as error:  # datetime and dict raise many types, for 2020-13-45 or !!bool maybe
        raise ValueError(f"a value that cannot be read: {' '.join(str(error).split())[:200]}") from None
    _check(value, 0, 0)
    return value


class _OutOfBoundsError(ValueError):
    """Raised for documents beyond :data:`MAX_DEPTH` or :data:`MAX_VALUES`."""


def _require_bounds(depth: int, values: int) -> None:
    if depth > MAX_DEPTH:
        raise _OutOfBoundsError(f"nested deeper than {MAX_DEPTH} levels")
    if values > MAX_VALUES:
        raise _OutOfBoundsError(f"more than {MAX_VALUES:,} values")


def _check(value: Any, depth: int, values: int) -> int:
    """Raise ValueError for values that no setting may hold; return ``values`` plus the count of values in ``value``."""
    values += 1
    _require_bounds(depth, values)
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("text with NUL or half of a surrogate pair")
    elif isinstance(value, bytes):
        raise ValueError("binary data")
    elif isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise ValueError("a number of hundreds of digits")
    elif isinstance(value, dict):
        for key, item in value.items():
            values = _check(item, depth + 1, _check(key, depth + 1, values))
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            values = _check(item, depth + 1, values)
    return values
