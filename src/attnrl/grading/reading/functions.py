"""The reader of functions with their arguments, and of sums, products, integrals and limits with their bounds."""

from __future__ import annotations

from fractions import Fraction

from attnrl.grading.reading.brackets import read_group
from attnrl.grading.reading.cursor import Cursor, Unsupported, expression
from attnrl.grading.reading.expressions import Expression, Number, Operation, Symbol
from attnrl.grading.reading.factors import multiply, negative, read_exponent, refuse_digits_side_by_side, starts_factor
from attnrl.grading.reading.letters import COLLECTIVES, FUNCTIONS
from attnrl.grading.reading.tokens import Token
from attnrl.grading.reading.values import Value, items_of


def read_argument(cursor: Cursor) -> Value:
    """Read the argument of a command: a group, or a single digit, letter or command."""
    cursor.enter()
    try:
        return _read_argument(cursor)
    finally:
        cursor.leave()


def _read_argument(cursor: Cursor) -> Value:
    if cursor.at("{"):
        return read_group(cursor)
    token = cursor.peek()
    if token.kind == "number" and token.text.isdigit() and len(token.text) > 1:  # \frac12: one digit each
        cursor.tokens = [
            *cursor.tokens[: cursor.place],
            *(Token("number", digit) for digit in token.text),
            *cursor.tokens[cursor.place + 1 :],
        ]
    return cursor.grammar.atom(cursor)


def read_function(cursor: Cursor, name: str) -> Expression:
    """Read the exponent, the base and the argument after the name of a function."""
    power = base = None
    for _ in range(2):
        if power is None and cursor.accept("^"):
            power = expression(read_exponent(cursor))
        elif base is None and name == "log" and cursor.accept("_"):
            base = expression(read_argument(cursor))
    argument = _function_argument(cursor)
    inverse = power == negative(Number(Fraction(1))) and f"arc{name}" in FUNCTIONS
    if inverse:
        return Operation(f"arc{name}", (argument,))
    result = Operation(name, (argument,) if base is None else (argument, base))
    return result if power is None else Operation("power", (result, power))


def _function_argument(cursor: Cursor) -> Expression:
    """Read the argument of a function: brackets, or factors up to the next function or sign."""
    if cursor.at("(", "{", "[", "|"):
        return expression(cursor.grammar.atom(cursor))
    has_sign = cursor.accept("-")
    factors: list[Expression] = []
    while True:
        token = cursor.peek()
        is_function = token.kind == "command" and (token.text in FUNCTIONS or token.text in COLLECTIVES)
        if factors and (is_function or not starts_factor(cursor) or cursor.at("(", "[")):
            break
        if factors:
            refuse_digits_side_by_side(cursor, factors[-1])
        factors.append(expression(cursor.grammar.power(cursor)))
    argument = multiply(factors)
    if factors[-1] == Symbol("pi") and cursor.at("/") and cursor.peek(1).kind == "number":
        cursor.take()
        argument = Operation("divide", (argument, expression(cursor.grammar.power(cursor))))
    return expression(negative(argument)) if has_sign else argument


def read_collective(cursor: Cursor, name: str) -> Operation:
    """Read the arguments of ``\\gcd``, ``\\lcm``, ``\\max`` or ``\\min`` in brackets."""
    return Operation(name, tuple(map(expression, items_of(cursor.grammar.atom(cursor)))))


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
    body = expression(cursor.grammar.product(cursor))
    return Operation("sum" if command == "sum" else "product", (body, index, first, last))


def _bound(cursor: Cursor) -> Expression:
    if cursor.at("{"):
        return expression(read_group(cursor))
    negative = cursor.accept("-")
    bound = expression(cursor.grammar.atom(cursor))
    return Operation("negate", (bound,)) if negative else bound


def _read_index(cursor: Cursor) -> tuple[Symbol, Expression]:
    if not (cursor.accept("_") and cursor.accept("{")):
        raise Unsupported("a sum without an index")
    cursor.enter()
    index = cursor.grammar.atom(cursor)
    if not isinstance(index, Symbol) or not cursor.accept("="):
        raise Unsupported("a sum over a condition")
    first = expression(cursor.grammar.sum(cursor))
    cursor.expect("}")
    cursor.leave()
    return index, first


def _read_limit(cursor: Cursor) -> Operation:
    if not (cursor.accept("_") and cursor.accept("{")):
        raise Unsupported("a limit without a target")
    cursor.enter()
    symbol = cursor.grammar.atom(cursor)
    if not isinstance(symbol, Symbol) or cursor.take().text not in ("to", "->"):
        raise Unsupported("a limit without a target")
    target = expression(cursor.grammar.sum(cursor))
    cursor.expect("}")
    cursor.leave()
    return Operation("limit", (expression(cursor.grammar.product(cursor)), symbol, target))


def _read_integral(cursor: Cursor) -> Operation:
    bounds: dict[str, Expression] = {}
    for mark in ("_", "^", "_"):
        if mark not in bounds and cursor.accept(mark):
            bounds[mark] = _bound(cursor)
    cursor.integrals += 1
    body = expression(cursor.grammar.sum(cursor))
    cursor.integrals -= 1
    if cursor.take().text != "d":
        raise Unsupported("an integral without a variable")
    symbol = cursor.grammar.atom(cursor)
    if not isinstance(symbol, Symbol) or len(bounds) == 1:
        raise Unsupported("an integral without a variable")
    return Operation("integral", (body, symbol, *((bounds["_"], bounds["^"]) if bounds else ())))
