"""Comparison of the numbers that two expressions stand for."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from attnrl.grading.arithmetic.evaluation import real_float, rounds_to, same_value
from attnrl.grading.reading.expressions import (
    Expression,
    Number,
    Operation,
    Symbol,
    free_symbols,
    is_operation,
    parts_of,
)


def same_number(gold: Expression, answer: Expression) -> bool | None:
    """Compare the values of two expressions: exactly, as a percentage, or as a decimal rounded to six digits or more.

    The base of a logarithm without a base is 10 or e, equal in both expressions.
    """
    if is_operation(gold, "percent") != is_operation(answer, "percent"):
        return _same_percentage(gold, answer)
    equal = same_value(gold, answer)
    if equal is False and (rounds_to(gold, answer) or rounds_to(answer, gold)):
        return True
    if equal is not True and any(_has_plain_logarithm(part) for part in (gold, answer)):
        return same_value(_natural(gold), _natural(answer))
    return equal


def _same_percentage(gold: Expression, answer: Expression) -> bool | None:
    """Compare a percentage with a number: a hundredth of the percentage, or the percentage without the sign."""
    number, percentage = (answer, gold) if is_operation(gold, "percent") else (gold, answer)
    if not is_operation(percentage, "percent"):
        return False
    (amount,) = percentage.operands
    hundredfold = Operation("multiply", (Number(Fraction(100)), number))
    size = real_float(amount)
    sign_left_out = is_operation(gold, "percent") and size is not None and abs(size) >= 1
    return _any([sign_left_out and same_number(number, amount), same_number(hundredfold, amount)])


def with_constant(expression: Expression) -> Expression:
    """Return a sum with a constant of integration, c or C, under a common name."""
    if not is_operation(expression, "add") or len(free_symbols(expression) & {"c", "C"}) != 1:
        return expression
    constant = Symbol("constant of integration")
    terms = (constant if term in (Symbol("c"), Symbol("C")) else term for term in expression.operands)
    return Operation("add", tuple(terms))


def _any(results: Sequence[bool | None]) -> bool | None:
    if True in results:
        return True
    return None if None in results else False


def _has_plain_logarithm(expression: Expression) -> bool:
    return any(is_operation(part, "log") and len(part.operands) == 1 for part in parts_of(expression))


def _natural(expression: Expression) -> Expression:
    if not isinstance(expression, Operation):
        return expression
    name = "ln" if expression.name == "log" and len(expression.operands) == 1 else expression.name
    return Operation(name, tuple(map(_natural, expression.operands)))
