"""Units of measurement, read from the spellings that answers and problems use.

The table (:mod:`attnrl.grading.reading.unit_table`) is closed and its sizes are exact, so a verdict is predictable.
The library pint is not used: pint reads nearly each word as a unit, because prefixes combine with all names; pint has
no currencies; and importing pint takes long.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from attnrl.grading.reading.unit_table import UNITS

#: Pairs of a base dimension and its exponent, sorted.
Dimension = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of measurement.

    Attributes:
        factor: size of the unit in the base units of its dimension.
        dimension: pairs of a base dimension and its exponent, sorted: area is ``(("length", 2),)``. The words ``unit``,
            ``square units``, ... have the dimension ``unit``.
    """

    factor: Fraction
    dimension: Dimension


_SCALES = {
    "dozen": 12,
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
#: Names with a second meaning (the second term, the unit circle, the degree 3, in a box): units only after a number.
_AMBIGUOUS = frozenset({"second", "degree", "unit", "bit", "in", "min", "sec", "deg", "rad"})
_AMOUNT_WORDS_LIST = """
    one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty sixty half hundred thousand
    million billion dozen per
"""
#: Words before a unit in the text of a problem.
_AMOUNT_WORDS = frozenset(_AMOUNT_WORDS_LIST.split())
#: Words after an inch: ``5 in by 7 in``.
_AFTER_INCH = frozenset({"", ".", ",", ";", "?", ")", "and", "by", "x", "or", "per", "/", "^"})

_MARKUP = re.compile(
    r"(?:\\(?:text(?:rm|normal|up|it|bf)?|math(?:rm|it|bf)|[mh]box|operatorname)\s*\{|\{\s*\\rm(?![A-Za-z]))([^{}]*)\}"
)
_DRAWING = re.compile(r"\[asy\].*?(?:\[/asy\]|\Z)", re.DOTALL)
_OPEN, _CLOSE = "\x02", "\x03"
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_SUPERSCRIPT = re.compile("[⁻¹²³⁴]+")
_SUPERSCRIPT_DIGITS = str.maketrans("⁻¹²³⁴", "-1234")
_SPELLINGS = (
    (re.compile(r"\\(?:[,;:!> ]|quad(?![A-Za-z]))|~"), " "),
    (re.compile(r"\^?\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degrees?(?![A-Za-z])|[°º]"), " degrees "),
    (re.compile(rf"\\mu(?![A-Za-z])[\s{_OPEN}]*|µ"), "μ"),
    (re.compile(r"\\Omega(?![A-Za-z])"), " Ω "),
    (re.compile(r"\\AA(?![A-Za-z])"), " Å "),
    (re.compile(r"\\(?:cdot|times)(?![A-Za-z])|[·⋅×]|(?<!\*)\*(?!\*)"), " · "),
    (re.compile(r"\\(?:pounds|textsterling)(?![A-Za-z])"), " £ "),
    (re.compile(r"\\euro(?![A-Za-z])"), " € "),
    (re.compile(r"\\cent(?![A-Za-z])"), " ¢ "),
    (re.compile(r"\*\*"), "^"),
)
_TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\$\$|[^\W\d_]+|\d+(?:[.,]\d+)*|\S", re.DOTALL)
_POWER_WORDS = {"squared": 2, "cubed": 3}
_SHAPES = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_MAX_LENGTH = 80


def _read_dimension(text: str) -> Dimension:
    parts = (part.partition("^") for part in text.split())
    return tuple(sorted((name, int(exponent or 1)) for name, _, exponent in parts))


def _units_by_name(column: int) -> dict[str, Unit]:
    units = ((row[column].split(), Unit(Fraction(row[3]), _read_dimension(row[4]))) for row in UNITS)
    return {name: unit for names, unit in units for name in names}


_SYMBOLS = _units_by_name(0)
_ABBREVIATIONS = _units_by_name(1)
_WORDS = {name.casefold() + plural: unit for name, unit in _units_by_name(2).items() for plural in ("", "s")}


@dataclass(frozen=True, slots=True)
class _Token:
    """A token of a text.

    Attributes:
        text: the token; a backslash before a currency sign is dropped.
        marked: the token stands inside ``\\text{...}`` or a similar command.
        math: the token stands between ``$`` signs.
        spaced: white space stands before the token.
    """

    text: str
    marked: bool
    math: bool
    spaced: bool


def _tokens_of(text: str) -> Iterator[_Token]:
    text = _MARKUP.sub(rf"{_OPEN}\1{_CLOSE}", text)
    text = _SUPERSCRIPT.sub(lambda match: "^{" + match[0].translate(_SUPERSCRIPT_DIGITS) + "}", text)
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    marked = math = False
    end = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in (_OPEN, _CLOSE):
            marked = token == _OPEN
        else:
            yield _Token("dollar" if token == r"\$" else token, marked, math, match.start() > end)
        if token in ("$", "$$"):
            math = not math
        elif token in (r"\(", r"\[", r"\)", r"\]"):
            math = token in (r"\(", r"\[")
        end = match.end()


def _unit_called(name: str) -> Unit | None:
    return _SYMBOLS.get(name) or _ABBREVIATIONS.get(name) or _WORDS.get(name.casefold())


class _UnitReader:
    """A reader of units in a list of tokens, with the place of the next token."""

    def __init__(self, tokens: Sequence[_Token], at: int = 0) -> None:
        self.tokens = tokens
        self.at = at
        self.names: list[str] = []

    def text(self, ahead: int = 0) -> str:
        """Return the text of a token ahead, or an empty text past the end."""
        place = self.at + ahead
        return self.tokens[place].text if place < len(self.tokens) else ""

    def skip(self, text: str) -> bool:
        """Return True and pass the next token if the token has this text."""
        found = self.text() == text
        self.at += found
        return found

    def name(self) -> Unit | None:
        """Read the name of a unit, of two words (``nautical mile``, ``light-year``) before a name of one word."""
        hyphen = self.text(1) == "-"
        for name, length in ((f"{self.text()}_{self.text(1 + hyphen)}", 2 + hyphen), (self.text(), 1)):
            if unit := _unit_called(name):
                self.at += length
                self.skip(".")
                self.names.append(name)
                return unit
        return None

    def exponent(self) -> int | None:
        """Read the exponent after a name, 1 if no exponent is written; None for an exponent that is not -9 to 9."""
        if power := _POWER_WORDS.get(self.text()):
            self.at += 1
            return power
        if not self.skip("^"):
            return 1
        braces = self.skip("{")
        sign = -1 if self.skip("-") else 1
        digit = self.text()
        self.at += 1
        if len(digit) != 1 or digit not in "123456789" or (braces and not self.skip("}")):
            return None
        return sign * int(digit)

    def factor(self) -> Unit | None:
        """Read a name with an exponent (``cm^2``) or a shape before a length (``square feet``)."""
        power = _SHAPES.get(self.text().lower())
        if power is not None:
            self.names.append(self.text())
            self.at += 1
            self.skip(".")
            side = self.name()
            return _power(side, power) if side and side.dimension in ((("length", 1),), (("unit", 1),)) else None
        unit = self.name()
        exponent = self.exponent() if unit else None
        return _power(unit, exponent) if unit and exponent else None

    def product(self) -> Unit | None:
        """Read factors side by side (in markup), or around a dot or a hyphen between words (``foot-pounds``)."""
        unit = self.factor()
        while unit:
            start, names = self.at, len(self.names)
            dot = self.skip("·")
            hyphen = not dot and self.names[-1].casefold() in _WORDS and self.skip("-")
            near = self.at < len(self.tokens) and self.tokens[self.at].marked and self.text() != "in"
            right = self.factor() if dot or hyphen or near else None
            if right is None or (hyphen and self.names[-1].casefold() not in _WORDS):
                self.at = start
                del self.names[names:]
                return unit
            unit = _product(unit, right)
        return None

    def quotient(self) -> Unit | None:
        """Read products around ``/`` or ``per``; all factors after the sign are below the line (``J/mol K``)."""
        unit = Unit(Fraction(1), ()) if self.text() == "per" else self.product()
        while unit and self.text() in ("/", "per"):
            start = self.at
            self.at += 1
            bracket = self.skip("(")
            below = self.product()
            if below is None or (bracket and not self.skip(")")):
                self.at = start
                break
            unit = _product(unit, _power(below, -1))
        return unit


def _power(unit: Unit, exponent: int) -> Unit:
    return Unit(unit.factor**exponent, tuple((name, power * exponent) for name, power in unit.dimension))


def _product(left: Unit, right: Unit) -> Unit:
    powers = dict(left.dimension)
    for name, power in right.dimension:
        powers[name] = powers.get(name, 0) + power
    return Unit(left.factor * right.factor, tuple(sorted((name, power) for name, power in powers.items() if power)))


def _read_whole(text: str) -> tuple[Unit, list[str]] | None:
    """Read a text that is one unit; return the unit and the names of the unit's parts."""
    if len(text) > _MAX_LENGTH:
        return None
    text = _MARKUP.sub(r" \1 ", text)
    tokens = [_Token(token.text, True, False, True) for token in _tokens_of(_FRACTION.sub(r"\1/(\2)", text))]
    if tokens and tokens[0].text == "$":
        tokens[0] = _Token("dollar", True, False, True)
    reader = _UnitReader(tokens)
    unit = reader.quotient()
    return (unit, reader.names) if unit and reader.names and reader.at == len(tokens) else None


def read_unit(text: str) -> Unit | None:
    """Return the unit that a whole text spells, or None.

    Spellings: ``cm``, ``square feet``, ``cm^{2}``, ``miles per hour``, ``kg m^{-3}``, ``m/s^2``, ``newton-meters``,
    ``sq. ft.``, ``\\text{ cm}^2``, ``\\$``. Letter case matters for abbreviations (``mW``, ``MW``), not for words. All
    factors after a ``/`` divide, up to the next ``/``. An amount is no part of the text.
    """
    found = _read_whole(text)
    return found[0] if found else None


def is_spelled_unit(text: str) -> bool:
    """Return True if a text is a unit unlike a product of variables, so a unit without ``\\text`` markup as well.

    True for words (``feet``), signs (``¢``) and abbreviations such as ``cm``, ``km``, ``mph``; False for ``m``, ``mi``,
    ``hr``, ``mg``, ``m/s``. ``sec`` and ``min`` are True: names of functions must be read first.
    """
    found = _read_whole(text)
    return found is not None and any(map(_is_spelled, found[1]))


def _is_spelled(name: str) -> bool:
    return name.casefold() in _WORDS or name in _ABBREVIATIONS or name.lower() in _SHAPES


def units_in(text: str) -> list[Unit]:
    """Return the units that the text of a problem names, in order of mention, with repetitions.

    Units are words (``in meters``, ``how many cents``), ``\\$``, and abbreviations after a number, after ``in`` or in
    ``\\text{}`` (``5 cm``, ``x\\text{ cm}``). A single letter between ``$`` signs is a variable unless marked.
    """
    tokens = list(_tokens_of(_DRAWING.sub(" ", text)))
    found = []
    at = 0
    while at < len(tokens):
        reader = _UnitReader(tokens, at)
        unit = reader.quotient() if tokens[at].text != "per" else None
        accepted = unit is not None and _is_mention(tokens, at, reader)
        if unit and accepted:
            found.append(unit)
        at = reader.at if accepted else at + 1
    return found


def _is_mention(tokens: Sequence[_Token], start: int, reader: _UnitReader) -> bool:
    """Decide whether the words that a reader took for a unit are meant as a unit in the text of a problem."""
    first, following = tokens[start], reader.text()
    number = _follows_number(tokens, start)
    if reader.names[0] in _AMBIGUOUS and not number:
        return False
    if first.text.casefold() in _WORDS or first.text.lower() in _SHAPES:
        return (number or first.text == first.text.lower()) and following not in ("digit", "digits", "place")
    if first.marked:
        return number or len(first.text) > 1 or first.text.islower()
    if first.text == "in" and following not in _AFTER_INCH:
        return False
    if first.math:
        return number and first.text in _ABBREVIATIONS
    before = tokens[start - 1].text if start else ""
    return (number and first.spaced and following not in ("+", "-", "=", "<", ">", "(", "^", "_")) or (
        before == "in" and any(map(_is_spelled, reader.names))
    )


def _follows_number(tokens: Sequence[_Token], at: int) -> bool:
    """Return True if a number or a closing brace stands before a token, past ``$``, ``\\)`` and hyphens."""
    before = at - 1
    while before >= 0 and tokens[before].text in ("$", r"\)", "-"):
        before -= 1
    text = tokens[before].text if before >= 0 else ""
    return text[:1].isdigit() or text == "}" or text.lower() in _AMOUNT_WORDS


def scale_of(word: str) -> int | None:
    """Return the factor of a word such as ``million`` or ``dozens``, or None for a word without a factor."""
    word = word.casefold()
    return _SCALES.get(word) or _SCALES.get(word.removesuffix("s"))
