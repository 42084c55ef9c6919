"""Find equal problems by normalised text: duplicates, and overlap of training and evaluation (contamination)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from attnrl.config.base import PROMPT_SUFFIX
from attnrl.grading.reading.spelling import spelling
from attnrl.types import Problem

_THOUSANDS = re.compile(r"(?<=\d)(?:,\\!|\{,\})(?=\d)")
_SPACING = re.compile(
    r"\\(?:[,;:!>/ ]|(?:left|right|displaystyle|textstyle|quad|qquad|thinspace|limits)(?![a-zA-Z]))|~"
)
_FRACTION = re.compile(r"\\[dt]frac(?![a-zA-Z])")
_DELIMITERS = re.compile(r"\\[()\[\]]|\$")
# Punctuation before or between digits is kept (.5 and 1.5 differ from 5 and 15), and n! and f' are kept too.
_PUNCTUATION = re.compile(r"\.(?!\d)|(?<!\d)[,;:?\"`*_#]|[,;:?\"`*_#](?!\d)")
_ONE_SPELLING = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "−": "-", "–": "-", "—": "-"})
_WHITESPACE = re.compile(r"(?<!\w)\s+|\s+(?!\w)")


@lru_cache(maxsize=1 << 16)  # each text is normalised several times, for duplicates and overlap
def normalize_text(text: str) -> str:
    """Return a normalised spelling: without case, whitespace, punctuation, LaTeX spacing and LaTeX delimiters.

    Operators, brackets and digits are kept. Spaces are kept only between words and numbers.
    """
    text = unicodedata.normalize("NFKC", text).translate(_ONE_SPELLING)
    text = _FRACTION.sub(r"\\frac", _SPACING.sub(" ", _THOUSANDS.sub(",", text)))
    text = _PUNCTUATION.sub(" ", _DELIMITERS.sub(" ", text).casefold())
    return _WHITESPACE.sub("", " ".join(text.split()))


#: Instructions appended to the problems of common data sets.
_SUFFIXES = (
    normalize_text(PROMPT_SUFFIX),
    normalize_text("Please reason step by step, and put your final answer within \\boxed{}."),
)


def question_key(problem: Problem, suffix: str = "") -> str:
    """Return the normalised text of a problem (of the last user message of a chat), without ``suffix``."""
    prompt = problem.prompt
    if not isinstance(prompt, str):
        prompt = [message["content"] for message in prompt if message["role"] == "user"][-1]
    key = normalize_text(prompt)
    for ending in (normalize_text(suffix), *_SUFFIXES):
        key = key.removesuffix(ending).rstrip()
    return key


def answers_key(problem: Problem) -> tuple[str, ...]:
    """Return the accepted answers, normalised as in grading by rules, sorted and without duplicates."""
    return tuple(sorted({str(spelling(answer)) for answer in problem.answers}))


def find_overlap(training: Sequence[Problem], evaluation: Sequence[Problem], suffix: str = "") -> dict[int, Problem]:
    """Return the training problems (by index) equal to an evaluation problem, each with the evaluation problem."""
    known = {question_key(problem, suffix): problem for problem in reversed(evaluation)}
    keys = (question_key(problem, suffix) for problem in training)
    return {place: known[key] for place, key in enumerate(keys) if key in known}
