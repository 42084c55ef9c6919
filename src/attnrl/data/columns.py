"""Choose the columns of a source: the prompt, the true answer, the system message and the id.

A setting names a column (``data.columns``), or the popular spellings of :mod:`attnrl.config.columns` decide. Rows of a
source may have different columns: all candidates are kept in order of preference, and each row gives the first value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from attnrl.config.columns import (
    ANSWER,
    INSTRUCTION,
    INSTRUCTION_INPUT,
    PROMPT,
    SYSTEM,
    WEAK_ANSWER,
    find_columns,
    spelling_of,
)
from attnrl.data.held import held_value
from attnrl.utils.near import did_you_mean, near_names

MAX_LISTED = 30  # columns named in an error
MAX_SEARCHED = 100  # rows searched for the names of nested columns
MAX_NESTING = 3  # parts of the dotted name of a nested column in a suggestion
MISSING = object()  # the value of a column that a row lacks


@dataclass(frozen=True)
class Columns:
    """The columns of a source.

    Attributes:
        prompt: candidates for the prompt, dotted names, in order of preference.
        answer: candidates for the true answer; empty: the last message of the assistant is the answer.
        system: candidates for the system message.
        id: column of the ids; None: ids are hashes.
        instruction_input: column of the text after an instruction (Alpaca).
        answer_is_named: the setting names the column of the true answer.
        names: all columns of the source.
        first_rows: rows searched for the names of nested columns, for suggestions.
        missing: columns named by the setting but absent from the source, by the key of the setting.
    """

    prompt: tuple[str, ...]
    answer: tuple[str, ...]
    system: tuple[str, ...]
    id: str | None
    instruction_input: str | None
    answer_is_named: bool
    names: tuple[str, ...]
    first_rows: tuple[Mapping[str, Any], ...]
    missing: Mapping[str, str]


def choose_columns(rows: Iterable[Mapping[str, Any]], named: Mapping[str, str]) -> Columns:
    """Choose the columns of a source.

    Args:
        rows: the rows of the source.
        named: names by key (``prompt``, ``answer``, ``system``, ``id``): the setting ``data.columns``.
    """
    rows = list(rows)
    names = tuple(dict.fromkeys(str(name) for row in rows for name in row))
    missing = {key: name for key, name in named.items() if all(value_at(row, name) is MISSING for row in rows)}
    given = {key: (name,) for key, name in named.items() if key not in missing}
    prompt = given.get("prompt") or tuple(find_columns(names, PROMPT))
    free = [name for name in names if all(name not in taken for taken in given.values())]
    answer = given.get("answer") or _answer_columns(rows, free) or tuple(find_columns(free, WEAK_ANSWER))
    inputs = find_columns(names, [INSTRUCTION_INPUT])
    joined = "prompt" not in given and bool(find_columns(prompt, [INSTRUCTION])) and bool(inputs)
    return Columns(
        prompt=prompt,
        answer=tuple(name for name in answer if name not in given.get("prompt", ())),
        system=given.get("system") or tuple(find_columns(names, SYSTEM)),
        id=given["id"][0] if "id" in given else None,
        instruction_input=inputs[0] if joined else None,
        answer_is_named="answer" in given,
        names=names,
        first_rows=tuple(rows[:MAX_SEARCHED]),
        missing=missing,
    )


def _nested(columns: Columns) -> list[str]:
    """Return the dotted names of the nested columns in the first rows."""
    return list(dict.fromkeys(name for row in columns.first_rows for name in _nested_names(row)))


def _nested_names(value: Any, prefix: str = "", depth: int = 1) -> Iterator[str]:
    if isinstance(value, str) and depth > 1:
        value = held_value(value)
    if not isinstance(value, Mapping):
        return
    for name, inner in value.items():
        if depth > 1:
            yield f"{prefix}{name}"
        if depth < MAX_NESTING:
            yield from _nested_names(inner, f"{prefix}{name}.", depth + 1)


def _answer_columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns with a spelling of ANSWER; a nested column counts if a row has a value in the column."""
    found = []
    for spelling in ANSWER:
        outer, dot, inner = spelling.partition(".")
        for name in find_columns(names, [outer]):
            path = name + dot + inner
            if not dot or any(not is_null(value_at(row, path)) for row in rows):
                found.append(path)
    return tuple(found)


def value_at(row: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column, or :data:`MISSING`.

    A name with dots leads through objects, objects held as text, and lists by index (``messages.0.content``), unless
    the row has a column of the whole name.
    """
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if isinstance(value, str):
            value = held_value(value)
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Sequence) and not isinstance(value, str) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


def first_value(row: Mapping[str, Any], candidates: Sequence[str]) -> tuple[str, Any] | None:
    """Return name and value of the first candidate with a value; value None if all are null, None if all are absent."""
    present = [(name, value) for name in candidates if (value := value_at(row, name)) is not MISSING]
    for name, value in present:
        if not is_null(value):
            return name, value
    return (present[0][0], None) if present else None


def is_null(value: Any) -> bool:
    """Return True for null and NaN, and for the value of an absent column."""
    if value is None or value is MISSING:
        return True
    return isinstance(value, (float, Decimal)) and math.isnan(value)


def absent_column(columns: Columns, key: str, spellings: Sequence[str]) -> str:
    """Return the clause on a row without a prompt or an answer: the columns of the source, and the way out."""
    if key in columns.missing:
        return missing_column(columns, key)
    known = {spelling_of(spelling) for spelling in spellings}
    inner = [name for name in _nested(columns) if spelling_of(name.rpartition(".")[2]) in known]
    right = {spelling_of(spelling) for spelling in (*PROMPT, *ANSWER, *SYSTEM)}
    free = [name for name in columns.names if spelling_of(name) not in right]
    alike = [name for name in free if near_names(spelling_of(name), known)]
    name = next(iter(inner or alike), None)
    way_out = f"did you mean {key}={name}?" if name else f"name the column with {key}=NAME"
    return (
        f"expected {', '.join(spellings[:-1])} or {spellings[-1]} (columns: {_listed(columns)}); {way_out} "
        "(data.columns or --columns)"
    )


def missing_column(columns: Columns, key: str) -> str:
    """Return the clause on a column that the setting names and the source lacks."""
    wrong = columns.missing[key]
    suggestion = did_you_mean(wrong, (*columns.names, *_nested(columns)))
    return f"{key}={wrong} (data.columns or --columns): no such column (columns: {_listed(columns)}){suggestion}"


def _listed(columns: Columns) -> str:
    listed = [name or "''" for name in columns.names[:MAX_LISTED]]
    return ", ".join(listed) + (", ..." if len(columns.names) > MAX_LISTED else "")
