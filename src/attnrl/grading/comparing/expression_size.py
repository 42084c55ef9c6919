"""A bound on the size of an expression, checked before sympy evaluates the expression.

The bound only saves time: underestimated expressions are stopped by the deadline of the worker pool.
"""

from __future__ import annotations

import contextlib
from typing import Any

MAX_BITS = 200_000.0  # of one number
MAX_TERMS = 20_000.0  # of one sum or product
MAX_FACTORIAL = 10_000.0  # argument of a factorial


def is_too_large(expression: Any) -> bool:
    """Return True if evaluating an expression needs numbers of more than ``MAX_BITS`` bits or very long sums."""
    import sympy

    if not isinstance(expression, (sympy.Basic, sympy.MatrixBase)):
        return False
    entries = expression.flat() if isinstance(expression, sympy.MatrixBase) else [expression]
    return any(_log2(entry) > MAX_BITS for entry in entries)


def _log2(node: Any) -> float:
    """Return a rough upper bound of log2 of the largest number in ``node``; infinity past the limits.

    Symbols count as 1.
    """
    import sympy

    if isinstance(node, sympy.Rational):
        return float(max(abs(node.p).bit_length(), node.q.bit_length()))
    if isinstance(node, sympy.Float):
        return abs(float(sympy.log(abs(node), 2).evalf(5))) + 1 if node != 0 else 1.0
    if not getattr(node, "args", ()):
        return 2.0
    sizes = [_log2(argument) for argument in node.args]
    largest = max(sizes)
    if largest > MAX_BITS:
        return float("inf")
    if isinstance(node, sympy.Pow):
        if node.exp.free_symbols:  # a symbolic power is not evaluated
            return sum(sizes)
        return sizes[0] * max(_magnitude(node.exp, sizes[1]), 1.0)
    if isinstance(node, (sympy.factorial, sympy.gamma, sympy.binomial, sympy.factorial2)):
        size = max(_magnitude(argument, largest) for argument in node.args)
        return size * max(largest, 1.0) if size <= MAX_FACTORIAL else float("inf")
    if isinstance(node, (sympy.Sum, sympy.Product)):
        for limits in node.limits:
            for bound in limits[1:]:
                if not bound.is_infinite and not bound.free_symbols and _magnitude(bound, _log2(bound)) > MAX_TERMS:
                    return float("inf")
        return largest
    if isinstance(node, sympy.Mul):
        return sum(sizes)
    return largest + 1.0


def _magnitude(node: Any, bits: float) -> float:
    """Return the absolute value of a number with at most ``bits`` bits; of another expression, an upper bound."""
    if node.is_number and bits < 1_000:
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            return abs(complex(node.evalf(5)))
    return 2.0**bits if bits < 60 else float("inf")
