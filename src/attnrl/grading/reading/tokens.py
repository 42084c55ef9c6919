"""The tokens of an answer, in LaTeX or plain text: markup for the eye is dropped, the meaning is kept."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from attnrl.grading.reading.characters import plain_characters
from attnrl.grading.reading.commands import (
    COLORS,
    COMMANDS,
    DROPPED,
    DROPPED_WITH_ARGUMENT,
    FONTS,
    MARKS,
    SPACES,
    TEXTS,
    WORDS,
)

Kind = Literal["number", "letters", "text", "command", "mark"]


class Unreadable(ValueError):  # noqa: N818
    """A text without a meaning as an answer: unbalanced braces, digits side by side, prose."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer.

    Attributes:
        kind: ``number`` (``12``, ``0.5``, ``0.1(6)`` with a repeating part, ``3e-5``), ``letters`` (a run of letters in
            mathematics), ``text`` (a run of letters inside ``\\text{}`` and the like), ``command`` (the name of a LaTeX
            command, without the backslash) or ``mark`` (a sign).
        text: the characters; of a number, without separators of thousands and without needless zeros at the start.
        gap: white space stands before the token.
    """

    kind: Kind
    text: str
    gap: bool = False


_JOINT = r"(?:\{,\}|,\\!\s?|\\[,;:\ ]|~|\\?_|\ )"  # between groups of three digits
_PATTERN = re.compile(
    rf"""
      (?P<space>[\s~]+)
    | (?P<repeating>\d{{0,60}}\.(?=\d{{0,60}}\s*(?:\\[olbd]|\(\d|\.\.\.))\d{{0,60}}?(?:
            \\(?:overline|bar|overbar)\s*(?:\{{\s*\d+\s*\}}|\d)
          | \\dot\s*\{{?\d\}}?(?:\d*\\dot\s*\{{?\d\}}?)?
          | \(\d+\)
          | (?P<shown>\d{{1,12}}?)(?P=shown)+(?<=\d\d\d)\s*(?:\.\.\.|\\(?:ldots|dots|cdots)(?![a-zA-Z]))
      ))
    | (?P<grouped>(?<![_^])\d{{1,3}}(?:{_JOINT}\d{{3}})+(?!\d)(?:\.\d+)?)
    | (?P<number>(?:\d+\.\d+|\d+|\.\d+)(?:[eE][+-]?\d+(?![\da-zA-Z]))?)
    | (?P<letters>[A-Za-z]+)
    | \\(?P<command>(?:operatorname|hspace|vspace|tag)\*|[A-Za-z]+|.)
    | (?P<mark>\*\*|<=|>=|(?<![\d)}}\]!])!=|==|\.\.\.|.)
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_COMMAS = re.compile(r"(?<![\d,.])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])(?:\.\d+)?", re.ASCII)
_ARGUMENT = re.compile(r"\s*\{[^{}]*\}|\s*\S")
_GLUED = re.compile(r"(qquad|quad|times|cdot|div|pm)([a-zA-Z])$")
_ROW_HEIGHT = re.compile(r"\s*\[\s*-?[\d.]+\s*(?:pt|ex|em|mm|cm|in)\s*\]")
_OPENING = re.compile(r"\s*\{")
_DEPTH = {"(": 1, "[": 1, "\\{": 1, ")": -1, "]": -1, "\\}": -1}


@dataclass
class _Scanner:
    """The state of a scan.

    Attributes:
        braces: for each open brace, whether the content is text, and whether the braces are tokens.
    """

    text: str
    place: int = 0
    gap: bool = False
    braces: list[tuple[bool, bool]] = field(default_factory=lambda: [(False, True)])
    tokens: list[Token] = field(default_factory=list)

    def add(self, kind: Kind, text: str) -> None:
        self.tokens.append(Token(kind, text, self.gap))
        self.gap = False


@lru_cache(maxsize=2048)
def tokenize(text: str, *, thousands: bool = True) -> tuple[Token, ...]:
    """Return the tokens of an answer.

    Args:
        text: the answer, in LaTeX, Markdown or plain text.
        thousands: read ``1,234`` outside brackets as one number, not as two. ``1{,}234``, ``1\\,234`` and ``1 234`` are
            one number always.

    Raises:
        Unreadable: braces are not balanced.
    """
    scanner = _Scanner(_without_outer_markup(plain_characters(text)))
    depth = 0
    while scanner.place < len(scanner.text):
        commas = _COMMAS.match(scanner.text, scanner.place) if thousands and depth == 0 else None
        if commas:
            scanner.place = commas.end()
            scanner.add("number", _canonical(commas[0].replace(",", "")))
            continue
        found = _PATTERN.match(scanner.text, scanner.place)
        assert found is not None  # the last alternative matches any character
        scanner.place = found.end()
        if found["space"]:
            scanner.gap = True
        elif found["command"]:
            _scan_command(scanner, found["command"])
        elif found["letters"]:
            scanner.add("text" if scanner.braces[-1][0] else "letters", found["letters"])
        elif found["mark"]:
            _scan_mark(scanner, found["mark"])
        elif found["repeating"]:
            scanner.add("number", _repeating(found["repeating"]))
        else:
            scanner.add("number", _canonical(found["number"] or re.sub(_JOINT, "", found["grouped"])))
        if scanner.tokens and scanner.tokens[-1].kind == "mark" and (found["command"] or found["mark"]):
            depth += _DEPTH.get(scanner.tokens[-1].text, 0)
    if len(scanner.braces) > 1:
        raise Unreadable("an opening brace without a closing brace")
    return tuple(_trimmed(_joined(scanner.tokens)))


def _scan_command(scanner: _Scanner, name: str) -> None:
    if name in SPACES:
        scanner.gap = True
    elif name in DROPPED:
        if name in ("left", "right") and scanner.text[scanner.place : scanner.place + 1] == ".":
            scanner.place += 1
        scanner.gap = True
    elif name in DROPPED_WITH_ARGUMENT:
        scanner.place = _after_argument(scanner)
    elif name in TEXTS or name in FONTS:
        if name in COLORS:
            scanner.place = _after_argument(scanner)
        opening = _OPENING.match(scanner.text, scanner.place)
        if opening is None:
            scanner.gap = True
            return
        scanner.place = opening.end()
        scanner.braces.append((name in TEXTS or scanner.braces[-1][0], name in FONTS))
        if name in FONTS:
            scanner.add("mark", "{")
    elif name in MARKS:
        scanner.add("mark", MARKS[name])
        if name == "\\" and (height := _ROW_HEIGHT.match(scanner.text, scanner.place)):
            scanner.place = height.end()
    elif name in WORDS:
        scanner.add("text", WORDS[name])
    elif glued := _GLUED.match(name):  # a space or a sign without a space after the command
        _scan_command(scanner, glued[1])
        scanner.add("letters", glued[2])
    else:
        scanner.add("command", COMMANDS.get(name, name))


def _scan_mark(scanner: _Scanner, mark: str) -> None:
    in_text, _ = scanner.braces[-1]
    if mark in '$`"':
        scanner.gap = True
        return
    if mark == "{":
        scanner.braces.append((in_text, True))
    elif mark == "}":
        if len(scanner.braces) == 1:
            raise Unreadable("a closing brace without an opening brace")
        _, visible = scanner.braces.pop()
        if not visible:
            scanner.gap = scanner.text[scanner.place - 2] in " ~"
            return
    scanner.add("mark", {"**": "^", "==": "="}.get(mark, mark))


def _after_argument(scanner: _Scanner) -> int:
    found = _ARGUMENT.match(scanner.text, scanner.place)
    return found.end() if found else scanner.place


# ---------------------------------------------------------------------------------------------------------------------
# Before and after the scan
# ---------------------------------------------------------------------------------------------------------------------

_COMMENT = re.compile(r"(?<!\\)%[^\n]*\n")
_EXPONENT_IN_TEXT = re.compile(r"(?<=\d)\\(?:mathrm|text|textrm)\{[eE](-?)\}\{?(-?\d+)\}?")
_BOLD = re.compile(r"(\*\*|__|\*)(?=\S)(.*\S)\1", re.DOTALL)
#: Characters of tokens in a row -> characters of the marks of the same meaning.
_JOINED = (
    (("^", "circ"), ("°",)),
    (("^", "{", "circ", "}"), ("°",)),
    (("^", "o"), ("°",)),  # 90^\text{o}
    (("^", "'"), ("'",)),
    (("^", "{", "'", "}"), ("'",)),
    (("^", "{", "'", "'", "}"), ("'", "'")),
    (("not", "="), ("!=",)),
)
#: Tokens before and after an answer without a meaning for the value.
_LEADING = {("mark", "="), ("mark", ":"), ("mark", ","), ("command", "approx"), ("mark", "\\\\")}
_TRAILING = {("mark", "."), ("mark", ","), ("mark", ";"), ("mark", ":"), ("mark", "\\\\"), ("mark", "#")}


def _without_outer_markup(text: str) -> str:
    """Remove Markdown around the whole answer; write a dollar sign without a partner as a currency sign."""
    text = _EXPONENT_IN_TEXT.sub(r"e\1\2", _COMMENT.sub("", text).strip())
    if (len(text) - len(text.rstrip("\\"))) % 2:  # a control space at the end, stripped
        text = text[:-1]
    while bold := _BOLD.fullmatch(text):
        text = bold[2]
    dollars = re.findall(r"(?<!\\)\$", text)
    return text.replace("$", "\\$", 1) if len(dollars) == 1 and text.lstrip("-").startswith("$") else text


def _joined(tokens: list[Token]) -> list[Token]:
    """Replace the tokens of each row of ``_JOINED`` by the marks of the row."""
    kept: list[Token] = []
    for token in tokens:
        kept.append(token)
        for texts, marks in _JOINED:
            if token.text != texts[-1] or (token.text == "o" and token.kind != "text"):
                continue
            replaced = kept[-len(texts) :]
            if tuple(old.text for old in replaced) == texts:
                kept[-len(texts) :] = [Token("mark", mark, replaced[0].gap) for mark in marks]
                break
    return kept


def _trimmed(tokens: list[Token]) -> list[Token]:
    """Remove punctuation and signs of equality around an answer."""
    first, last = 0, len(tokens)
    while first < last and (tokens[first].kind, tokens[first].text) in _LEADING:
        first += 1
    while first < last and (tokens[last - 1].kind, tokens[last - 1].text) in _TRAILING:
        last -= 1
    return tokens[first:last]


# ---------------------------------------------------------------------------------------------------------------------
# Numbers
# ---------------------------------------------------------------------------------------------------------------------


def _canonical(number: str) -> str:
    """Return a number without zeros before the first digit: ``7`` for ``007``, ``0.5`` for ``.5``."""
    mantissa, letter, exponent = number.replace("E", "e").partition("e")
    whole, _, fraction = mantissa.partition(".")
    return (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "") + letter + exponent


_SHOWN_REPETITION = re.compile(r"(\d*?)(\d+?)\2+\s*(?:\.\.\.|\\(?:l|c)?dots)")


def _repeating(text: str) -> str:
    r"""Return ``0.1(6)`` for ``0.1\overline{6}``, ``0.1\dot{6}`` and ``0.1666...``."""
    whole, _, rest = text.partition(".")
    if shown := _SHOWN_REPETITION.match(rest):
        start, block = shown.groups()
    else:
        start, marked = re.split(r"\\|\(", rest, maxsplit=1)
        block = re.sub(r"\D", "", marked)
    return f"{whole or '0'}.{start}({block})"
