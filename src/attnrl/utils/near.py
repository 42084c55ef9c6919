"""Suggestions for misspelt names: the known names that resemble a wrong name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_COMPARED = 200  # characters of a wrong name: the comparison takes quadratic time


def near_names(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """Return the known name nearest to ``name`` as a list, empty if no similarity reaches ``cutoff``.

    The similarity is in [0, 1] (difflib); case does not count.
    """
    spelt: dict[str, str] = {}
    for candidate in known:
        if candidate != name:
            spelt.setdefault(candidate.casefold(), candidate)
    wrong = name[:MAX_COMPARED].casefold()
    return [spelt[found] for found in difflib.get_close_matches(wrong, spelt, n=1, cutoff=cutoff)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean NAME?`` for the known name nearest to ``name``, and "" if no known name is near."""
    near = near_names(name, known)
    return f"; did you mean {near[0]}?" if near else ""
