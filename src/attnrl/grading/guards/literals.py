"""Literal numbers in the trees of answers: signs, fractions of integers, scientific notation."""

from __future__ import annotations

from fractions import Fraction

from attnrl.grading.reading.expressions import Expression, Number, is_operation


def without_sign(expression: Expression) -> Expression:
    """Return the inside of a negation; any other expression unchanged."""
    if is_operation(expression, "negate"):
        return expression.operands[0]
    return expression


def integer_fraction(expression: Expression) -> tuple[int, int] | None:
    """Return the dividend and the divisor of a fraction of integer literals, without signs; None for another."""
    expression = without_sign(expression)
    if not is_operation(expression, "divide"):
        return None
    over, under = map(without_sign, expression.operands)
    if not isinstance(over, Number) or not isinstance(under, Number):
        return None
    if over.value.denominator != 1 or under.value.denominator != 1:
        return None
    return over.value.numerator, under.value.numerator


def is_number(expression: Expression) -> bool:
    """Return True for a literal number, a fraction of literal numbers or a number in scientific notation.

    A sign, a percent sign and a degree sign may follow.
    """
    if is_operation(expression, "negate", "percent", "degrees", "divide"):
        return all(isinstance(part, Number) or is_number(part) for part in expression.operands)
    return isinstance(expression, Number) or mantissa(expression) is not None


def number_value(expression: Expression) -> Fraction | None:
    """Return the absolute value of a literal number or of a fraction of integer literals; None for another."""
    fraction = integer_fraction(expression)
    if fraction is not None:
        over, under = fraction
        return Fraction(over, under) if under else None
    number = without_sign(expression)
    return number.value if isinstance(number, Number) else None


def mantissa(expression: Expression) -> Fraction | None:
    """Return the number before a power of ten, as in ``3 x 10^4``, without the sign; None for another expression."""
    expression = without_sign(expression)
    if not is_operation(expression, "multiply") or len(expression.operands) != 2:
        return None
    factor, power = map(without_sign, expression.operands)
    if not isinstance(factor, Number) or not is_operation(power, "power"):
        return None
    base, exponent = power.operands[0], without_sign(power.operands[1])
    is_power_of_ten = isinstance(base, Number) and base.value == 10 and isinstance(exponent, Number)
    return factor.value if is_power_of_ten else None
