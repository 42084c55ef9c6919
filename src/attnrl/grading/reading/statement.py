"""The facts of a problem's text that decide how an answer is read and compared."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from attnrl.grading.reading.expressions import Expression, free_symbols
from attnrl.grading.reading.formulas import statement_expressions
from attnrl.grading.reading.reader import read
from attnrl.grading.reading.tokens import Unreadable
from attnrl.grading.reading.units import Unit, units_in
from attnrl.grading.reading.values import Value

MAX_CHARS = 8_000  # of a problem's text; the rest is not read
MAX_FORMULAS = 64

_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_OPTION = re.compile(r"(?:\(|\b|\{)([A-J])\s*[).:\}]")
_BASE = re.compile(
    r"base[\s$\-{}\\a-z]{0,10}?(\d{1,2})\b|base[\s-]*(two|three|four|five|six|seven|eight|nine|ten|twelve|sixteen)"
)
_BASE_WORDS = {
    **{"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10},
    **{"twelve": 12, "sixteen": 16},
}
_ALL_THAT_APPLY = re.compile(
    r"(?i)all (?:that|which) apply|select all|which of the following (?:are|statements are)|all correct"
)


@dataclass(frozen=True)
class Statement:
    """The facts of a problem's text.

    Attributes:
        text: the text, at most ``MAX_CHARS`` characters.
        symbols: the variables in the formulas.
        asked: the formulas without an equality sign: a quantity asked for is one of the formulas.
        expressions: the expressions that an answer could copy.
        units: the units named, in order.
        words: the words, in lower case.
        options: the letters of the choices offered.
        all_that_apply: several choices may be right together, in any order.
        bases: the bases of numerals named.
    """

    text: str = ""
    symbols: frozenset[str] = frozenset()
    asked: frozenset[Value] = frozenset()
    expressions: tuple[Expression, ...] = ()
    units: tuple[Unit, ...] = ()
    words: frozenset[str] = frozenset()
    options: frozenset[str] = frozenset()
    all_that_apply: bool = False
    bases: frozenset[int] = frozenset()


def _values(text: str) -> tuple[Value, ...]:
    try:
        return read(text)
    except Unreadable:
        return ()


@lru_cache(maxsize=256)
def read_statement(text: str) -> Statement:
    """Return the facts of a problem's text; of a text without a word, a statement without facts."""
    text = text[:MAX_CHARS]
    if not re.search(r"\w", text):
        return Statement()
    formulas = [next(filter(None, found.groups())) for found in _FORMULA.finditer(text)]
    asked: set[Value] = set()
    symbols: set[str] = set(
        re.findall(r"(?<![A-Za-z\\])[b-zB-Z](?![A-Za-z])", re.sub(r"\\[a-zA-Z]+", " ", " ".join(formulas)))
    )
    for formula in formulas[:MAX_FORMULAS]:
        if "=" not in formula:
            asked.update(_values(formula))
    expressions = tuple(statement_expressions(text, _values))
    for part in expressions:
        symbols |= {name for name in free_symbols(part) if len(name) == 1}
    options = frozenset(_OPTION.findall(text))
    bases = {int(number) if number else _BASE_WORDS[word] for number, word in _BASE.findall(text)}
    return Statement(
        text=text,
        symbols=frozenset(symbols),
        asked=frozenset(asked),
        expressions=expressions,
        units=tuple(units_in(text)),
        words=frozenset(re.findall(r"[a-z]+", text.lower())),
        options=options if {"A", "B"} <= options else frozenset(),
        all_that_apply=_ALL_THAT_APPLY.search(text) is not None,
        bases=frozenset(bases),
    )
