"""Limits of an evaluation: the size of numbers, and a budget of work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

MAX_BITS = 200_000  # of a numerator or denominator
MAX_FACTORIAL = 10_000  # argument of a factorial
MAX_TERMS = 20_000  # of one sum or product
MAX_WORK = 300_000  # estimated microseconds of one evaluation


class TooLarge(ArithmeticError):  # noqa: N818
    """An evaluation needs numbers, terms or work beyond the limits."""


class Undefined(ArithmeticError):  # noqa: N818
    """An expression has no value: division by zero, outside the domain, or an operation without evaluation."""


class Work:
    """A budget of estimated microseconds, spent before each costly step."""

    def __init__(self, limit: int = MAX_WORK) -> None:
        self.left = limit

    def spend(self, cost: int) -> None:
        """Take estimated microseconds from the budget.

        Raises:
            TooLarge: if the budget does not suffice.
        """
        self.left -= cost
        if self.left < 0:
            raise TooLarge("too much work")

    @contextmanager
    def portion(self, parts: int) -> Iterator[Work]:
        """Give a budget of 1 / ``parts`` of the rest; the work spent counts against the whole."""
        part = Work(self.left // parts)
        given = part.left
        try:
            yield part
        finally:
            self.left -= given - max(part.left, 0)
