"""Comparison by math-verify, for mathematics beyond the reader: integrals, limits, series, operations on matrices.

math-verify and sympy are imported inside functions: the parent process imports neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from attnrl.grading.arithmetic.limits import TooLarge
from attnrl.grading.comparing.expression_size import is_too_large
from attnrl.grading.reading.characters import plain_characters

MAX_DEPTH = 32  # of nested brackets; time and stack of math-verify's parser grow without bound


def same_by_algebra(gold: str, answer: str) -> bool:
    """Return True if math-verify finds the value of a true answer in an answer.

    Raises:
        TooLarge: brackets are nested too deeply, or a value is too large to be computed.
    """
    from math_verify import verify

    for expected in _parse(gold):
        for found in _parse(answer):
            if isinstance(expected, str) or isinstance(found, str):
                continue
            try:
                if is_too_large(expected) or is_too_large(found):
                    raise TooLarge("a number of too many digits")
                if verify(expected, found, timeout_seconds=None, raise_on_error=True):
                    return True
            except TooLarge:
                raise
            except (MemoryError, RecursionError):
                raise TooLarge("out of memory") from None
            except Exception:  # math-verify cannot compare the two: unequal
                continue
    return False


def is_parsed(gold: str) -> bool:
    """Return True if math-verify parses a true answer to an expression."""
    try:
        return any(not isinstance(item, str) for item in _parse(gold))
    except TooLarge:
        return False


def extract_from_prose(text: str) -> str | None:
    """Return the answer that math-verify extracts from running text, or None."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    config = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
    formula = re.fullmatch(r"(?:\$\$?|\\\(|\\\[)([^$]+?)(?:\$\$?|\\\)|\\\])\.?", text.strip(), re.DOTALL)
    if formula:
        return formula[1]
    if _depth(text) > MAX_DEPTH:
        raise TooLarge("brackets nested too deeply")
    found = parse(text, config, parsing_timeout=None)
    return next((item for item in reversed(found) if isinstance(item, str)), None)


def _depth(text: str) -> int:
    """Return the depth of nested brackets; an unclosed bracket counts for the rest of the text."""
    depth = deepest = 0
    for bracket in re.findall(r"[(\[{)\]}]", text):
        depth = max(0, depth + (1 if bracket in "([{" else -1))
        deepest = max(deepest, depth)
    return deepest


@lru_cache(maxsize=256)
def _parse(text: str) -> tuple[Any, ...]:
    if _depth(text) > MAX_DEPTH:
        raise TooLarge("brackets nested too deeply")
    return tuple(_parser()("\\boxed{" + plain_characters(text) + "}"))


@lru_cache(maxsize=1)
def _parser() -> Callable[[str], list[Any]]:
    from math_verify import LatexExtractionConfig, parse

    config = (LatexExtractionConfig(boxed_match_priority=0),)
    return lambda text: list(parse(text, config, parsing_timeout=None))
