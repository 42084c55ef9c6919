"""The comparison of an answer with the golds by math-verify, without a deadline. Runs in the worker processes.

math-verify and sympy are imported inside functions: the parent process imports neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

from attnrl.grading.expression_size import is_too_large
from attnrl.grading.jobs import Job, JobResult

MAX_DEPTH = 32  # of nested brackets; time and stack of the parser grow without bound
SMALL = 1e-2  # numbers below are compared by relative error
RELATIVE_ERROR = 1e-3  # of the larger of two small numbers


def judge(job: Job) -> JobResult:
    """Return the verdict on a job; for prose, also the answer extracted by math-verify."""
    golds = [parsed for gold in job.golds if _depth(gold) <= MAX_DEPTH and (parsed := _parse_gold(gold))]
    usable = any(_expressions(gold) for gold in golds)
    if job.answer is None:
        return JobResult("correct" if usable else "bad_gold")
    if _depth(job.answer) > MAX_DEPTH:
        return JobResult("error")
    found = _parse_prose(job.answer) if job.prose else _parse_boxed(job.answer)
    if not found:
        if not usable:
            return JobResult("bad_gold")
        return JobResult("no_answer" if job.prose else "wrong")
    verdict = _compare(golds, found)
    text = next((item for item in reversed(found) if isinstance(item, str)), None)
    return JobResult(verdict if usable or verdict == "correct" else "bad_gold", text if job.prose else None)


def _depth(text: str) -> int:
    """Return the depth of nested brackets; an unclosed bracket counts for the rest of the text."""
    depth = deepest = 0
    for bracket in re.findall(r"[(\[{)\]}]", text):
        depth = max(0, depth + (1 if bracket in "([{" else -1))
        deepest = max(deepest, depth)
    return deepest


# ---------------------------------------------------------------------------------------------------------------------
# Parsing: math-verify returns a list of sympy expressions, with the text of the last expression at the end
# ---------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _parse_gold(gold: str) -> tuple[Any, ...]:
    """Parse a true answer; an empty tuple if math-verify cannot parse the true answer."""
    found = _parse_boxed(gold)
    if not _expressions(found) and re.search(r"\$|\\\(|\\\[|(?i:answer)|^[\s\d.,+-]+$", gold):
        found = _parse_prose(gold) or found  # a worked solution, or a number with a decimal comma
    return tuple(found)


def _parse_boxed(text: str) -> list[Any]:
    boxed = "\\boxed{" + _prepare(text) + "}"
    found = _math_verify_parser(prose=False)(boxed)
    # math-verify takes the last letter of a + b + c for a unit: try again without units.
    return found if _expressions(found) else _math_verify_parser(prose=False, units=False)(boxed) or found


def _parse_prose(text: str) -> list[Any]:
    formula = _FORMULA.fullmatch(text.strip())
    if formula and "$" not in formula[2] and _expressions(found := _parse_boxed(formula[2])):
        return found  # a single formula
    return _math_verify_parser(prose=True)(text)


@lru_cache(maxsize=4)
def _math_verify_parser(*, prose: bool, units: bool = True) -> Callable[[str], list[Any]]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    latex = LatexExtractionConfig(boxed_match_priority=0)
    if not units:
        latex = replace(latex, normalization_config=replace(latex.normalization_config, units=False))
    # A box is parsed as LaTeX only: with plain expressions, math-verify would extract a number from an unparsable box.
    config = (latex, ExprExtractionConfig()) if prose else (latex,)
    return lambda text: list(parse(text, config, parsing_timeout=None))


_UNICODE = str.maketrans({"−": "-", "–": "-", "×": "\\times ", "·": "\\cdot ", "÷": "/", "π": "\\pi ", "∞": "\\infty "})
_UNICODE |= str.maketrans({"√": "\\sqrt ", "°": "^\\circ ", "≤": "\\le ", "≥": "\\ge ", "±": "\\pm ", "∪": "\\cup "})
_UNICODE |= str.maketrans(  # zero-width and directional characters are removed
    dict.fromkeys("\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff", "")
)

_FORMULA = re.compile(r"(\$\$?|\\\(|\\\[)(.+?)(\$\$?|\\\)|\\\])\.?", re.DOTALL)


def _prepare(text: str) -> str:
    """Rewrite an answer for math-verify: no outer dollar signs, LaTeX for Unicode signs, ``3e5`` as a power of ten."""
    text = text.translate(_UNICODE).strip()
    inner = _FORMULA.fullmatch(text)
    if inner and "$" not in inner[2]:
        text = inner[2].strip()
    text = re.sub(r"(?<=\d)(?:,\\!|\{,\})(?=\d{3}(?!\d))", "", text)  # thousands
    text = re.sub(r"\\!|^\\approx(?![a-zA-Z])|(?<=[^\\\s])\s*[.,]$|\\phantom(?![a-zA-Z])", "", text).strip()
    text = re.sub(r"\\[dt]?frac\s*\\pi\s*(\d)(?!\d)", r"\\frac{\\pi}{\1}", text)
    # The grammar of math-verify has no index on E (Euler's number) and no command as an index.
    text = re.sub(r"(?<![A-Za-z\\])E(?=_)", r"\\Xi", text)
    text = re.sub(r"_(?:\{\s*\\(odot|max|min)\s*\}|\\(odot|max|min)(?![a-z]))", r"_{\1\2}", text)
    number = re.fullmatch(r"([+-]?\d*\.?\d+)[eE]([+-]?\d+)", text)
    return f"{number[1]}\\times 10^{{{number[2]}}}" if number else text


def _expressions(parsed: Sequence[Any]) -> list[Any]:
    """Return the sympy expressions of a parsed answer, without NaN and complex infinity."""
    import sympy

    return [item for item in parsed if not isinstance(item, str) and item not in (sympy.nan, sympy.zoo)]


# ---------------------------------------------------------------------------------------------------------------------
# Comparison
# ---------------------------------------------------------------------------------------------------------------------


def _compare(golds: Sequence[Sequence[Any]], found: Sequence[Any]) -> Literal["correct", "wrong", "error"]:
    from math_verify import verify

    if any(_is_false_equation(item) for item in _expressions(found)):
        return "wrong"
    failed = False
    for gold in golds:
        for item in found:
            if is_too_large(item) and not isinstance(item, str):
                failed = True
                continue
            for expected in gold:
                if isinstance(expected, str) != isinstance(item, str):
                    continue
                if not isinstance(expected, str) and is_too_large(expected):
                    failed = True
                    continue
                try:
                    equal = verify(expected, item, timeout_seconds=None, raise_on_error=True)
                    if equal and not _small_numbers_differ(expected, item):
                        return "correct"
                except (MemoryError, RecursionError):
                    failed = True
                except Exception:  # math-verify cannot compare the two: unequal
                    continue
    return "error" if failed else "wrong"


def _small_numbers_differ(expected: Any, item: Any) -> bool:
    """Return True if two numbers below :data:`SMALL` differ by more than :data:`RELATIVE_ERROR`.

    math-verify rounds to six decimal places: 1e-19 and 1e-20 are both rounded to 0.
    """
    gold, value = _real_value(expected), _real_value(item)
    if gold is None or value is None or max(abs(gold), abs(value)) >= SMALL:
        return False
    return abs(gold - value) > RELATIVE_ERROR * max(abs(gold), abs(value))


def _real_value(expression: Any) -> float | None:
    """Return the value of a real number, of ``x = number`` or of a set with a single number, or else None."""
    import sympy

    if isinstance(expression, sympy.Eq):
        expression = expression.rhs
    if isinstance(expression, sympy.FiniteSet) and len(expression) == 1:
        (expression,) = expression
    if not isinstance(expression, sympy.Expr) or not expression.is_number:
        return None
    try:
        return float(expression)
    except (TypeError, OverflowError):  # not real
        return None


def _is_false_equation(item: Any) -> bool:
    """Return True for an equation of two different numbers (``1=5``); math-verify would compare the last number."""
    import sympy

    return (
        isinstance(item, sympy.Eq)
        and isinstance(item.lhs, sympy.Number)
        and isinstance(item.rhs, sympy.Number)
        and abs(float(item.lhs) - float(item.rhs)) > 1e-2 * max(1.0, abs(float(item.rhs)))
    )
