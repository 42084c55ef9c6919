"""Values with symbols replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attnrl.grading.reading.expressions import Expression, Operation, Symbol
from attnrl.grading.reading.values import Brackets, Listing, Matrix, Relation, SetOperation, Value


def rewritten(value: Value, replace: Callable[[Symbol], Expression]) -> Value:
    """Return a value with each symbol replaced by ``replace(symbol)``."""
    if isinstance(value, Symbol | Operation):
        return substituted(value, replace)
    if isinstance(value, Relation):
        return Relation(tuple(rewritten(side, replace) for side in value.sides), value.operators)
    if isinstance(value, Brackets):
        return Brackets(value.left, value.right, tuple(rewritten(item, replace) for item in value.items))
    if isinstance(value, Listing):
        return Listing(tuple(rewritten(item, replace) for item in value.items), value.joint)
    if isinstance(value, SetOperation):
        return SetOperation(value.name, tuple(rewritten(operand, replace) for operand in value.operands))
    if isinstance(value, Matrix):
        return Matrix(tuple(tuple(rewritten(cell, replace) for cell in row) for row in value.rows), value.bars)
    return value


def substituted(expression: Expression, replace: Callable[[Symbol], Expression]) -> Expression:
    """Return an expression with each symbol replaced by ``replace(symbol)``."""
    if isinstance(expression, Symbol):
        return replace(expression)
    if isinstance(expression, Operation):
        return Operation(expression.name, tuple(substituted(operand, replace) for operand in expression.operands))
    return expression


def symbols_of(value: Value) -> frozenset[str]:
    """Return the names of all symbols of a value, the constants included."""
    return frozenset(_symbols(value))


def _symbols(value: Value) -> Iterator[str]:
    inside: tuple[Value, ...] = ()
    if isinstance(value, Symbol):
        yield value.name
    elif isinstance(value, Operation | SetOperation):
        inside = value.operands
    elif isinstance(value, Relation):
        inside = value.sides
    elif isinstance(value, Brackets | Listing):
        inside = value.items
    elif isinstance(value, Matrix):
        inside = tuple(cell for row in value.rows for cell in row)
    for part in inside:
        yield from _symbols(part)
