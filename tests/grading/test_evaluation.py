"""Values of expressions: exact, at several precisions, at points of variables, and within limits."""

from fractions import Fraction

import pytest

from attnrl.grading.exact import exact_value
from attnrl.grading.expressions import Expression, Number, Operation, Symbol

Written = Expression | int | str


def tree(written: Written) -> Expression:
    if isinstance(written, int):
        number = Number(Fraction(abs(written)))
        return number if written >= 0 else Operation("negate", (number,))
    return Symbol(written) if isinstance(written, str) else written


def op(name: str, *operands: Written) -> Operation:
    return Operation(name, tuple(map(tree, operands)))


def add(*terms: Written) -> Operation:
    return op("add", *terms)


def sub(one: Written, other: Written) -> Operation:
    return op("add", one, op("negate", other))


def mul(*factors: Written) -> Operation:
    return op("multiply", *factors)


def div(dividend: Written, divisor: Written) -> Operation:
    return op("divide", dividend, divisor)


def power(base: Written, exponent: Written) -> Operation:
    return op("power", base, exponent)


def sqrt(radicand: Written) -> Operation:
    return op("root", radicand, 2)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (div(add(1, mul(2, 3)), -4), Fraction(-7, 4)),
        (sqrt(div(4, 9)), Fraction(2, 3)),
        (op("root", -8, 3), Fraction(-2)),
        (power(-8, div(2, 3)), Fraction(4)),
        (power(2, -2017), Fraction(1, 2**2017)),
        (op("log", 8, 2), Fraction(3)),
        (op("log", 4, 8), Fraction(2, 3)),
        (op("log", 1000), Fraction(3)),
        (op("sin", op("degrees", 30)), Fraction(1, 2)),
        (op("cos", div(mul(2, "pi"), 3)), Fraction(-1, 2)),
        (op("tan", op("degrees", -45)), Fraction(-1)),
        (op("mod", -7, 3), Fraction(2)),
        (op("gcd", 91, 65), Fraction(13)),
        (op("lcm", 4, 6, 10), Fraction(60)),
        (op("binomial", 10, 3), Fraction(120)),
        (op("double_factorial", 7), Fraction(105)),
        (op("sum", power("i", 2), "i", 1, 10), Fraction(385)),
        (op("product", "k", "k", 1, 5), Fraction(120)),
        (op("ellipsis", 1, 2, 3, 100), Fraction(5050)),
        (op("ellipsis", 1, 2, 4, 1024), Fraction(2047)),
        (op("percent", 25), Fraction(1, 4)),
        (op("max", 3, div(7, 2)), Fraction(7, 2)),
        (op("floor", div(-7, 2)), Fraction(-4)),
        (sqrt(2), None),
        (op("sin", 30), None),
        (div(1, 0), None),
        (op("ellipsis", 1, 4, 9, 100), None),
        (add("x", 1), None),
    ],
)
def test_exact_values(expression: Expression, value: Fraction | None) -> None:
    assert exact_value(expression) == value
