"""The facts of a problem's text that decide how an answer is read and compared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import zip_longest

from attnrl.grading.reading.expressions import Expression, free_symbols
from attnrl.grading.reading.formulas import statement_expressions
from attnrl.grading.reading.reader import read
from attnrl.grading.reading.tokens import Unreadable
from attnrl.grading.reading.units import Unit, read_unit, units_in
from attnrl.grading.reading.values import Value

MAX_CHARS = 8_000  # of a problem's text; the rest is not read
MAX_FORMULAS = 64
MAX_OPTION_CHARS = 200

_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_OPTION = re.compile(r"(?:\\(?:textbf|text|mathrm|bf)\s*\{)?\(([A-J])\)\s*\}?|(?:^|\n|\s)([A-J])[.):]\s")
_ASKED = re.compile(
    r"(?i)\b(?:find|what (?:is|are|was)|compute|determine|evaluate|calculate|value of|solve|simplify|express|give)\b"
)
_SENTENCE_END = re.compile(r"[.?!](?=\s|$)")
_ASKED_UNIT = re.compile(
    r"(?i)\b(?:in|how many)\s+((?:(?:square|cubic)\s+)?[a-z]+(?:\s+per\s+[a-z]+|\s*/\s*[a-z]+(?:\^?\d)?)?)"
)
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
        asked: the quantities asked for: the formulas without an equality sign after ``find``, ``what is`` and the like.
        expressions: the expressions that an answer could copy.
        units: the units named, in order.
        asked_units: the units asked for, as in ``how many cents`` and ``in meters``.
        words: the words, in lower case.
        options: the letter of each choice offered, and the possible values of the choice.
        all_that_apply: several choices may be right together, in any order.
        bases: the bases of numerals named.
    """

    text: str = ""
    symbols: frozenset[str] = frozenset()
    asked: frozenset[Value] = frozenset()
    expressions: tuple[Expression, ...] = ()
    units: tuple[Unit, ...] = ()
    asked_units: frozenset[Unit] = frozenset()
    words: frozenset[str] = frozenset()
    options: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
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
    for formula in _asked_formulas(text)[:MAX_FORMULAS]:
        asked.update(_values(formula))
    expressions = tuple(statement_expressions(text, _values))
    for part in expressions:
        symbols |= {name for name in free_symbols(part) if len(name) == 1}
    bases = {int(number) if number else _BASE_WORDS[word] for number, word in _BASE.findall(text)}
    return Statement(
        text=text,
        symbols=frozenset(symbols),
        asked=frozenset(asked),
        expressions=expressions,
        units=tuple(units_in(text)),
        asked_units=frozenset(filter(None, map(read_unit, _ASKED_UNIT.findall(text)))),
        words=frozenset(re.findall(r"[a-z]+", text.lower())),
        options=_options(text),
        all_that_apply=_ALL_THAT_APPLY.search(text) is not None,
        bases=frozenset(bases),
    )


def _asked_formulas(text: str) -> list[str]:
    """Return the formulas without an equality sign between a word that asks and the end of the sentence."""
    found: list[str] = []
    for question in _ASKED.finditer(text):
        end = next((stop.start() for stop in _SENTENCE_END.finditer(text, question.end())), len(text))
        for formula in _FORMULA.finditer(text, question.end(), end):
            content = next(filter(None, formula.groups()))
            if "=" not in content:
                found.append(content)
    return found


def _options(text: str) -> dict[str, tuple[Value, ...]]:
    """Return the letters of the choices of a problem with the values of each choice; without (A) and (B), nothing."""
    marks = list(_OPTION.finditer(text))
    options: dict[str, tuple[Value, ...]] = {}
    for mark, following in zip_longest(marks, marks[1:]):
        content = text[mark.end() : following.start() if following else len(text)]
        first = content.split("\n", 1)[0].replace("\\qquad", " ").strip(" ,;.$}")
        options[mark[1] or mark[2]] = _values(first) if len(first) <= MAX_OPTION_CHARS else ()
    return options if {"A", "B"} <= options.keys() else {}
