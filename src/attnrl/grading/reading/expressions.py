"""The tree of a mathematical expression, as read from an answer.

A tree keeps the operations as written: nothing is evaluated, expanded or reordered. Division, negation and roots are
operations of their own, because the guards (:mod:`attnrl.grading.guards`) ask for the operations left in an answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeGuard


@dataclass(frozen=True, slots=True)
class Number:
    """A non-negative rational number.

    Attributes:
        value: the exact value; ``0.\\overline{3}`` is 1/3.
        digits: significant digits of a number written as a decimal (``0.50`` has 2), or None for an integer.
    """

    value: Fraction
    digits: int | None = None


@dataclass(frozen=True, slots=True)
class Symbol:
    """A variable or a constant: ``x``, ``x_1``, ``f'``, ``alpha``, ``dy/dx``; the constants are in ``CONSTANTS``."""

    name: str


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation on expressions; :data:`OPERATIONS` lists the names."""

    name: str
    operands: tuple[Expression, ...]


Expression = Number | Symbol | Operation

#: Symbols with a value. ``infinity`` may stand alone or under a sign.
CONSTANTS = frozenset({"pi", "e", "i", "infinity"})

TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc")
HYPERBOLIC = ("sinh", "cosh", "tanh", "coth", "sech", "csch")
INVERSE = tuple("arc" + name for name in (*TRIGONOMETRIC, *HYPERBOLIC))

#: Name of each operation -> its operands.
OPERATIONS: dict[str, str] = {
    "add": "two or more terms",
    "multiply": "two or more factors",
    "negate": "x",
    "divide": "dividend, divisor",
    "power": "base, exponent",
    "root": "radicand, index (2 for a square root)",
    "abs": "x",
    "floor": "x",
    "ceil": "x",
    "factorial": "n",
    "double_factorial": "n",
    "binomial": "n, k",
    "mod": "dividend, modulus: the remainder, in [0, modulus)",
    "gcd": "one or more numbers",
    "lcm": "one or more numbers",
    "max": "one or more numbers",
    "min": "one or more numbers",
    "exp": "x",
    "ln": "x",
    "log": "x, base; or x alone, where the base is not written",
    "degrees": "x: the angle x in degrees, so x times pi / 180",
    "percent": "x: x / 100",
    "conjugate": "z",
    "re": "z",
    "im": "z",
    "arg": "z",
    "plus_minus": "x, or left and right: both signs",
    "minus_plus": "x, or left and right: both signs, the opposite of plus_minus",
    "apply": "a symbol (an unknown function), then its arguments",
    "sum": "body, index symbol, first, last",
    "product": "body, index symbol, first, last",
    "integral": "body, symbol, and for a definite integral lower, upper",
    "limit": "body, symbol, target",
    "ellipsis": "the terms of a series a + b + ... + z, in order, with the ellipsis between the last two",
    **dict.fromkeys((*TRIGONOMETRIC, *HYPERBOLIC, *INVERSE), "x"),
}


def is_operation(value: object, *names: str) -> TypeGuard[Operation]:
    """Return True for an operation with one of the names."""
    return isinstance(value, Operation) and value.name in names


def difference(left: Expression, right: Expression) -> Operation:
    """Return the tree of ``left - right``."""
    return Operation("add", (left, Operation("negate", (right,))))


def quotient(over: Expression, under: Expression) -> Operation:
    """Return the tree of ``over / under``."""
    return Operation("divide", (over, under))


def parts_of(expression: Expression) -> Iterator[Expression]:
    """Yield an expression and all expressions inside the expression, parents first."""
    stack = [expression]
    while stack:
        part = stack.pop()
        yield part
        if isinstance(part, Operation):
            stack.extend(reversed(part.operands))


def free_symbols(expression: Expression) -> frozenset[str]:
    """Return the names of the variables of an expression: the symbols without a constant value."""
    return frozenset(part.name for part in parts_of(expression) if isinstance(part, Symbol)) - CONSTANTS


def operation_names(expression: Expression) -> frozenset[str]:
    """Return the names of the operations inside an expression."""
    return frozenset(part.name for part in parts_of(expression) if isinstance(part, Operation))
