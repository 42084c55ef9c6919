"""The expressions in the text of a problem."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from attnrl.grading.reading.expressions import Expression, Number, Operation, Symbol
from attnrl.grading.reading.values import (
    Brackets,
    Counted,
    Labelled,
    Listing,
    Matrix,
    Quantity,
    Ratio,
    Relation,
    Residue,
    Value,
)

_SEGMENTS, _LONG_SEGMENT = 64, 2_000  # segments; characters
_MATH = re.compile(
    r"\\(?P<escaped>[$\\])|\$\$(?P<display>.+?)\$\$|\$(?P<inline>(?:\\.|[^$\\])+)\$"
    r"|\\\((?P<round>.+?)\\\)|\\\[(?P<square>.+?)\\\]",
    re.DOTALL,
)
_FUNCTION_NAMES = r"sqrt|sin|cos|tan|cot|sec|csc|log|ln|exp|abs|gcd|lcm|max|min|mod"
_PROSE = re.compile(rf"(?<!\\)\b(?!(?:{_FUNCTION_NAMES})\b)[a-zA-Z]{{2,}}|^[aAI]$")
_OPERATOR = re.compile(r"[\w)}\]!]\s*[-+*/^×·÷−]|[!√]|\\[a-zA-Z]+|[a-z]\(")


def statement_expressions(text: str, read: Callable[[str], Sequence[Value]]) -> list[Expression]:
    """Return the expressions of a problem: of each math segment, and of arithmetic between the words.

    Both sides of a relation count, and each item of a list, a tuple and a matrix. At most 64 segments of at most 2,000
    characters are read.

    Args:
        text: the problem, with math between dollars, ``\\(...\\)`` or ``\\[...\\]``.
        read: gives the possible values of the text of a segment, possibly none.
    """
    found: dict[Expression, None] = {}
    for number, segment in enumerate(_segments(text)):
        if number == _SEGMENTS:
            break
        if len(segment) <= _LONG_SEGMENT:
            for value in read(segment):
                found.update(dict.fromkeys(_expressions_of(value)))
    return list(found)


def _segments(text: str) -> Iterator[str]:
    """Yield the math segments of a text, then the runs of mathematics between words outside the segments."""
    outside, end = [], 0
    for match in _MATH.finditer(text):
        if match["escaped"] is not None:
            continue
        outside.append(text[end : match.start()])
        end = match.end()
        yield _without_end(next(group for group in match.groups() if group))
    outside.append(text[end:])
    for part in outside:
        run: list[str] = []
        for word in [*part.split(), "end of text"]:
            is_prose = _PROSE.search(word) is not None
            if not is_prose:
                run.append(word)
            if is_prose or word[-1] in ".,;?:":
                segment = _without_end(" ".join(run))
                run = []
                if _OPERATOR.search(segment):
                    yield segment


def _without_end(segment: str) -> str:
    return segment.strip().rstrip(".,;:?= ")


def _expressions_of(value: Value) -> Iterator[Expression]:
    """Yield the expressions inside a value."""
    inside: Sequence[Value] = ()
    match value:
        case Number() | Symbol() | Operation():
            yield value
        case Relation():
            inside = value.sides
        case Brackets() | Listing():
            inside = value.items
        case Matrix():
            inside = [item for row in value.rows for item in row]
        case Quantity() | Counted():
            inside = [value.amount]
        case Labelled() | Residue():
            inside = [value.value]
        case Ratio():
            inside = value.parts
    for item in inside:
        yield from _expressions_of(item)
