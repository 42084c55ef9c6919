"""The expressions in the text of a problem."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import islice

from attnrl.grading.reading.expressions import Expression, Number, Operation, Symbol, difference, is_operation
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

_OPERAND = (
    r"(\$(?:\\.|[^$\\]){1,200}\$|\\\([^$]{1,200}?\\\)"
    r"|(?<![\w.,$^/])\d(?:[\d,./]{0,30}\d)?(?:\\?%)?(?![\w^]))"
)
_PHRASES_TABLE = (
    (r"remainder (?:of|when) X (?:is )?(?:divided by|upon division by|modulo) X", "mod"),
    (r"remainder (?:on|upon|after|when|of) dividing X by X", "mod"),
    (r"(?<!when )(?<!of )X divided by X", "divide"),
    (r"quotient of X and X", "divide"),
    (r"sum of X and X", "add"),
    (r"X plus X", "add"),
    (r"difference (?:of|between) X and X", "subtract"),
    (r"X minus X", "subtract"),
    (r"product of X and X", "multiply"),
    (r"X times X", "multiply"),
    (r"X percent of X", "percent"),
    (r"X of X", "part"),
    (r"X choose X", "binomial"),
    (r"square root of X", "root"),
    (r"X factorial", "factorial"),
    (r"X to the power (?:of )?X", "power"),
)
#: Words with operands -> name of an operation.
_PHRASES = [(re.compile(words.replace("X", _OPERAND)), name) for words, name in _PHRASES_TABLE]
_CONVERSION = re.compile(
    r"(?i)\b(?:write|rewrite|express|convert|change|represent|what is)\s+(?:the\s+)?"
    r"(?:(?:repeating |terminating |improper |common |mixed )?(?:number|decimal|fraction|percent(?:age)?) )?"
    rf"(?P<object>{_OPERAND})\s+(?:as|in|to|into)\b"
)


def statement_expressions(text: str, read: Callable[[str], Sequence[Value]]) -> list[Expression]:
    r"""Return the expressions of a problem: of each math segment, of arithmetic between the words, and of phrases.

    Both sides of a relation count, and each item of a list, a tuple and a matrix. A phrase is ``15\% of 80``, ``the
    sum of 12 and 30`` or ``the remainder when 7^{100} is divided by 5``. At most 64 segments of at most 2,000
    characters are read.

    Args:
        text: the problem, with math between dollars, ``\(...\)`` or ``\[...\]``.
        read: gives the possible values of the text of a segment, possibly none.
    """
    found: dict[Expression, None] = {}
    for number, segment in enumerate(_segments(text)):
        if number == _SEGMENTS:
            break
        if len(segment) <= _LONG_SEGMENT:
            for value in read(segment):
                found.update(dict.fromkeys(_expressions_of(value)))
    found.update(dict.fromkeys(_phrases(text, read)))
    return list(found)


def converted_expressions(text: str, read: Callable[[str], Sequence[Value]]) -> list[Expression]:
    r"""Return the expressions that a problem asks to write in another form: ``Write $\frac25$ as a percent``.

    Args:
        text: the problem.
        read: gives the possible values of the text of an expression, possibly none.
    """
    operands = (_operand(match["object"], read) for match in _CONVERSION.finditer(text))
    return [operand for operand in operands if operand is not None]


def _phrases(text: str, read: Callable[[str], Sequence[Value]]) -> Iterator[Expression]:
    """Yield the operation of each phrase with an operation in words and operands in numbers or mathematics."""
    for phrase, name in _PHRASES:
        for match in islice(phrase.finditer(text), _SEGMENTS):
            operands = [_operand(group, read) for group in match.groups()]
            known = [operand for operand in operands if operand is not None]
            if len(known) == len(operands) and (name != "part" or _is_part(known[0])):
                yield _operation(name, known)


def _operation(name: str, operands: Sequence[Expression]) -> Operation:
    """Return an operation, with the operands that the words of a phrase leave out."""
    match name:
        case "percent":
            return Operation("multiply", (Operation("percent", (operands[0],)), operands[1]))
        case "part":
            return Operation("multiply", tuple(operands))
        case "subtract":
            return difference(*operands)
        case "root":
            return Operation("root", (operands[0], Number(Fraction(2))))
    return Operation(name, tuple(operands))


def _is_part(operand: Expression) -> bool:
    """Return True for a percentage and a fraction, and False for a number of things: ``3 of 10``."""
    if isinstance(operand, Number):
        return operand.value.denominator > 1
    return is_operation(operand, "percent", "divide")


def _operand(written: str, read: Callable[[str], Sequence[Value]]) -> Expression | None:
    """Return the first expression in the text of a number or a math segment, or None."""
    match = _MATH.fullmatch(written)
    text = next((group for group in match.groups() if group), "") if match else written
    values = read(_without_end(text)) if len(text) <= _LONG_SEGMENT else ()
    return next((part for value in values for part in _expressions_of(value)), None)


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
