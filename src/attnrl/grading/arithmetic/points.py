"""Points at which expressions with variables are compared, and the kinds of expressions that choose the points."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Iterator, Mapping
from fractions import Fraction

from attnrl.grading.reading.expressions import CONSTANTS, Expression, Number, Operation, Symbol, parts_of

POSITIVE_POINTS = 3
MIXED_SCALES = (Fraction(1), Fraction(1, 5), Fraction(30))  # four points of mixed signs each
INTEGER_TRIALS = 48
NEAR, MAX_FAR, MAX_FAR_INTEGER = 10, 10**9, 1_000  # numbers of an expression that far points go beyond
MAX_FAR_NUMBERS = 8

#: Operations with values at integers only, or with steps at integers; the bounds of series are integers as well.
DISCRETE = frozenset({"floor", "ceil", "mod", "factorial", "double_factorial", "binomial", "gcd", "lcm", "ellipsis"})
COMPLEX_PARTS = frozenset({"conjugate", "re", "im", "arg"})

#: Values of variables.
Point = Mapping[str, Fraction | complex]


@functools.lru_cache(maxsize=4096)
def random_value(key: str) -> Fraction:
    """Return a number between 0.6 and 1.7 with 200 random bits, seeded by a text."""
    return Fraction(6, 10) + Fraction(11 * random.Random(key).getrandbits(200), 10 << 200)


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


def is_rational_function(folded: Expression) -> bool:
    """Return True for an expression of sums, products, quotients and powers with integer exponents."""
    if not isinstance(folded, Operation):
        return not isinstance(folded, Symbol) or folded.name not in CONSTANTS
    operands = folded.operands
    if folded.name == "power" and isinstance(operands[1], Number) and operands[1].value.denominator == 1:
        return is_rational_function(operands[0])
    return folded.name in ("add", "multiply", "negate", "divide") and all(map(is_rational_function, operands))


def discrete_variables(expression: Expression) -> frozenset[str]:
    """Return the names of the variables of a folded expression for which integers are the right values."""
    if not isinstance(expression, Operation):
        return frozenset()
    operands = expression.operands
    if expression.name in ("sum", "product"):
        inner = discrete_variables(operands[0]) - variables(operands[1])
        return inner | variables(operands[2]) | variables(operands[3])
    if expression.name in DISCRETE:
        return variables(expression)
    names = frozenset().union(*map(discrete_variables, operands))
    if expression.name == "power" and _is_negative(operands[0]):
        names |= variables(operands[1])
    return names


def _is_negative(folded: Expression) -> bool:
    return folded == Symbol("i") or (isinstance(folded, Number) and folded.value < 0)


def has_complex_part(expression: Expression) -> bool:
    """Return True for an expression with the imaginary unit, a conjugate, a real or imaginary part, or a phase."""
    if not isinstance(expression, Operation):
        return expression == Symbol("i")
    return expression.name in COMPLEX_PARTS or any(map(has_complex_part, expression.operands))


def _conjugated(expression: Expression) -> frozenset[str]:
    """Return the names of the variables that stand alone under a conjugate, a real or imaginary part, or a phase."""
    if not isinstance(expression, Operation):
        return frozenset()
    names = frozenset().union(*map(_conjugated, expression.operands))
    if expression.name in COMPLEX_PARTS and isinstance(expression.operands[0], Symbol):
        names |= variables(expression.operands[0])
    return names


def real_points(names: list[str]) -> Iterator[dict[str, Fraction]]:
    """Yield positive points near 1, then points of mixed signs, small and large."""
    for trial in range(POSITIVE_POINTS):
        yield {name: random_value(f"{trial} {name}") for name in names}
    for trial in range(4 * len(MIXED_SCALES)):
        scale = MIXED_SCALES[trial // 4]
        yield {
            name: scale * _sign(trial, place) * random_value(f"{trial} mixed {name}")
            for place, name in enumerate(names)
        }


def far_points(
    names: list[str], discrete: frozenset[str], pair: tuple[Expression, Expression]
) -> Iterator[dict[str, Fraction]]:
    """Yield points beyond the numbers of two expressions, so that ``|x + 100|`` differs from ``x + 100``."""
    numbers = {part.value for expression in pair for part in parts_of(expression) if isinstance(part, Number)}
    largest = MAX_FAR_INTEGER if discrete else MAX_FAR
    for number in sorted(number for number in numbers if NEAR <= number <= largest)[:MAX_FAR_NUMBERS]:
        for factor in (Fraction(1), Fraction(2), Fraction(-2)):
            point = {}
            for place, name in enumerate(names):
                if name in discrete:
                    point[name] = Fraction(math.floor(number * abs(factor)) + place)
                else:
                    point[name] = number * factor * (1 + random_value(f"far {name}") / 10)
            yield point


def _sign(trial: int, place: int) -> int:
    """Return a sign, so that the signs of any two of the first variables take all combinations in four trials."""
    mask = place % 3 + 1
    return -1 if ((trial + 1) & mask).bit_count() % 2 else 1


def complex_points(names: list[str], pair: tuple[Expression, Expression]) -> Iterator[dict[str, Fraction | complex]]:
    """Yield real points, with complex values for variables named z or w and for conjugated variables."""
    conjugated = _conjugated(pair[0]) | _conjugated(pair[1])
    for trial, point in enumerate(real_points(names)):
        yield {
            name: complex(float(value), float(random_value(f"{trial} imaginary {name}")))
            if name[0] in "zw" or name in conjugated
            else value
            for name, value in point.items()
        }


def integer_points(names: list[str], discrete: frozenset[str]) -> Iterator[dict[str, Fraction]]:
    """Yield points with small positive integers for discrete variables, each integer at most once in a point."""
    for trial in range(INTEGER_TRIALS):
        largest = (12 if trial < 8 else 40) + 2 * len(names)
        point: dict[str, Fraction] = {}
        for place, name in enumerate(names):
            if name in discrete:
                rng = random.Random(f"{trial} integer {name}")
                value = Fraction(rng.randint(3, largest))
                while value in point.values():
                    value = Fraction(rng.randint(3, largest))
            else:
                value = random_value(f"{trial} beside {name}") * (1 if trial % 2 else _sign(trial // 2, place))
            point[name] = value
        yield point
