"""YAML from outside: plain data, each key once, no larger and no deeper than any settings are."""

from __future__ import annotations

from typing import Any

import yaml

MAX_CHARS = 200_000
MAX_VALUES = 10_000  # an alias counts each time it is used: a few lines of them can stand for billions of values
MAX_DEPTH = 32
MAX_BITS = 1_024  # of an integer: a larger one is no float, and cannot be printed
_MERGE = "tag:yaml.org,2002:merge"  # of the key <<


class _Loader(yaml.SafeLoader):
    """Refuses what PyYAML takes silently (the second of two values of a key) or without end (merges of merges)."""

    depth = 0
    values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.values += 1
        _require_bounds(self.depth, self.values)  # not only of the whole: parsing it takes long
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
    """The one document of ``text``: mappings, lists, text, numbers, dates.

    Raises:
        ValueError: it is not valid YAML, gives a key twice, names objects, or holds what no settings hold (thousands
            of values, numbers of hundreds of digits, text that no file can hold). Its message is one line.
    """
    if len(text) > MAX_CHARS:
        raise ValueError(f"longer than {MAX_CHARS:,} characters")
    try:
        value = yaml.load(text, _Loader)  # a safe loader
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except _OutOfBoundsError:
        raise
    except Exception as error:  # whatever datetime, dict and the like raise on 2020-13-45, !!bool maybe
        raise ValueError(f"a value that cannot be read: {' '.join(str(error).split())[:200]}") from None
    _check(value, 0, 0)
    return value


class _OutOfBoundsError(ValueError):
    """Larger or deeper than settings are."""


def _require_bounds(depth: int, values: int) -> None:
    if depth > MAX_DEPTH:
        raise _OutOfBoundsError(f"nested deeper than {MAX_DEPTH} levels")
    if values > MAX_VALUES:
        raise _OutOfBoundsError(f"more than {MAX_VALUES:,} values")


def _check(value: Any, depth: int, values: int) -> int:
    """Refuse what no settings hold; returns how many values there are, ``values`` before this one included."""
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
        for one in value:
            values = _check(one, depth + 1, values)
    return values
