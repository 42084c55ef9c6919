"""Comparison of expressions by value: exact where both values are rational, otherwise numeric at several precisions.

Expressions with variables are compared at pseudo-random points, seeded by the names of the variables.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from attnrl.grading.exact import exact_value, fold
from attnrl.grading.expressions import CONSTANTS, Expression, Number, Operation, Symbol
from attnrl.grading.limits import MAX_WORK, TooLarge, Undefined, Work
from attnrl.grading.numeric import Evaluation, random_value

LOW_BITS = 170  # 50 digits
STEP_BITS = 128  # between the precisions that tell a difference from noise
HIGH_BITS = 3_330  # beyond the low precision: 1,000 digits
MIDDLE_BITS = 830  # beyond the low precision, where the high precision is too much work: 250 digits
HIGH_COST = 150  # work at the high precision, relative to work at the low precision
SMALL_SPREAD = 64  # bits that need no further precision
ROUNDING_DIGITS = 6  # significant digits of a decimal that may stand for the number rounded to the decimal

POSITIVE_POINTS = 4
MIXED_SCALES = (Fraction(1), Fraction(4), Fraction(1, 5), Fraction(30))  # four points of mixed signs each
INTEGER_POINTS = 24
INTEGER_TRIALS = 48
MIN_INTEGER_POINTS = 4

#: Operations with values at integers only, or with steps at integers.
DISCRETE = frozenset(
    {"floor", "ceil", "mod", "factorial", "double_factorial", "binomial", "gcd", "lcm", "ellipsis", "sum", "product"}
)
COMPLEX_PARTS = frozenset({"conjugate", "re", "im", "arg"})

Point = Mapping[str, Fraction | complex]


def same_value(one: Expression, other: Expression) -> bool | None:
    """Return True if two expressions have the same value, False if not, None if no value is defined.

    Expressions with variables have the same value if the values agree at pseudo-random points: positive numbers, then
    numbers of both signs where every part of both expressions is real; small positive integers where an operation is
    for integers (:data:`DISCRETE`, powers of a negative number).

    Raises:
        TooLarge: if a value, or the work, is beyond the limits of :mod:`attnrl.grading.limits`.
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
        return None if hasattr(value, "_mpc_") else float(value)
    except (TooLarge, Undefined, RecursionError):
        return None


def rounds_to(decimal: Expression, expression: Expression) -> bool:
    """Return True if a decimal is an expression rounded to the last place of the decimal.

    The decimal has at least ``ROUNDING_DIGITS`` significant digits, and may stand under a sign and be multiplied by a
    power of ten; the expression is not a decimal itself.
    """
    written = _decimal(decimal)
    if written is None or _decimal(expression) is not None:
        return False
    value, place, digits = written
    if digits < ROUNDING_DIGITS:
        return False
    try:
        folded = fold(expression, {}, Work())
        if isinstance(folded, Number):
            return abs(folded.value - value) <= place / 2
        exact = _precise(folded, LOW_BITS + 4 * digits)
        if hasattr(exact, "_mpc_"):
            return False
        run = Evaluation(LOW_BITS + 4 * digits, {}, Work())
        return bool(abs(exact - run.rational(value)) <= run.rational(place / 2))
    except (TooLarge, Undefined, RecursionError):
        return False


def infinite_sign(expression: Expression) -> int:
    """Return 1 for infinity, -1 for minus infinity, 0 for every expression besides."""
    if isinstance(expression, Operation) and expression.name == "negate":
        return -infinite_sign(expression.operands[0])
    return 1 if expression == Symbol("infinity") else 0


def variables(expression: Expression) -> frozenset[str]:
    """Return the names of the symbols whose values an expression needs: no constants, no index of a series."""
    if isinstance(expression, Symbol):
        return frozenset({expression.name} - CONSTANTS)
    if isinstance(expression, Number):
        return frozenset()
    if expression.name in ("sum", "product"):
        body, index, first, last = expression.operands
        return (variables(body) - variables(index)) | variables(first) | variables(last)
    operands = expression.operands[1:] if expression.name == "apply" else expression.operands
    return frozenset().union(*map(variables, operands))


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
    return _same_function(pair, names)


def _same_function(pair: tuple[Expression, Expression], names: list[str]) -> bool | None:
    discrete = [part for expression in pair for part in _discrete_parts(expression)]
    if discrete:
        real = not any(_has_complex_part(expression) for expression in pair)
        verdict = _agree_at(pair, _integer_points(names), MIN_INTEGER_POINTS, real)
        if verdict and any(name[0] in "tuvwxyz" for part in discrete for name in variables(part)):
            return _agree_at(pair, _real_points(names), 1) is not False
        return verdict
    if any(_has_complex_part(expression) for expression in pair):
        return _agree_at(pair, _complex_points(names, pair), 1, real=False)
    verdict = _agree_at(pair, _real_points(names), 1)
    return _agree_at(pair, _real_points(names), 1, real=False) if verdict is None else verdict


def _agree_at(
    pair: tuple[Expression, Expression], points: Iterator[Point], needed: int, real: bool = True
) -> bool | None:
    """Return whether two expressions agree at every point with two values, None if ``needed`` points have no values.

    The first such point is compared again at a high precision.
    """
    first: Point | None = None
    agreed = 0
    too_large: TooLarge | None = None
    for point in points:
        try:
            verdict = _agree(pair, point, Work(MAX_WORK // 10), real=real)
        except Undefined:
            continue
        except TooLarge as error:
            too_large = error
            if agreed == 0 and error.args == ("too much work",):
                break
            continue
        if verdict is False:
            return False
        if verdict:
            agreed += 1
            first = point if first is None else first
            if agreed == INTEGER_POINTS:
                break
    if first is not None and agreed >= needed:
        return _agree(pair, first, Work(), real=real, thorough=True)
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
    exact = {name: value for name, value in point.items() if isinstance(value, Fraction)}
    if exact and all(value.denominator == 1 for value in exact.values()):
        pair = fold(pair[0], exact, work), fold(pair[1], exact, work)
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
    """Return an evaluation, the difference of two expressions, and the larger of the absolute values."""
    run = Evaluation(precision, point, work, real)
    one, other = run.value(pair[0]), run.value(pair[1])
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
    if (
        isinstance(expression, Operation)
        and expression.name == "power"
        and expression.operands[0] == Number(Fraction(10))
    ):
        try:
            return exact_value(expression)
        except TooLarge:
            return None
    return None


def _last_place(value: Fraction, digits: int) -> Fraction:
    """Return the unit of the last of the significant digits of a positive decimal."""
    leading = len(str(value.numerator)) - len(str(value.denominator))
    if Fraction(10) ** leading > value:
        leading -= 1
    return Fraction(10) ** (leading - digits + 1)


def _discrete_parts(expression: Expression) -> Iterator[Operation]:
    """Yield the parts with variables for which integers are the right points."""
    if not isinstance(expression, Operation):
        return
    operands = expression.operands
    if expression.name in ("sum", "product"):
        if variables(operands[2]) | variables(operands[3]):
            yield expression
    elif expression.name in DISCRETE:
        if variables(expression):
            yield expression
    elif expression.name == "power" and _is_negative(operands[0]) and variables(operands[1]):
        yield expression
    for operand in operands:
        yield from _discrete_parts(operand)


def _is_negative(folded: Expression) -> bool:
    return folded == Symbol("i") or (isinstance(folded, Number) and folded.value < 0)


def _has_complex_part(expression: Expression) -> bool:
    if not isinstance(expression, Operation):
        return expression == Symbol("i")
    return expression.name in COMPLEX_PARTS or any(map(_has_complex_part, expression.operands))


def _conjugated(expression: Expression) -> frozenset[str]:
    """Return the names of the variables that stand alone under a conjugate, a real or imaginary part, or a phase."""
    if not isinstance(expression, Operation):
        return frozenset()
    names = frozenset().union(*map(_conjugated, expression.operands))
    if expression.name in COMPLEX_PARTS and isinstance(expression.operands[0], Symbol):
        names |= variables(expression.operands[0])
    return names


def _real_points(names: list[str]) -> Iterator[dict[str, Fraction]]:
    """Yield positive points near 1, then points of mixed signs, small and large."""
    for trial in range(POSITIVE_POINTS):
        yield {name: random_value(f"{trial} {name}") for name in names}
    for trial in range(4 * len(MIXED_SCALES)):
        scale = MIXED_SCALES[trial // 4]
        yield {
            name: scale * _sign(trial, place) * random_value(f"{trial} mixed {name}")
            for place, name in enumerate(names)
        }


def _sign(trial: int, place: int) -> int:
    """Return a sign, so that the signs of any two of the first variables take all combinations in four trials."""
    return -1 if (trial + 1 & (place % 3) + 1).bit_count() % 2 else 1


def _complex_points(names: list[str], pair: tuple[Expression, Expression]) -> Iterator[dict[str, Fraction | complex]]:
    """Yield real points, with complex values for variables named z or w and for conjugated variables."""
    conjugated = _conjugated(pair[0]) | _conjugated(pair[1])
    for trial, point in enumerate(_real_points(names)):
        yield {
            name: complex(float(value), float(random_value(f"{trial} imaginary {name}")))
            if name[0] in "zw" or name in conjugated
            else value
            for name, value in point.items()
        }


def _integer_points(names: list[str]) -> Iterator[dict[str, Fraction]]:
    """Yield points of small positive integers, each integer at most once in a point."""
    for trial in range(INTEGER_TRIALS):
        largest = (12 if trial < 8 else 40) + 2 * len(names)
        point: dict[str, Fraction] = {}
        for name in names:
            rng = random.Random(f"{trial} integer {name}")
            value = Fraction(rng.randint(3, largest))
            while value in point.values():
                value = Fraction(rng.randint(3, largest))
            point[name] = value
        yield point
