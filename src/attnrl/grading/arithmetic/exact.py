"""Exact rational values of expressions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from attnrl.grading.arithmetic.limits import MAX_BITS, MAX_TERMS, TooLarge, Work
from attnrl.grading.arithmetic.rationals import ONE, RATIONAL_OPERATIONS, ZERO, add, multiply
from attnrl.grading.reading.expressions import Expression, Number, Operation, Symbol

#: Sines that are rational, by angle / pi (Niven's theorem: no others at rational multiples of pi).
RATIONAL_SINES = {
    Fraction(turn, 6): Fraction(twice, 2)
    for turn, twice in ((0, 0), (1, 1), (3, 2), (5, 1), (6, 0), (7, -1), (9, -2), (11, -1))
}
_SINE_SHIFTS = {
    **dict.fromkeys(("sin", "csc", "tan", "cot"), ZERO),
    **dict.fromkeys(("cos", "sec"), Fraction(1, 2)),
}


def exact_value(expression: Expression) -> Fraction | None:
    """Return the exact value of an expression if every step is rational, otherwise None.

    Raises:
        TooLarge: if the value needs numbers beyond the limits.
    """
    try:
        folded = fold(expression, {}, Work())
    except RecursionError:
        raise TooLarge("nested too deeply") from None
    return folded.value if isinstance(folded, Number) else None


def fold(expression: Expression, values: Mapping[str, Fraction], work: Work) -> Expression:
    """Return an expression with each part of exact rational value replaced by a number, negative numbers included.

    Args:
        expression: the expression.
        values: values of symbols; a symbol with a value is replaced, even a constant (the index ``i`` of a sum).
        work: the budget of the evaluation.

    Raises:
        TooLarge: if a part of rational value needs numbers beyond the limits.
    """
    if isinstance(expression, Number):
        return _limited(expression)
    if isinstance(expression, Symbol):
        value = values.get(expression.name)
        return expression if value is None else Number(value)
    work.spend(5)
    name = expression.name
    if name in ("sum", "product"):
        return _fold_series(expression, values, work)
    if name in ("integral", "limit"):
        return expression
    operands = tuple([fold(operand, values, work) for operand in expression.operands])
    numbers = [operand.value for operand in operands if isinstance(operand, Number)]
    if len(numbers) == len(operands) and name in RATIONAL_OPERATIONS:
        result = RATIONAL_OPERATIONS[name](numbers, work)
    elif name in _SINE_SHIFTS:
        result = _trigonometric(name, pi_multiple(operands[0]))
    else:
        result = None
    if result is None:
        return Operation(name, operands)
    return _limited(Number(result))


def series_range(first: Expression, last: Expression) -> range | None:
    """Return the values of the index of a finite sum or product, or None if a bound is not an integer.

    Raises:
        TooLarge: if the series has more than ``MAX_TERMS`` terms.
    """
    if not (isinstance(first, Number) and isinstance(last, Number)):
        return None
    if first.value.denominator != 1 or last.value.denominator != 1:
        return None
    if last.value - first.value >= MAX_TERMS:
        raise TooLarge("too many terms")
    return range(first.value.numerator, last.value.numerator + 1)


def pi_multiple(expression: Expression) -> Fraction | None:
    """Return ``r`` for a folded expression equal to ``r * pi`` with rational ``r``, otherwise None."""
    if isinstance(expression, Number):
        return None if expression.value else ZERO
    if isinstance(expression, Symbol):
        return ONE if expression.name == "pi" else None
    operands = expression.operands
    if expression.name == "degrees" and isinstance(operands[0], Number):
        return operands[0].value / 180
    if expression.name == "negate":
        inner = pi_multiple(operands[0])
        return None if inner is None else -inner
    if expression.name == "divide" and isinstance(operands[1], Number) and operands[1].value:
        inner = pi_multiple(operands[0])
        return None if inner is None else inner / operands[1].value
    if expression.name == "add":
        multiples = [pi_multiple(operand) for operand in operands]
        known = [multiple for multiple in multiples if multiple is not None]
        return sum(known, ZERO) if len(known) == len(multiples) else None
    if expression.name == "multiply":
        factors = [operand for operand in operands if not isinstance(operand, Number)]
        inner = pi_multiple(factors[0]) if len(factors) == 1 else None
        return None if inner is None else math.prod((n.value for n in operands if isinstance(n, Number)), start=inner)
    return None


def _limited(number: Number) -> Number:
    if number.value.numerator.bit_length() > MAX_BITS or number.value.denominator.bit_length() > MAX_BITS:
        raise TooLarge("a number of too many bits")
    return number


def _fold_series(expression: Operation, values: Mapping[str, Fraction], work: Work) -> Expression:
    body, index, first, last = expression.operands
    first, last = fold(first, values, work), fold(last, values, work)
    indices = series_range(first, last)
    if indices is None or not isinstance(index, Symbol):
        inner = {name: value for name, value in values.items() if index != Symbol(name)}
        return Operation(expression.name, (fold(body, inner, work), index, first, last))
    total = ZERO if expression.name == "sum" else ONE
    combine = add if expression.name == "sum" else multiply
    bound = dict(values)
    for number in indices:
        work.spend(5)
        bound[index.name] = Fraction(number)
        term = fold(body, bound, work)
        if not isinstance(term, Number):
            inner = {name: value for name, value in values.items() if name != index.name}
            return Operation(expression.name, (fold(body, inner, work), index, first, last))
        total = _limited(Number(combine([total, term.value], work))).value
    return Number(total)


def _trigonometric(name: str, turns: Fraction | None) -> Fraction | None:
    """Return a trigonometric function of ``turns * pi`` if the value is rational, otherwise None."""
    if turns is None:
        return None
    if name in ("tan", "cot"):
        quarter = {ZERO: ZERO, Fraction(1, 4): ONE, Fraction(3, 4): -ONE}
        return quarter.get((turns if name == "tan" else Fraction(1, 2) - turns) % 1)
    sine = RATIONAL_SINES.get((turns + _SINE_SHIFTS[name]) % 2)
    if name in ("sec", "csc"):
        return 1 / sine if sine else None
    return sine
