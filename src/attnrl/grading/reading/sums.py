"""The reader of sums, products and powers."""

from __future__ import annotations

import re

from attnrl.grading.reading.atoms import read_atom, subscript
from attnrl.grading.reading.cursor import Cursor, Unsupported, expression
from attnrl.grading.reading.expressions import Number, Operation, Symbol
from attnrl.grading.reading.factors import (
    add,
    mixed_number,
    multiply,
    negative,
    read_exponent,
    refuse_digits_side_by_side,
    starts_factor,
)
from attnrl.grading.reading.tokens import Unreadable
from attnrl.grading.reading.values import BaseNumber, Brackets, Value
from attnrl.grading.reading.words import NUMBER_WORDS

MAX_BASE = 36  # of a numeral: ten digits and 26 letters
_POINTS = frozenset(map(Symbol, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"))


def read_sum(cursor: Cursor) -> Value:
    """Read terms joined by ``+``, ``-`` and ``\\pm``.

    Raises:
        Unreadable: the tokens are no expression.
    """
    terms: list[Value] = []
    dots = False
    while True:
        sign = cursor.take().text if cursor.at("+", "-", "±", "∓") else ""
        if not sign and terms:
            break
        if cursor.at("...") and terms:
            cursor.take()
            dots = True
            continue
        if cursor.at("+", "-"):  # 2 + -3
            sign = "-" if (cursor.take().text == "-") != (sign == "-") else "+"
        term = read_product(cursor)
        if sign in ("±", "∓"):
            name = "plus_minus" if sign == "±" else "minus_plus"
            operands = (add(terms), expression(term)) if terms else (expression(term),)
            terms = [Operation(name, operands)]
        else:
            terms.append(negative(term) if sign == "-" else term)
    if dots:
        return Operation("ellipsis", tuple(expression(term) for term in terms))
    return terms[0] if len(terms) == 1 else add(terms)


def read_product(cursor: Cursor) -> Value:
    """Read factors joined by a sign of multiplication or division, by ``\\bmod`` or by nothing."""
    factors: list[Value] = [_first_factor(cursor)]
    while True:
        if cursor.accept("*"):
            if cursor.at("..."):
                raise Unsupported("a product with an ellipsis")
            factors.append(_signed_power(cursor))
        elif cursor.at("/") and cursor.peek(1).kind != "text":
            cursor.take()
            factors = [Operation("divide", (multiply(factors), expression(_signed_power(cursor))))]
        elif cursor.at_command("bmod", "mod"):
            cursor.take()
            factors = [Operation("mod", (multiply(factors), expression(read_product(cursor))))]
        elif starts_factor(cursor):
            refuse_digits_side_by_side(cursor, factors[-1])
            factors.append(read_power(cursor))
            if isinstance(factors[1], Brackets) and factors[0] in _POINTS:  # P(1, 2)
                return factors[1]
        else:
            return factors[0] if len(factors) == 1 else multiply(factors)


def _first_factor(cursor: Cursor) -> Value:
    texts = [cursor.peek(n).text for n in range(5)]
    plain = re.fullmatch(r"d[a-zA-Z]/d[a-zA-Z]", "".join(texts))
    if plain and not any(cursor.peek(n).gap for n in (1, 2, 3, 4)):
        cursor.place += 5
        return Symbol(plain[0])
    return read_power(cursor)


def _signed_power(cursor: Cursor) -> Value:
    if cursor.accept("-"):
        return negative(_signed_power(cursor))
    cursor.accept("+")
    return read_power(cursor)


def read_power(cursor: Cursor) -> Value:
    """Read an atom with the signs after the atom: powers, factorials, ``%`` and degrees."""
    value = mixed_number(cursor) or read_atom(cursor)
    while True:
        if cursor.accept("^"):
            value = Operation("power", (expression(value), expression(read_exponent(cursor))))
        elif cursor.at("!") and not cursor.peek().gap:
            cursor.take()
            double = cursor.accept("!")
            value = Operation("double_factorial" if double else "factorial", (expression(value),))
        elif cursor.accept("°"):
            value = Operation("degrees", (expression(value),))
        elif cursor.accept("%"):
            value = Operation("percent", (expression(value),))
        elif cursor.at("_") and not isinstance(value, Symbol):
            cursor.take()
            value = _in_base(value, cursor)
        else:
            return value


def _in_base(value: Value, cursor: Cursor) -> BaseNumber:
    base = subscript(cursor)
    number = int(base) if base.isdigit() and len(base) < 3 else NUMBER_WORDS.get(base.lower(), 0)
    if isinstance(value, Number) and value.value.denominator == 1 and 2 <= number <= MAX_BASE:
        return BaseNumber(str(value.value.numerator), number)
    raise Unreadable("a subscript after a value")
