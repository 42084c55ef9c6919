"""The interface of a comparison, and the comparison of sequences item by item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from attnrl.grading.reading.statement import Statement
from attnrl.grading.reading.values import Value

MAX_ITEMS = 400  # of a sequence


class Compare(Protocol):
    """Compares an answer with a true answer: True, False, or None if the comparison needs computer algebra."""

    statement: Statement

    def __call__(self, gold: Value, answer: Value) -> bool | None:
        """Compare an answer with a true answer."""


def match(gold: Sequence[Value], answer: Sequence[Value], compare: Compare, *, ordered: bool) -> bool | None:
    """Compare the items of two sequences, each item of one with one item of the other."""
    if len(gold) != len(answer) or len(gold) > MAX_ITEMS:
        return False
    if ordered:
        undecided = False
        for expected, found in zip(gold, answer, strict=True):
            equal = compare(expected, found)
            if equal is False:
                return False
            undecided = undecided or equal is None
        return None if undecided else True
    left = list(answer)
    for expected in gold:
        place = next((n for n, found in enumerate(left) if compare(expected, found)), None)
        if place is None:
            return False
        del left[place]
    return True
