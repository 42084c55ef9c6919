"""Sums of terms: the normal form of an expression, and the text of the normal form.

A term is a rational coefficient times atoms with integer exponents. An atom is the text of a symbol, of a function with
its operands, of a power or of a sum. The SHA-256 digest stands for a long text, so the form of a hostile expression
stays small.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from fractions import Fraction

Monomial = tuple[tuple[str, int], ...]  # sorted pairs of an atom and an exponent; () is the monomial of literals
Terms = dict[Monomial, Fraction]  # coefficient of each monomial, never zero; {} is zero

_ONE = Fraction(1)
_LONG_TEXT = 64  # characters
_LONG_NUMBER = 10_000  # bits


class LongNumberError(ArithmeticError):
    """A folded number of more than 10,000 bits."""


def atom_terms(text: str) -> Terms:
    """Return the terms of a single atom."""
    return {((short(text), 1),): _ONE}


def single_atom(terms: Terms) -> str:
    """Return the text of terms that are one atom, otherwise an empty text."""
    (atom, _), *_ = next(iter(terms), ()) or (("", 1),)
    return atom if terms == {((atom, 1),): _ONE} else ""


def scaled(terms: Terms, factor: Fraction) -> Terms:
    """Return terms times a number; raise LongNumberError above 10,000 bits."""
    return {monomial: checked(number * factor) for monomial, number in terms.items()}


def sum_terms(parts: Iterable[Terms]) -> Terms:
    """Return a sum with like terms collected; raise LongNumberError above 10,000 bits."""
    total: Terms = {}
    for terms in parts:
        for monomial, number in terms.items():
            total[monomial] = checked(total.get(monomial, Fraction(0)) + number)
    return {monomial: number for monomial, number in total.items() if number}


def text_of(terms: Terms) -> str:
    """Return the text of terms in a fixed order; equal texts are equal terms."""
    parts = (
        " ".join([number_text(number), *(f"{atom}^{exponent:x}" for atom, exponent in monomial)])
        for monomial, number in sorted(terms.items())
    )
    return short(" + ".join(parts))


def without_powers(value: Fraction, base: int) -> tuple[Fraction, int]:
    """Return a number without its factors of a base, and the exponent of the base."""
    exponent = 0
    while value.numerator % base == 0:
        value, exponent = value / base, exponent + 1
    while value.denominator % base == 0:
        value, exponent = value * base, exponent - 1
    return value, exponent


def number_text(value: Fraction) -> str:
    """Return the text of a number of any length."""
    return short(f"{value.numerator:x}/{value.denominator:x}")  # hexadecimal: Python limits the digits of decimals


def short(text: str) -> str:
    """Return a text of at most 64 characters, and the SHA-256 digest of a longer text."""
    return text if len(text) <= _LONG_TEXT else hashlib.sha256(text.encode()).hexdigest()


def is_short(value: Fraction) -> bool:
    """Return True for a number of at most 10,000 bits."""
    return max(value.numerator.bit_length(), value.denominator.bit_length()) <= _LONG_NUMBER


def checked(value: Fraction) -> Fraction:
    """Return a number unchanged; raise LongNumberError above 10,000 bits."""
    if not is_short(value):
        raise LongNumberError
    return value
