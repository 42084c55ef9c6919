"""A position in the tokens of an answer, handed from reader to reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from attnrl.grading.reading.expressions import Expression
from attnrl.grading.reading.tokens import Token, Unreadable
from attnrl.grading.reading.values import Value

MAX_DEPTH = 32  # of nested brackets, so that the stack stays small


class Unsupported(Unreadable):
    """Mathematics beyond the reader: an unknown command, an operation on sets or matrices."""


class WorkLeft(Unreadable):
    """An operation that the answer leaves to the grader: a derivative."""


def expression(value: Value) -> Expression:
    """Return a value that is an expression.

    Raises:
        Unsupported: the value is a set, a tuple, a matrix or another value without arithmetic.
    """
    if isinstance(value, Expression):
        return value
    raise Unsupported(f"arithmetic on a {type(value).__name__}")


class Grammar(NamedTuple):
    """The reader of each level of the grammar, from the outermost to the innermost."""

    listing: Callable[[Cursor], Value]
    sum: Callable[[Cursor], Value]
    product: Callable[[Cursor], Value]
    power: Callable[[Cursor], Value]
    atom: Callable[[Cursor], Value]


@dataclass
class Cursor:
    """A position in a sequence of tokens.

    Attributes:
        tokens: the tokens, the letters sorted by :func:`attnrl.grading.reading.letters.sort_letters`.
        grammar: the readers of the levels of the grammar, which call each other through the cursor.
        brackets: brackets around the position, but for the braces of LaTeX.
        integrals: integral signs around the position, so that ``dx`` ends the integrand.
        bars: absolute values around the position, so that ``|`` ends the content.
    """

    tokens: Sequence[Token]
    grammar: Grammar
    place: int = 0
    depth: int = 0
    brackets: int = 0
    integrals: int = 0
    bars: int = 0
    _end: Token = field(default=Token("mark", ""), repr=False)

    def peek(self, ahead: int = 0) -> Token:
        """Return the token at or after the position; past the end, a mark without characters."""
        place = self.place + ahead
        return self.tokens[place] if place < len(self.tokens) else self._end

    def take(self) -> Token:
        """Return the token at the position and step over the token."""
        token = self.peek()
        self.place += 1
        return token

    def at(self, *marks: str) -> bool:
        """Return True if the token at the position is one of the marks."""
        token = self.peek()
        return token.kind == "mark" and token.text in marks

    def at_command(self, *names: str) -> bool:
        """Return True if the token at the position is one of the commands."""
        token = self.peek()
        return token.kind == "command" and token.text in names

    def accept(self, *marks: str) -> bool:
        """Step over the token at the position if the token is one of the marks, and return True."""
        found = self.at(*marks)
        self.place += found
        return found

    def expect(self, *marks: str) -> str:
        """Step over one of the marks and return the mark.

        Raises:
            Unreadable: another token is at the position.
        """
        if not self.at(*marks):
            raise Unreadable(f"expected {' or '.join(marks)}, found {self.peek().text!r}")
        return self.take().text

    def enter(self) -> None:
        """Count an opening bracket.

        Raises:
            Unreadable: brackets are nested deeper than ``MAX_DEPTH``.
        """
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("brackets nested too deeply")

    def leave(self) -> None:
        """Count a closing bracket at the position."""
        self.depth -= 1

    def texts(self, start: int, count: int) -> str:
        """Return the characters of ``count`` tokens from ``start`` tokens after the position, joined."""
        return "".join(self.peek(start + n).text for n in range(count))
