"""Products: the start of a factor, mixed numbers, and the trees of sums and products."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from attnrl.grading.reading.brackets import is_value_start, read_group
from attnrl.grading.reading.cursor import Cursor, expression
from attnrl.grading.reading.expressions import Expression, Number, Operation, is_operation
from attnrl.grading.reading.letters import COLLECTIVES, FUNCTIONS
from attnrl.grading.reading.tokens import Unreadable
from attnrl.grading.reading.values import BaseNumber, Value

_GREEK_LIST = """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron rho varsigma sigma tau
    upsilon phi chi psi omega Alpha Beta Gamma Delta Epsilon Zeta Eta Theta Iota Kappa Lambda Mu Nu Xi Omicron
    Pi Rho Sigma Tau Upsilon Phi Chi Psi Omega vartheta ell hbar nabla aleph
"""
GREEK = frozenset(_GREEK_LIST.split())
ACCENTS = frozenset({"hat", "tilde", "dot", "ddot", "bar", "overline"})
BIG_OPERATORS = frozenset({"sum", "prod", "int", "lim"})
_FACTOR_COMMANDS = GREEK | ACCENTS | BIG_OPERATORS | COLLECTIVES | FUNCTIONS.keys()
_FACTOR_COMMANDS |= {"pi", "infty", "frac", "sqrt", "binom"}


def starts_factor(cursor: Cursor) -> bool:
    """Return True if the token at the position starts a factor of a product without a sign."""
    token = cursor.peek()
    if cursor.integrals and token.text == "d" and cursor.peek(1).kind in ("letters", "text", "command"):
        return False
    if token.kind == "text":
        return len(token.text) == 1 and token.text in "eixyzndpr" and not token.gap
    if token.text == "(" and cursor.peek(1).text in ("mod", "bmod", "base"):
        return False
    if token.kind == "mark":
        if token.text == "[" and (cursor.peek(1).kind == "mark" and cursor.peek(1).text in ("", ")", "}", ",", "\\}")):
            return False  # the open bound of [1, 2[
        if token.text == "[" and cursor.peek(1).text.lower() in ("cup", "cap", "or", "and", "u"):
            return False
        return token.text in ("(", "{", "[") or (token.text == "|" and not cursor.bars)
    if token.kind == "command":
        return is_value_start(token) or token.text in _FACTOR_COMMANDS
    return token.kind in ("number", "letters")


def refuse_digits_side_by_side(cursor: Cursor, previous: Value) -> None:
    """Raise Unreadable for a number right after a number: ``1 2`` is no number."""
    if cursor.peek().kind != "number":
        return
    if isinstance(previous, Number) or is_operation(previous, "divide"):
        raise Unreadable("digits side by side")


def mixed_number(cursor: Cursor) -> Number | None:
    r"""Read ``1 1/2`` or ``1\frac{1}{2}``: a whole number before a proper fraction of whole numbers."""
    whole, after = cursor.peek(), cursor.peek(1)
    if whole.kind != "number" or not whole.text.isdigit():
        return None
    if after.kind == "number" and after.gap and cursor.peek(2).text == "/" and cursor.peek(3).kind == "number":
        over, under, length = after.text, cursor.peek(3).text, 4
    elif after.kind == "command" and after.text == "frac":
        found = re.match(r"\{(\d+)\}\{(\d+)\}|(\d)(\d)(?!\d)|(\d)\{(\d+)\}", cursor.texts(2, 8))
        if not found:
            return None
        over, under = (part for part in found.groups() if part is not None)
        length = 2 + sum(1 for _ in re.finditer(r"\d+|[{}]", found[0]))
        if found[3]:
            length = 3 if cursor.peek(2).text == found[0] else 4
    else:
        return None
    if not (over.isdigit() and under.isdigit() and 0 < int(over) < int(under)):
        return None
    if cursor.peek(length).text in ("/", "^", "!"):
        return None
    cursor.place += length
    return Number(int(whole.text) + Fraction(int(over), int(under)))


def add(terms: Sequence[Value]) -> Expression:
    """Return the tree of a sum; of a single term, the term."""
    return expression(terms[0]) if len(terms) == 1 else Operation("add", tuple(expression(term) for term in terms))


def multiply(factors: Sequence[Value]) -> Expression:
    """Return the tree of a product; of a single factor, the factor."""
    if len(factors) == 1:
        return expression(factors[0])
    return Operation("multiply", tuple(expression(factor) for factor in factors))


def negative(term: Value) -> Value:
    """Return the negative of a term; the sign of a numeral in a base belongs to the numeral."""
    if isinstance(term, BaseNumber):
        return BaseNumber("-" + term.digits, term.base)
    return Operation("negate", (expression(term),))


def read_exponent(cursor: Cursor) -> Value:
    """Read an exponent: a group, or a single atom with or without a minus sign."""
    if cursor.at("{"):
        return read_group(cursor)
    if cursor.accept("-"):
        return negative(cursor.grammar.atom(cursor))
    return cursor.grammar.atom(cursor)
