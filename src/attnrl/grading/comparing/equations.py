"""Comparison of equations in several variables."""

from __future__ import annotations

from fractions import Fraction

from attnrl.grading.arithmetic.evaluation import same_value
from attnrl.grading.reading.expressions import (
    CONSTANTS,
    Expression,
    Number,
    Operation,
    Symbol,
    difference,
    free_symbols,
    quotient,
)
from attnrl.grading.reading.rewriting import substituted
from attnrl.grading.reading.values import Relation

ZERO, ONE, TWO = (Number(Fraction(number)) for number in range(3))


def same_equation(gold: Relation, answer: Relation) -> bool | None:
    """Compare two equations in the same variables.

    Equal equations: the differences of the sides are in a constant ratio other than zero; or the equation of the gold
    is not solved for a variable, and both equations are linear in a variable with the same solution.
    """
    one, other = _difference_of_sides(gold), _difference_of_sides(answer)
    if one is None or other is None or not free_symbols(one) or free_symbols(one) != free_symbols(other):
        return False
    if same_value(one, ZERO) is not False or same_value(other, ZERO) is not False:
        return False
    elsewhere = quotient(substituted(one, _renamed), substituted(other, _renamed))
    same = same_value(quotient(one, other), elsewhere)
    if same is not False or isinstance(gold.sides[0], Symbol):
        return same
    return any(_same_solution(one, other, name) for name in sorted(free_symbols(one)))


def _same_solution(one: Expression, other: Expression, name: str) -> bool:
    """Return True if two differences are linear in a variable and zero at the same value of the variable."""
    if not (_is_linear(one, name) and _is_linear(other, name)):
        return False
    start, slope = _at(one, name, ZERO), difference(_at(one, name, ONE), _at(one, name, ZERO))
    root = Operation("negate", (quotient(start, slope),))
    if same_value(_at(other, name, root), ZERO) is not True:
        return False
    return _is_monomial(quotient(difference(_at(other, name, ONE), _at(other, name, ZERO)), slope))


def _is_monomial(factor: Expression) -> bool:
    """Return True for a product of powers of variables: doubling a variable multiplies the factor by a constant."""
    for name in sorted(free_symbols(factor)):
        ratio = quotient(_at(factor, name, Operation("multiply", (TWO, Symbol(name)))), factor)
        if same_value(ratio, substituted(ratio, _renamed)) is False:
            return False
    return True


def _is_linear(expression: Expression, name: str) -> bool:
    start, middle, end = (_at(expression, name, point) for point in (ZERO, ONE, TWO))
    if same_value(middle, start) is not False:
        return False
    return same_value(difference(end, middle), difference(middle, start)) is True


def _at(expression: Expression, name: str, value: Expression) -> Expression:
    return substituted(expression, lambda symbol: value if symbol.name == name else symbol)


def _difference_of_sides(relation: Relation) -> Expression | None:
    if relation.operators != ("=",):
        return None
    left, right = relation.sides
    if not isinstance(left, Expression) or not isinstance(right, Expression):
        return None
    return difference(left, right)


def _renamed(symbol: Symbol) -> Symbol:
    """Rename a variable, for the value of the same expression at another point."""
    return symbol if symbol.name in CONSTANTS else Symbol(symbol.name + "*")
