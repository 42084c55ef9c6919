"""The facts of a problem's text that decide how an answer is read and compared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import zip_longest

from attnrl.grading.reading.expressions import Expression
from attnrl.grading.reading.formulas import statement_expressions
from attnrl.grading.reading.reader import readings
from attnrl.grading.reading.units import Unit, read_unit, units_in
from attnrl.grading.reading.values import Listing, Relation, Value
from attnrl.grading.reading.words import NUMBER_WORDS

MAX_PROBLEM_CHARS = 8_000  # of a problem's text; the rest is not read
MAX_FORMULAS = 64
MAX_OPTION_CHARS = 200

_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_NO_VARIABLES = re.compile(r"\\(?:text|mathrm|textbf|operatorname|mbox)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_VARIABLES = re.compile(r"(?<![A-Za-z])[A-Za-z]{1,2}(?![A-Za-z])")
_OPTION = re.compile(r"(?:\\(?:textbf|text|mathrm|bf)\s*\{)?\(([A-J])\)\s*\}?|(?:^|\n|\s)([A-J])[.):]\s")
_ASKED = re.compile(
    r"(?i)\b(?:find|what (?:is|are|was)|compute|determine|evaluate|calculate|value of|solve|simplify|express|give)\b"
)
_SENTENCE_END = re.compile(r"[.?!](?=\s|$)")
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\$?[\s~]*(?:\\text\{\s*)?([a-zA-Z]+(?:/[a-zA-Z]+)?)")
_UNIT = r"((?:(?:square|cubic)\s+)?[a-z]+(?:\s+per\s+[a-z]+|\s*/\s*[a-z]+(?:\^?\d)?)?)"
_BASE = re.compile(rf"base[\s$\-{{}}\\a-z]{{0,10}}?(\d{{1,2}})\b|base[\s-]*({'|'.join(NUMBER_WORDS)})\b")
_ALL_THAT_APPLY = re.compile(
    r"(?i)all (?:that|which) apply|select all|which of the following (?:are|statements are)|all correct"
)


@dataclass(frozen=True)
class Statement:
    """The facts of a problem's text, each read at the first use.

    Attributes:
        text: the text, at most ``MAX_PROBLEM_CHARS`` characters; ``""`` for a text without a letter.
    """

    text: str = ""

    @cached_property
    def symbols(self) -> frozenset[str]:
        """Return the variables in the formulas: single letters, and letters in pairs."""
        plain = (_NO_VARIABLES.sub(" ", formula) for formula in _formulas(self.text))
        return frozenset(letter for formula in plain for run in _VARIABLES.findall(formula) for letter in run)

    @cached_property
    def asked(self) -> frozenset[Value]:
        """Return the quantities asked for: formulas without an equality sign after ``find`` or ``what is``."""
        return frozenset(value for formula in _asked_formulas(self.text)[:MAX_FORMULAS] for value in readings(formula))

    @cached_property
    def expressions(self) -> tuple[Expression, ...]:
        """Return the expressions that an answer could copy."""
        return tuple(statement_expressions(self.text, readings))

    @cached_property
    def relations(self) -> tuple[Relation, ...]:
        """The equations and inequalities in the formulas."""
        found = (value for formula in _formulas(self.text)[:MAX_FORMULAS] for value in readings(formula))
        items = (item for value in found for item in (value.items if isinstance(value, Listing) else [value]))
        return tuple(item for item in items if isinstance(item, Relation))

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """Return the units named, in order of mention."""
        return tuple(units_in(self.text))

    @cached_property
    def asked_units(self) -> frozenset[Unit]:
        """Return the units asked for, as in ``how many cents``, or else as in ``in meters``."""
        return _units_after("how many", self.text) or _units_after("in", self.text)

    @cached_property
    def counts_things(self) -> bool:
        """The problem asks ``how many`` of something without a unit."""
        return re.search(r"(?i)\bhow many\b", self.text) is not None and not self.asked_units

    @cached_property
    def asks_percent(self) -> bool:
        """The problem speaks of percent."""
        return "%" in self.text or bool({"percent", "percentage"} & self.words)

    @cached_property
    def quantities(self) -> frozenset[tuple[Fraction, Unit]]:
        """Return the amounts with a unit that the text gives: ``2.5 hours``."""
        found = ((Fraction(number), read_unit(word)) for number, word in _QUANTITY.findall(self.text))
        return frozenset((number, unit) for number, unit in found if unit is not None)

    @cached_property
    def words(self) -> frozenset[str]:
        """Return the words of the text, in lower case."""
        return frozenset(re.findall(r"[a-z]+", self.text.lower()))

    @cached_property
    def options(self) -> Mapping[str, tuple[Value, ...]]:
        """Return letter -> possible values of each choice offered."""
        return _options(self.text)

    @cached_property
    def all_that_apply(self) -> bool:
        """Return True if several choices may be right together, in any order."""
        return _ALL_THAT_APPLY.search(self.text) is not None

    @cached_property
    def bases(self) -> frozenset[int]:
        """Return the bases of numerals named in the text."""
        return frozenset(int(number) if number else NUMBER_WORDS[word] for number, word in _BASE.findall(self.text))


@lru_cache(maxsize=256)
def read_statement(text: str) -> Statement:
    """Return the facts of a problem's text; of a text without a letter, a statement without facts."""
    return Statement(text[:MAX_PROBLEM_CHARS] if re.search(r"[a-zA-Z]", text[:MAX_PROBLEM_CHARS]) else "")


def _units_after(words: str, text: str) -> frozenset[Unit]:
    """Return the units that stand right after the words in a text."""
    written = re.findall(rf"(?i)\b{words}\s+{_UNIT}", text)
    return frozenset(unit for unit in map(read_unit, written) if unit is not None)


def _formulas(text: str) -> list[str]:
    return [next(filter(None, found.groups())) for found in _FORMULA.finditer(text)]


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
        options[mark[1] or mark[2]] = readings(first) if len(first) <= MAX_OPTION_CHARS else ()
    return options if {"A", "B"} <= options.keys() else {}
