"""The types of an answer: what :func:`attnrl.grading.reading.reader.read` makes of a text.

Comparison is by type (:mod:`attnrl.grading.comparing.compare`): the type of the true answer decides.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from attnrl.grading.reading.expressions import Expression, Number, Operation, Symbol
from attnrl.grading.reading.units import Unit


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain of values: ``x = 5``, ``1 < x <= 2``, ``x in (1, 2]``.

    Attributes:
        sides: two or more values.
        operators: one operator between two sides, each of ``= != < <= > >= in ~`` (``~``: approximately equal).
    """

    sides: tuple[Value, ...]
    operators: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Brackets:
    """Values in brackets: a tuple, an interval or a set.

    Attributes:
        left: ``(``, ``[``, ``{``, ``<`` or ``]`` (an open bound of an interval, as in ``]1, 2]``).
        right: ``)``, ``]``, ``}``, ``>`` or ``[``.
        items: the values between commas, possibly none; a single value in round brackets is never ``Brackets``.
    """

    left: str
    right: str
    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """Two or more values without brackets around them.

    Attributes:
        items: the values, in order.
        joint: ``,`` (also for a semicolon or a line of a ``cases`` environment), ``and`` or ``or``.
    """

    items: tuple[Value, ...]
    joint: str


@dataclass(frozen=True, slots=True)
class SetOperation:
    """Sets joined by ``union``, ``intersection`` or ``difference``; the name is one of the three."""

    name: str
    operands: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A set with a name: ``reals``, ``integers``, ``naturals``, ``rationals``, ``complex`` or ``empty``."""

    name: str


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix, a vector (one column or one row) or, with bars, a determinant.

    Attributes:
        rows: the rows, all of one length.
        bars: the matrix stands between bars, so the value is the determinant.
    """

    rows: tuple[tuple[Value, ...], ...]
    bars: bool = False


@dataclass(frozen=True, slots=True)
class Words:
    """A word or a phrase as written, without markup: ``ellipse``, ``Monday``, ``an even number``."""

    text: str


@dataclass(frozen=True, slots=True)
class Quantity:
    """An amount with a unit: ``5 \\text{ cm}``, ``\\$3.50``, ``90^\\circ``."""

    amount: Value
    unit: Unit


@dataclass(frozen=True, slots=True)
class Counted:
    """An amount with the name of the things counted: ``14 \\text{ right triangles}``.

    Attributes:
        amount: the number.
        noun: the words after the number, in lower case.
    """

    amount: Value
    noun: str


@dataclass(frozen=True, slots=True)
class Residue:
    """A residue class: ``5 \\pmod 7``."""

    value: Expression
    modulus: Expression


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two or more parts: ``3:4``, ``1:2:3``."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class BaseNumber:
    """A numeral in a written base: ``2516_8``.

    Attributes:
        digits: the digits, in upper case.
        base: the base, at least 2.
    """

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class TimeOfDay:
    """A time of the day: ``10:30`` a.m.

    Attributes:
        minutes: minutes since midnight, 12-hour times without a half of the day counted as morning.
        half: ``am``, ``pm``, or ``""`` if the half of the day is not written.
    """

    minutes: int
    half: str


@dataclass(frozen=True, slots=True)
class Labelled:
    """A value after the letter of a choice: ``\\textbf{(E) } 42``."""

    label: str
    value: Value


Value = (
    Number
    | Symbol
    | Operation
    | Relation
    | Brackets
    | Listing
    | SetOperation
    | NamedSet
    | Matrix
    | Words
    | Quantity
    | Counted
    | Residue
    | Ratio
    | BaseNumber
    | TimeOfDay
    | Labelled
)


def items_of(value: Value) -> tuple[Value, ...]:
    """Return the items of a listing or of values in brackets; of another value, the value alone."""
    return value.items if isinstance(value, Listing | Brackets) else (value,)


def phrase(text: str) -> str:
    """Return words in lower case, without articles, punctuation, hyphens and the plural."""
    words = re.sub(r"[^\w\s']|_", " ", text.casefold().replace("'", "")).split()
    kept = [word for word in words if word not in ("a", "an", "the")] or words
    return " ".join(word.removesuffix("s") if len(word) > 3 else word for word in kept)
