"""Comparison of expressions by value: exact where both values are rational, otherwise numeric at several precisions.

Expressions with variables are compared at pseudo-random points, seeded by the names of the variables.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from attnrl.grading.arithmetic.exact import exact_value, fold
from attnrl.grading.arithmetic.limits import MAX_BITS, TooLarge, Undefined, Work
from attnrl.grading.arithmetic.numeric import Evaluation, is_complex
from attnrl.grading.arithmetic.points import (
    Point,
    complex_points,
    discrete_variables,
    far_points,
    has_complex_part,
    integer_points,
    is_rational_function,
    random_value,
    real_points,
    variables,
)
from attnrl.grading.arithmetic.rationals import bits, log2
from attnrl.grading.reading.expressions import Expression, Number, Symbol, is_operation

LOW_BITS = 170  # 50 digits
STEP_BITS = 128  # between the precisions that tell a difference from noise
HIGH_BITS = 3_330  # beyond the low precision: 1,000 digits
MIDDLE_BITS = 830  # beyond the low precision, where the high precision is too much work: 250 digits
HIGH_COST = 150  # work at the high precision, relative to work at the low precision
SMALL_SPREAD = 64  # bits that need no further precision
ROUNDING_DIGITS = 6  # significant digits of a decimal that may stand for the number rounded to the decimal
MAX_ROUNDING_DIGITS = 1_000  # significant digits of a decimal

RATIONAL_POINTS = 2
INTEGER_POINTS = 24
MIN_INTEGER_POINTS = 4
REAL_LETTERS = "tuvwxyz"  # first letters of variables that need not be integers under floor, mod, ...


def same_value(one: Expression, other: Expression) -> bool | None:
    """Return True if two expressions have the same value, False if not, None if no value is defined.

    Expressions with variables have the same value if the values agree at pseudo-random points: positive numbers, then
    numbers of both signs where every part of both expressions is real; small positive integers where an operation is
    for integers (:data:`attnrl.grading.arithmetic.points.DISCRETE`, powers of a negative number).

    Raises:
        TooLarge: if a value, or the work, is beyond the limits of :mod:`attnrl.grading.arithmetic.limits`.
    """
    try:
        return _same_value(one, other)
    except RecursionError:
        raise TooLarge("nested too deeply") from None


def real_float(expression: Expression) -> float | None:
    """Return the real value of an expression as a float, infinite if beyond the range of floats.

    None if the expression has variables, no value, a value that is not real, or a value beyond the limits.
    """
    sign = infinite_sign(expression)
    if sign:
        return float("inf") * sign
    try:
        folded = fold(expression, {}, Work())
        if isinstance(folded, Number):
            return _nearest_float(folded.value)
        value = _precise(folded, LOW_BITS)
        return None if is_complex(value) else float(value)
    except (TooLarge, Undefined, RecursionError):
        return None


def rounds_to(decimal: Expression, expression: Expression) -> bool:
    """Return True if a decimal is an expression rounded to the last place of the decimal.

    The decimal has at least ``ROUNDING_DIGITS`` significant digits, and may stand under a sign and be multiplied by a
    power of ten; the expression is not a decimal itself.
    """
    try:
        written = _decimal(decimal)
        if written is None or written[2] < ROUNDING_DIGITS or _decimal(expression) is not None:
            return False
        value, place, digits = written
        folded = fold(expression, {}, Work())
        if isinstance(folded, Number):
            rounded = folded.value.denominator > 1 and abs(folded.value - value) <= place / 2
            return rounded or folded.value == value
        precision = LOW_BITS + 4 * digits
        exact = _precise(folded, precision)
        run = Evaluation(precision, {}, Work())
        return not is_complex(exact) and bool(abs(exact - run.rational(value)) <= run.rational(place / 2))
    except (TooLarge, Undefined, RecursionError):
        return False


def infinite_sign(expression: Expression) -> int:
    """Return 1 for infinity, -1 for minus infinity, 0 for every expression besides."""
    sign = 1
    while is_operation(expression, "negate"):
        expression, sign = expression.operands[0], -sign
    return sign if expression == Symbol("infinity") else 0


def _same_value(one: Expression, other: Expression) -> bool | None:
    signs = infinite_sign(one), infinite_sign(other)
    if any(signs):
        return signs[0] == signs[1]
    work = Work()
    pair = fold(one, {}, work), fold(other, {}, work)
    if isinstance(pair[0], Number) and isinstance(pair[1], Number):
        return pair[0].value == pair[1].value
    names = sorted(variables(pair[0]) | variables(pair[1]))
    if not names:
        try:
            return _agree(pair, {}, work, thorough=True)
        except Undefined:
            return None
    if all(map(is_rational_function, pair)):
        verdict = _agree_exactly(pair, names, work)
        if verdict is not None:
            return verdict
    return _same_function(pair, names, work)


def _agree_exactly(pair: tuple[Expression, Expression], names: list[str], work: Work) -> bool | None:
    """Return whether two rational functions agree at large random integers, None if undefined or too much work."""
    agreed = 0
    for trial in range(RATIONAL_POINTS):
        point = {name: Fraction(math.floor(random_value(f"{trial} large {name}") * 2**40)) for name in names}
        try:
            with work.portion(4) as part:
                one, other = fold(pair[0], point, part), fold(pair[1], point, part)
        except TooLarge:
            return None
        if isinstance(one, Number) and isinstance(other, Number):
            if one.value != other.value:
                return False
            agreed += 1
    return True if agreed == RATIONAL_POINTS else None


def _same_function(pair: tuple[Expression, Expression], names: list[str], work: Work) -> bool | None:
    discrete = discrete_variables(pair[0]) | discrete_variables(pair[1])
    verdict = _same_near(pair, names, discrete, work)
    if verdict and not any(map(has_complex_part, pair)):
        try:
            return _agree_at(pair, far_points(names, discrete, pair), 1, work) is not False
        except TooLarge:  # too large there: the points near are enough
            return True
    return verdict


def _same_near(
    pair: tuple[Expression, Expression], names: list[str], discrete: frozenset[str], work: Work
) -> bool | None:
    if discrete:
        real = not any(map(has_complex_part, pair))
        verdict = _agree_at(pair, integer_points(names, discrete), MIN_INTEGER_POINTS, work, real)
        if verdict and any(name[0] in REAL_LETTERS for name in discrete):
            return _agree_at(pair, real_points(names), 1, work) is not False
        return verdict
    if any(map(has_complex_part, pair)):
        return _agree_at(pair, complex_points(names, pair), 1, work, real=False)
    verdict = _agree_at(pair, real_points(names), 1, work)
    return _agree_at(pair, real_points(names), 1, work, real=False) if verdict is None else verdict


def _agree_at(
    pair: tuple[Expression, Expression], points: Iterator[Point], needed: int, work: Work, real: bool = True
) -> bool | None:
    """Return whether two expressions agree at every point with two values, None if ``needed`` points have no values.

    The first such point is compared again at a high precision.
    """
    first: Point | None = None
    agreed = 0
    too_large: TooLarge | None = None
    for point in points:
        try:
            with work.portion(8) as part:
                verdict = _agree(pair, point, part, real=real)
        except Undefined:
            continue
        except TooLarge as error:
            too_large = error
            continue
        if verdict is False:
            return False
        if verdict:
            agreed += 1
            first = point if first is None else first
            if agreed == INTEGER_POINTS:
                break
    if first is not None and agreed >= needed:
        return _agree(pair, first, work, real=real, thorough=True)
    if too_large is not None:
        raise too_large
    return None


def _agree(
    pair: tuple[Expression, Expression], point: Point, work: Work, real: bool = False, thorough: bool = False
) -> bool | None:
    """Return whether two expressions agree at a point, None if noise hides the answer.

    A difference that stays at a higher precision is a difference; noise shrinks with the precision.

    Args:
        pair: folded expressions.
        point: values of the variables.
        work: the budget.
        real: every part must be real.
        thorough: agreement must hold at 1,000 digits, not only at 50.

    Raises:
        TooLarge: if a value, or the work, is beyond the limits.
        Undefined: if an expression has no value at the point.
    """
    integers = {name: value for name, value in point.items() if isinstance(value, Fraction) and value.denominator == 1}
    if integers:
        pair = fold(pair[0], integers, work), fold(pair[1], integers, work)
        if isinstance(pair[0], Number) and isinstance(pair[1], Number):
            return pair[0].value == pair[1].value
    low, budget = LOW_BITS, work.left
    run, difference, scale = _difference(pair, point, work, low, real)
    spread = run.spread
    if spread > SMALL_SPREAD:
        low += 2 * spread
        run, difference, scale = _difference(pair, point, work, low, real)
    if not _is_noise(run, difference, scale, low - spread):
        _, again, _ = _difference(pair, point, work, low + STEP_BITS, real)
        if _is_stable(difference, again):
            return False
    if not thorough:
        return True
    more = HIGH_BITS if (budget - work.left) * HIGH_COST < work.left else MIDDLE_BITS
    high = low + more
    run, again, scale = _difference(pair, point, work, high, real)
    if _is_noise(run, again, scale, high - spread):
        return True
    if _is_stable(difference, again):
        return False
    return True if run.context.mag(again) < run.context.mag(difference) - more // 2 else None


def _difference(
    pair: tuple[Expression, Expression], point: Point, work: Work, precision: int, real: bool
) -> tuple[Evaluation, Any, Any]:
    """Return an evaluation, the difference of two expressions, and the larger of the absolute values.

    An undefined expression counts before an expression beyond the limits, in either order.
    """
    run = Evaluation(precision, point, work, real)
    try:
        one = run.value(pair[0])
    except TooLarge:
        run.value(pair[1])
        raise
    other = run.value(pair[1])
    return run, one - other, max(abs(one), abs(other))


def _is_noise(run: Evaluation, difference: Any, scale: Any, precision: int) -> bool:
    return not difference or run.context.mag(difference) < run.context.mag(scale) - (precision - SMALL_SPREAD - 36)


def _is_stable(difference: Any, again: Any) -> bool:
    return bool(abs(difference - again) * 1_000 < abs(again))


def _precise(folded: Expression, precision: int) -> Any:
    """Return the value of a folded expression without variables, with the precision that its terms need."""
    work = Work()
    run = Evaluation(precision, {}, work)
    value = run.value(folded)
    if run.spread > SMALL_SPREAD:
        value = Evaluation(precision + 2 * run.spread, {}, work).value(folded)
    return value


def _nearest_float(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _decimal(expression: Expression) -> tuple[Fraction, Fraction, int] | None:
    """Return (value, unit of the last place, significant digits) of a decimal, scaled or under a sign, or None."""
    if isinstance(expression, Number):
        if expression.digits is None or not expression.value:
            return None
        if expression.digits > MAX_ROUNDING_DIGITS or bits(expression.value) > MAX_BITS:
            return None
        return expression.value, _last_place(expression.value, expression.digits), expression.digits
    if isinstance(expression, Symbol):
        return None
    if expression.name == "negate":
        inner = _decimal(expression.operands[0])
        return None if inner is None else (-inner[0], inner[1], inner[2])
    if expression.name == "multiply" and len(expression.operands) == 2:
        for written, scale in (expression.operands, expression.operands[::-1]):
            inner, factor = _decimal(written), _power_of_ten(scale)
            if inner is not None and factor is not None:
                return inner[0] * factor, inner[1] * factor, inner[2]
    return None


def _power_of_ten(expression: Expression) -> Fraction | None:
    if not is_operation(expression, "power") or expression.operands[0] != Number(Fraction(10)):
        return None
    try:
        return exact_value(expression)
    except TooLarge:
        return None


def _last_place(value: Fraction, digits: int) -> Fraction:
    """Return the unit of the last of the significant digits of a positive decimal."""
    leading = math.floor(log2(value) * math.log10(2)) + 1
    while Fraction(10) ** leading > value:
        leading -= 1
    return Fraction(10) ** (leading - digits + 1)
