"""The reader of sums, products, integrals and limits with their bounds."""

from __future__ import annotations

from attnrl.grading.reading.brackets import read_group
from attnrl.grading.reading.cursor import Cursor, Unsupported, expression
from attnrl.grading.reading.expression_reader import read_atom, read_product, read_sum
from attnrl.grading.reading.expressions import Expression, Operation, Symbol


def read_big_operator(cursor: Cursor, command: str) -> Operation:
    """Read what follows ``\\sum``, ``\\prod``, ``\\int`` or ``\\lim``.

    Raises:
        Unsupported: bounds are missing or have another form.
    """
    if command == "lim":
        return _read_limit(cursor)
    if command == "int":
        return _read_integral(cursor)
    index, first = _read_index(cursor)
    if not cursor.accept("^"):
        raise Unsupported(f"\\{command} without an upper bound")
    last = _bound(cursor)
    body = expression(read_product(cursor))
    return Operation("sum" if command == "sum" else "product", (body, index, first, last))


def _bound(cursor: Cursor) -> Expression:
    if cursor.at("{"):
        return expression(read_group(cursor))
    negative = cursor.accept("-")
    bound = expression(read_atom(cursor))
    return Operation("negate", (bound,)) if negative else bound


def _read_index(cursor: Cursor) -> tuple[Symbol, Expression]:
    if not (cursor.accept("_") and cursor.accept("{")):
        raise Unsupported("a sum without an index")
    cursor.enter()
    index = read_atom(cursor)
    if not isinstance(index, Symbol) or not cursor.accept("="):
        raise Unsupported("a sum over a condition")
    first = expression(read_sum(cursor))
    cursor.expect("}")
    cursor.leave()
    return index, first


def _read_limit(cursor: Cursor) -> Operation:
    if not (cursor.accept("_") and cursor.accept("{")):
        raise Unsupported("a limit without a target")
    cursor.enter()
    symbol = read_atom(cursor)
    if not isinstance(symbol, Symbol) or cursor.take().text not in ("to", "->"):
        raise Unsupported("a limit without a target")
    target = expression(read_sum(cursor))
    cursor.expect("}")
    cursor.leave()
    return Operation("limit", (expression(read_product(cursor)), symbol, target))


def _read_integral(cursor: Cursor) -> Operation:
    bounds: dict[str, Expression] = {}
    for mark in ("_", "^", "_"):
        if mark not in bounds and cursor.accept(mark):
            bounds[mark] = _bound(cursor)
    cursor.integrals += 1
    body = expression(read_sum(cursor))
    cursor.integrals -= 1
    if cursor.take().text != "d":
        raise Unsupported("an integral without a variable")
    symbol = read_atom(cursor)
    if not isinstance(symbol, Symbol) or len(bounds) == 1:
        raise Unsupported("an integral without a variable")
    return Operation("integral", (body, symbol, *((bounds["_"], bounds["^"]) if bounds else ())))
