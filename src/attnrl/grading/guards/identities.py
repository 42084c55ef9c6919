r"""Identities that restate an expression without any computing: change of base, complements of angles, factorials.

``\frac{\ln 125}{\ln 5}`` restates ``\log_5 125``, and ``\cos 15^\circ`` restates ``\sin 75^\circ``.
"""

from __future__ import annotations

from fractions import Fraction

from attnrl.grading.reading.expressions import (
    Expression,
    Number,
    Operation,
    Symbol,
    difference,
    free_symbols,
    operation_names,
    quotient,
)

_ONE, _TEN = Number(Fraction(1)), Number(Fraction(10))
_SMALL_POWER = 64  # bits
_REPEATING = frozenset({"binomial", "mod", "tan", "cot"})  # an identity writes an operand twice
#: Trigonometric function -> dividend and divisor, each ``sin``, ``cos`` or an empty text for 1.
_QUOTIENTS = {"tan": ("sin", "cos"), "cot": ("cos", "sin"), "sec": ("", "cos"), "csc": ("", "sin")}


def restated(expression: Expression) -> Expression:
    """Return an expression in the operations that all restatements of the expression have in common.

    - logarithms: quotients of natural logarithms
    - trigonometric functions: sines and cosines, of an angle from 0 to 45 degrees if the angle is a literal
    - binomial coefficients: factorials
    - remainders: ``a - m floor(a / m)``
    - small powers of literals, if the expression has variables: literals

    An operation around an operation whose identity repeats an operand stays, because nested identities of this kind
    would grow exponentially.
    """
    return _restated(expression, bool(free_symbols(expression)))


def _restated(expression: Expression, has_variables: bool) -> Expression:
    if not isinstance(expression, Operation):
        return expression
    operands = tuple(_restated(operand, has_variables) for operand in expression.operands)
    name = expression.name
    if name in _REPEATING and any(_REPEATING & operation_names(operand) for operand in expression.operands):
        return Operation(name, operands)
    match name, operands:
        case "log", _:
            base = operands[1] if len(operands) == 2 else _TEN
            return quotient(Operation("ln", operands[:1]), Operation("ln", (base,)))
        case "binomial", (top, bottom):
            factorials = [Operation("factorial", (part,)) for part in (bottom, difference(top, bottom))]
            return quotient(Operation("factorial", (top,)), Operation("multiply", tuple(factorials)))
        case "mod", (dividend, modulus):
            times = Operation("floor", (quotient(dividend, modulus),))
            return difference(dividend, Operation("multiply", (modulus, times)))
        case "sin" | "cos", (angle,):
            return _with_small_angle(name, angle)
        case (("tan" | "cot" | "sec" | "csc"), (angle,)):
            over, under = (_with_small_angle(part, angle) if part else _ONE for part in _QUOTIENTS[name])
            return quotient(over, under)
        case "power", (Number() as base, exponent) if has_variables:
            return _folded_power(base, exponent) or Operation("power", operands)
    return Operation(name, operands)


def _folded_power(base: Number, exponent: Expression) -> Number | None:
    """Return a power of a literal as a literal; None without a natural exponent, and above 64 bits."""
    if not isinstance(exponent, Number) or exponent.value.denominator != 1:
        return None
    bits = max(base.value.numerator.bit_length(), base.value.denominator.bit_length())
    if exponent.value > _SMALL_POWER or bits * exponent.value > _SMALL_POWER:
        return None
    return Number(base.value**exponent.value.numerator)


def _with_small_angle(name: str, angle: Expression) -> Expression:
    """Return a sine or cosine of a literal angle with an angle from 0 to 45 degrees; others unchanged."""
    turns = _half_turns(angle)
    if turns is None:
        return Operation(name, (angle,))
    turns %= 2
    is_negative = turns >= 1
    turns -= is_negative
    if turns > Fraction(1, 2):
        turns = 1 - turns
        is_negative ^= name == "cos"
    if turns > Fraction(1, 4):
        turns = Fraction(1, 2) - turns
        name = "cos" if name == "sin" else "sin"
    small = Operation("multiply", (Number(turns), Symbol("pi")))
    result = Operation(name, (small,))
    return Operation("negate", (result,)) if is_negative else result


def _half_turns(angle: Expression) -> Fraction | None:
    """Return a literal angle in multiples of pi; None for another angle."""
    factor = _literal_times_pi(angle)
    return factor[0] if factor and factor[1] == 1 else None


def _literal_times_pi(expression: Expression) -> tuple[Fraction, int] | None:
    """Return the literal and the exponent of pi of a product of literals and powers of pi; None for another."""
    if isinstance(expression, Number):
        return expression.value, 0
    if isinstance(expression, Symbol):
        return (Fraction(1), 1) if expression.name == "pi" else None
    parts = [_literal_times_pi(operand) for operand in expression.operands]
    factors = [part for part in parts if part is not None]
    if len(factors) < len(parts):
        return None
    match expression.name, factors:
        case "degrees", [(number, 0)]:
            return number / 180, 1
        case "negate", [(number, exponent)]:
            return -number, exponent
        case "divide", [(over, exponent), (under, 0)] if under:
            return over / under, exponent
        case "multiply", _:
            product = Fraction(1)
            for number, _ in factors:
                product *= number
            return product, sum(exponent for _, exponent in factors)
    return None
