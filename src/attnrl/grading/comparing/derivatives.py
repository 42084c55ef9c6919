r"""The notations of derivatives: ``\frac{dv}{dt}``, ``v'`` and ``\dot v``."""

from __future__ import annotations

import re

from attnrl.grading.reading.cursor import expression
from attnrl.grading.reading.expressions import Operation, Symbol
from attnrl.grading.reading.rewriting import rewritten, symbols_of
from attnrl.grading.reading.values import Value

_QUOTIENT = re.compile(r"d(?:\^(\d))?([a-zA-Z]+)/d[a-zA-Z](?:\^\d)?")
_DOTS = re.compile(r"(d+)ot (.+)")


def same_notation(gold: Value, answer: Value) -> tuple[Value, Value]:
    r"""Return both values with primes for derivatives if the two use different notations.

    In a single notation the values stay as written, so that :math:`dv/dt` and :math:`dv/dx` differ.
    """
    notations = _notations(gold), _notations(answer)
    if notations[0] == notations[1] or not all(notations):
        return gold, answer
    return _without_arguments(rewritten(gold, _with_primes)), _without_arguments(rewritten(answer, _with_primes))


def _notations(value: Value) -> frozenset[str]:
    kinds = {
        "quotient": lambda name: _QUOTIENT.fullmatch(name),
        "dots": lambda name: _DOTS.fullmatch(name),
        "primes": lambda name: name.endswith("'"),
    }
    names = symbols_of(value)
    return frozenset(kind for kind, matches in kinds.items() if any(map(matches, names)))


def _with_primes(symbol: Symbol) -> Symbol:
    quotient, dots = _QUOTIENT.fullmatch(symbol.name), _DOTS.fullmatch(symbol.name)
    if quotient:
        return Symbol(quotient[2] + "'" * int(quotient[1] or 1))
    return Symbol(dots[2] + "'" * len(dots[1])) if dots else symbol


def _without_arguments(value: Value) -> Value:
    """Return an expression with ``f'`` for ``f'(x)``: a quotient of differentials does not name the argument."""
    if not isinstance(value, Operation):
        return value
    function = value.operands[0]
    if value.name == "apply" and isinstance(function, Symbol) and function.name.endswith("'"):
        return function
    return Operation(value.name, tuple(expression(_without_arguments(operand)) for operand in value.operands))
