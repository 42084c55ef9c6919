"""The spelling of an answer, for equality without mathematics."""

from __future__ import annotations

import re
from collections.abc import Sequence

from attnrl.grading.reading.tokens import Token, Unreadable, tokenize

MAX_NEEDLESS_BRACES = 32  # around the whole answer
_UNIT_SIGNS = frozenset("$%°")
_AMOUNT = re.compile(r"(?:\$ )?([+-] )?(?:\$ )?(\d[\d.()e+-]*)(?: [%°])?")


def spelling(text: str, *, amounts: bool = False) -> tuple[tuple[str, str], ...] | None:
    """Return a key of the spelling of an answer, equal for texts that differ only in markup and white space.

    An empty text has no key. With ``amounts``, the key of a plain amount is the number, without ``\\$``, ``\\%`` and
    ``^\\circ``.
    """
    try:
        tokens = tokenize(text)
    except Unreadable:
        joined = "".join(text.split())
        return (("unreadable", joined),) if joined else None
    key = _without_needless_braces(
        [("letters" if token.kind == "text" else token.kind, _without_last_zeros(token)) for token in tokens]
    )
    amount = _AMOUNT.fullmatch(" ".join(text for _, text in key))
    if amount and (amounts or not _UNIT_SIGNS.intersection(text for _, text in key)):
        negative = amount[1] == "- " and amount[2] != "0"
        key = [*([("mark", "-")] if negative else []), ("number", amount[2])]
    return tuple(key) if any(text not in _UNIT_SIGNS for _, text in key) else None


def is_spelled_as(found: str, answers: Sequence[str], *, amounts: bool = False) -> bool:
    """Return True if a text has the spelling of an accepted answer; an empty answer never has."""
    key = spelling(found, amounts=amounts)
    return key is not None and any(spelling(answer, amounts=amounts) == key for answer in answers)


def _without_needless_braces(key: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Remove the braces around a single token and around the whole key."""
    kept: list[tuple[str, str]] = []
    for part in key:
        kept.append(part)
        if len(kept) > 2 and part == ("mark", "}") and kept[-3] == ("mark", "{"):
            kept[-3:] = [kept[-2]]
    for _ in range(MAX_NEEDLESS_BRACES):
        if len(kept) < 2 or kept[0] != ("mark", "{") or _closing(kept) != len(kept) - 1:
            break
        kept = kept[1:-1]
    return kept


def _closing(key: list[tuple[str, str]]) -> int:
    depth = 0
    for place, part in enumerate(key):
        depth += {("mark", "{"): 1, ("mark", "}"): -1}.get(part, 0)
        if depth == 0:
            return place
    return -1


def _without_last_zeros(token: Token) -> str:
    """Return the characters of a token; of a decimal, without the zeros at the end: ``7`` for ``7.00``."""
    if token.kind != "number" or "." not in token.text or not token.text.replace(".", "").isdigit():
        return token.text
    return token.text.rstrip("0").rstrip(".")
